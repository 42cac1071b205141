"""Sampled softmax: the training loss, estimated from part of the vocabulary (Jean et al. 2015).

The loss at a position is ln Z minus the target's logit, where Z is the sum of exp(logit) over all V tokens. A small
network spends most of its time on these V logits. Here, the tokens that are targets of the batch are summed exactly. Of
the R others, a sample of S is drawn for each batch, without replacement, and counts R / S times. The expected value of
this estimate is Z, whatever S is, and with S = R it is exact. Its logarithm, and so the loss, is too small on average,
the less the larger S is.

"On Using Very Large Target Vocabulary for Neural Machine Translation", https://arxiv.org/abs/1412.2007
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The tokens whose logits are computed for a batch.

    Attributes:
        token_ids: (C,) distinct token ids, int64.
        log_weights: (C,) float32, the logarithm of how many times each counts in Z; to be added to its logits.
        targets: (B, T) int64, the place of each target among `token_ids`.
    """

    token_ids: Tensor
    log_weights: Tensor
    targets: Tensor


def draw_candidates(targets: Tensor, vocab_size: int, samples: int) -> Candidates:
    """Draw the candidates of one batch, with the random generator of the targets' device.

    Args:
        targets: (B, T) int64.
        vocab_size: V.
        samples: S; if there are fewer tokens that are no targets, all of them are candidates.
    """
    target_ids, places = torch.unique(targets, return_inverse=True)
    is_other = torch.ones(vocab_size, dtype=torch.bool, device=targets.device)
    is_other[target_ids] = False
    others = is_other.nonzero()[:, 0]
    drawn = others[torch.randperm(len(others), device=targets.device)[:samples]]
    log_weights = torch.zeros(len(target_ids) + len(drawn), dtype=torch.float32, device=targets.device)
    if len(drawn) > 0:
        log_weights[len(target_ids) :] = math.log(len(others) / len(drawn))
    return Candidates(torch.cat([target_ids, drawn]), log_weights, places)
