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
from typing import Any

import torch
from torch import Tensor

# Logits that are looked at together: few enough for a CPU's cache, on a GPU so many that it should have enough to do.
CPU_BLOCK, GPU_BLOCK = 1 << 19, 1 << 26


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihoods of the targets in nats, in float32.

    With V in the tens of thousands the logits are the largest tensor of a training step. They are held once:
    where a gradient is wanted, it takes their place, and their values are lost to the caller.

    Args:
        logits: (B, T, V); used up in training.
        targets: (B, T) int64.

    Returns:
        (B, T), one for each target.
    """
    losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, 1), targets.flatten(), logits.requires_grad
    )
    return losses.view(targets.shape)


def vocab_chunks(logits: Tensor) -> tuple[Tensor, ...]:
    """(N, V) in parts of the vocabulary, because that is how the model's logits lie in memory: (V, N)."""
    size = CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK
    return torch.split(logits, max(1, size // max(1, logits.shape[0])), dim=1)


class _CrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` with the gradient in the logits' memory: the probabilities less the one-hot targets."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, training: bool) -> Tensor:
        largest = logits.amax(1, keepdim=True).float()
        chosen = logits.gather(1, targets[:, None]).float()
        total = torch.zeros_like(largest)
        for block in vocab_chunks(logits):
            shares = (block - largest).exp_()  # in float32
            total += shares.sum(1, keepdim=True)
            if training:
                block.copy_(shares)
        losses = total.log() - (chosen - largest)
        if training:
            ctx.shares = logits
            ctx.save_for_backward(targets, total, losses)
        return losses[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scales: Tensor) -> tuple[Tensor, None, None]:
        targets, total, losses = ctx.saved_tensors
        gradient, ctx.shares = ctx.shares, None  # a second call fails instead of scaling it twice
        factors = scales[:, None] / total
        for block in vocab_chunks(gradient):
            block.copy_(block * factors)  # on CPUs many times as fast in bfloat16 as in place
        right = torch.expm1(-losses[:, 0]) * scales
        # Not by `scatter_`, which on CPUs copies all logits where they lie by the vocabulary in bfloat16.
        gradient[torch.arange(len(targets), device=targets.device), targets] = right.to(gradient.dtype)
        return gradient, None, None


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens the model is torn.

    1 where it is certain of every right token; V where it knows nothing; above V where it is sure of wrong
    ones, as an untrained model may be; infinite beyond exp's range. Of several batches it is exp of the mean
    loss: the mean of their perplexities would be larger (Jensen's inequality).
    """
    return math.exp(loss) if loss < 709 else math.inf
