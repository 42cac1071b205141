"""Building blocks of the network that are faster on CPUs: dropout, wide linear layers, attention with dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES = 128  # queries per block of `causal_attention`


def uses_bit_masks(x: Tensor) -> bool:
    """Return whether dropout uses `dropout_mask`: on CPUs, outside of `torch.compile`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Draw a dropout mask from random bits.

    PyTorch's dropout draws one double per value sequentially, which on a CPU takes a tenth of a training step. Here
    each value uses 16 bits of a random 64-bit word, so that the rate is rounded to a multiple of 1 / 65,536.

    Args:
        shape: Shape of the mask.
        rate: Probability of False, which drops a value.

    Returns:
        The mask, bool, and the scale of the kept values: 1 / (1 - rate) with the rounded rate.
    """
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(rate * 65536), 65535)  # number of 16-bit values, out of 65,536, that mean "drop"
    return words.view(torch.int16)[:count].view(shape) >= dropped - 32768, 65536 / (65536 - dropped)


class ColumnMajorLinear(nn.Linear):
    """A linear layer, for more outputs than inputs, whose output is stored in column-major order.

    It computes (weight x^T)^T, which equals `nn.Linear` up to rounding. On CPUs, wide products are faster this way,
    forward and backward, and much faster if the number of outputs is odd, as GPT-2's 50,257 logits are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None and x.device.type != "cpu":
            return super().forward(x)  # other devices fuse the addition of the bias into the product
        return column_major_linear(x, self.weight, self.bias)


def column_major_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` in column-major order: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    inputs = x.reshape(-1, weight.shape[1]).T  # (in, N)
    outputs = weight @ inputs if bias is None else torch.addmm(bias[:, None], weight, inputs)  # (out, N)
    return outputs.T.view(*x.shape[:-1], weight.shape[0])


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): in training, zero each value with probability `rate`, scale the rest.

    Kept values are divided by 1 - rate, so that the expected value stays the same. Units cannot rely on the presence
    of particular other units. The mask differs from that of `nn.Dropout` on CPUs, see `dropout_mask`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        if not uses_bit_masks(x):
            return F.dropout(x, self.rate)
        mask, scale = dropout_mask(x.shape, self.rate)
        return x * mask * scale


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float) -> Tensor:
    """Compute causal attention with dropout on the attention weights, without a fused kernel.

    softmax(queries keys^T / sqrt(K)), with a weight of 0 for later tokens, times the values. Queries are processed in
    blocks, so that few of the scores are computed only to be masked. The model uses it for dropout on CPUs, where
    PyTorch has no fused attention with dropout.

    Args:
        queries: (B, H, T, K).
        keys: (B, H, T, K).
        values: (B, H, T, K).
        drop_rate: Dropout probability of the attention weights.

    Returns:
        (B, H, T, K).
    """
    B, H, T, K = queries.shape
    queries, keys, values = (x.reshape(B * H, T, K) for x in (queries * K**-0.5, keys, values))
    attended = []
    for start in range(0, T, QUERIES):
        end = min(start + QUERIES, T)
        later = torch.full((end - start, end), -math.inf, dtype=queries.dtype).triu(start + 1)
        scores = torch.baddbmm(later, queries[:, start:end], keys[:, :end].transpose(1, 2))
        weights = scores.softmax(-1)  # (B H, end - start, end)
        mask, scale = dropout_mask(weights.shape, drop_rate)
        attended.append(torch.bmm(torch.where(mask, weights, 0), values[:, :end]) * scale)
    return torch.cat(attended, dim=1).view(B, H, T, K)
