"""The loss of a language model and its perplexity.

At each position the model predicts a probability for every token of the vocabulary. The loss is the negative
logarithm of the probability of the actual next token: 0 if the prediction is certain and right, ln V if it is
uniform over the V tokens, and more if it is confident and wrong. This is the cross-entropy between the model's
probabilities q and the one-hot target p, the sum over V of -p ln q. Only the target's term is nonzero, so the
target's id selects it and no one-hot vector is built.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Logits per chunk: on a CPU few enough to stay in its cache, on a GPU enough to keep it busy.
CPU_BLOCK, GPU_BLOCK = 1 << 19, 1 << 26


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each target in nats.

    With V in the tens of thousands, the logits are the largest tensor of a training step. To hold only one tensor of
    that size, the gradient overwrites the logits if they require one.

    Args:
        logits: (B, T, V); overwritten if they require a gradient.
        targets: (B, T) int64.

    Returns:
        (B, T) float32.
    """
    losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, 1), targets.flatten(), logits.requires_grad
    )
    return losses.view(targets.shape)


def vocab_chunks(logits: Tensor) -> tuple[Tensor, ...]:
    """Split logits (N, V) along the vocabulary, because the model's logits are stored as (V, N)."""
    size = CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK
    return torch.split(logits, max(1, size // max(1, logits.shape[0])), dim=1)


class _CrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` whose gradient, softmax minus the one-hot target, is stored in the memory of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, training: bool) -> Tensor:
        largest = logits.amax(1, keepdim=True).float()
        chosen = logits.gather(1, targets[:, None]).float()
        total = torch.zeros_like(largest)
        for block in vocab_chunks(logits):
            shares = (block - largest).exp_()  # float32, because `largest` is
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
        gradient, ctx.shares = ctx.shares, None  # a second backward pass fails instead of scaling the gradient twice
        factors = scales[:, None] / total
        for block in vocab_chunks(gradient):
            block.copy_(block * factors)  # on CPUs many times faster than an in-place product in bfloat16
        right = torch.expm1(-losses[:, 0]) * scales
        # Indexing instead of `scatter_`, which on CPUs copies column-major bfloat16 logits.
        gradient[torch.arange(len(targets), device=targets.device), targets] = right.to(gradient.dtype)
        return gradient, None, None


def perplexity(loss: float) -> float:
    """Return exp(loss), the effective number of equally likely tokens at each position.

    It is 1 if every prediction is certain and right, V for uniform predictions, above V for confident wrong ones, and
    infinity where exp overflows. The perplexity of several batches is exp of their mean loss; the mean of their
    perplexities would be larger (Jensen's inequality).

    Args:
        loss: Mean loss in nats per token.
    """
    return math.exp(loss) if loss < 709 else math.inf
