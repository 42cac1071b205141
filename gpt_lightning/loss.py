"""The loss of a language model and its perplexity.

After each token the model gives every token of the vocabulary a probability. Its loss there is the negative
logarithm of the one that it gave to the token that really follows: 0 if it was certain of it, ln V if it
knows nothing and gives all V the same, more if it is sure of something else. That is the cross-entropy
between the model's probabilities q and a target distribution p that is 1 at the right token and 0
elsewhere (one-hot): of the sum over V of -p ln q only the right token's term is left, so nobody builds the
one-hot vectors; the targets' ids pick the terms out.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of the targets in nats, in float32.

    Args:
        logits: (B, T, V).
        targets: (B, T) int64.
        reduction: "mean" for a scalar, "none" for (B * T,).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens the model is torn.

    1 where it is certain of every right token; V where it knows nothing; above V where it is sure of wrong
    ones, as an untrained model may be; infinite beyond exp's range. Of several batches it is exp of the mean
    loss: the mean of their perplexities would be larger (Jensen's inequality).
    """
    return math.exp(loss) if loss < 709 else math.inf
