"""Measure how well a model predicts each token of a text.

Shapes: N tokens of the text, P = N - 1 predicted tokens, K alternatives, T context_length, D emb_dim, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.errors import InputError, not_finite
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity

ALTERNATIVES = 5  # K
TOKENS_AT_ONCE = 1024  # inputs of a forward pass
LOGITS_AT_ONCE = 1 << 24  # 64 MB


@dataclass(frozen=True)
class TokenScores:
    """The predictions of all tokens of a text but the first; element i belongs to token i + 1.

    Attributes:
        losses: (P,) float32, the negative logarithm of each token's probability, in nats.
        ranks: (P,) int64, 1 for the most likely token of the vocabulary.
        top_ids: (P, K) int64, the most likely tokens, in order.
        top_probs: (P, K) float32, their probabilities.
    """

    losses: NDArray[np.float32]
    ranks: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_probs: NDArray[np.float32]


@dataclass(frozen=True)
class TokenTotals:
    """Measures of all predicted tokens of a text.

    Attributes:
        predicted: Number of predicted tokens.
        loss: Mean loss in nats per token.
        perplexity: exp(loss).
        bits_per_byte: Sum of the losses in bits, divided by the UTF-8 bytes of the predicted tokens.
        accuracy: Share of the tokens that were the most likely ones.
    """

    predicted: int
    loss: float
    perplexity: float
    bits_per_byte: float
    accuracy: float


def score_tokens(model: GPT, token_ids: Sequence[int]) -> TokenScores:
    """Compute the loss, the rank and the alternatives of each token of a text except the first.

    The text is read in windows of T tokens that start every T / 2 tokens, and of each window only those tokens are used
    that the one before did not predict. So a token is predicted from all tokens before it or, after the first T, from
    at least T / 2 and at most T of them.

    Args:
        model: The model, in training or evaluation mode.
        token_ids: The token ids of the text, N of them.

    Raises:
        InputError: There are fewer than two tokens.
        DivergedError: A logit is not finite.
    """
    if len(token_ids) < 2:
        raise InputError(f"the loss of a text needs at least 2 tokens, got {len(token_ids)}")
    ids = torch.tensor(token_ids, dtype=torch.int64, device=model.tok_emb.weight.device)
    predicted = len(ids) - 1
    T = min(model.context_length, predicted)
    starts = [*range(0, predicted - T, max(1, model.context_length // 2)), predicted - T]
    ends = [0, *(start + T for start in starts)]  # window i adds the predictions ends[i] to ends[i + 1] - 1
    at_once, chunk = max(1, TOKENS_AT_ONCE // T), max(1, LOGITS_AT_ONCE // model.vocab_size)
    bar: tqdm[Any] = tqdm(total=predicted, unit="token", delay=2, leave=False, file=sys.stderr, disable=None)
    pieces: list[tuple[Tensor, ...]] = []
    with evaluation_mode(model), bar:
        for first in range(0, len(starts), at_once):
            rows = range(first, min(first + at_once, len(starts)))
            hidden = model.hidden_states(torch.stack([ids[starts[i] : starts[i] + T] for i in rows]))  # (B, T, D)
            used = torch.cat([hidden[i - first, ends[i] - starts[i] :] for i in rows])
            targets = ids[ends[first] + 1 : ends[rows[-1] + 1] + 1]
            for part, part_targets in zip(torch.split(used, chunk), torch.split(targets, chunk), strict=True):
                pieces.append(_score(model.out_head(part), part_targets))
                bar.update(len(part))
    losses, ranks, top_ids, top_probs = (torch.cat(column).cpu().numpy() for column in zip(*pieces, strict=True))
    if not np.isfinite(losses).all():
        raise not_finite()
    return TokenScores(losses, ranks, top_ids, top_probs)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of `TokenScores` for logits (M, V) and targets (M,)."""
    logits = logits.float()
    losses = cross_entropy(logits[None], targets[None])[0]
    chosen = logits.gather(1, targets[:, None])  # (M, 1)
    better = (logits > chosen).sum(1)
    ids = torch.arange(logits.shape[1], device=logits.device)
    tied = ((logits == chosen) & (ids < targets[:, None])).sum(1)  # the lower id first, as in argmax
    top = logits.topk(min(ALTERNATIVES, logits.shape[1]))
    totals = losses[:, None] + chosen  # logarithms of the softmax's denominators
    return losses, 1 + better + tied, top.indices, (top.values - totals).exp()


def total(scores: TokenScores, token_ids: Sequence[int], tokenizer: Tokenizer) -> TokenTotals:
    """Return the mean loss of the predicted tokens and what follows from it.

    Args:
        scores: The result of `score_tokens`.
        token_ids: (N,).
        tokenizer: The model's tokenizer.
    """
    summed = float(scores.losses.sum(dtype=np.float64))
    size = sum(len(tokenizer.token_bytes(token_id)) for token_id in token_ids[1:])
    loss = summed / len(scores.losses)
    accuracy = float((scores.ranks == 1).mean())
    return TokenTotals(len(scores.losses), loss, perplexity(loss), summed / math.log(2) / size, accuracy)
