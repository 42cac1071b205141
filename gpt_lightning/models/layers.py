"""Building blocks of the network: dropout from random bits, wide linear layers, attention with dropout on CPUs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES = 128  # queries that `causal_attention` takes at a time


def uses_bit_masks(x: Tensor) -> bool:
    """Whether dropout draws its masks with `dropout_mask`: on a CPU, outside of `torch.compile`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """A random mask, False with probability `rate`, and what to multiply the kept values with.

    PyTorch's dropout draws a double for each value, one after the other: on a CPU a tenth of the time of a
    training step. Here each value gets 16 of a word's 64 random bits; the rate is met to 1 / 65,536.

    Returns:
        Booleans of that shape, and 1 / (1 - rate) for the rate as it was met.
    """
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(rate * 65536), 65535)  # of the 65,536 values of 16 bits
    return words.view(torch.int16)[:count].view(shape) >= dropped - 32768, 65536 / (65536 - dropped)


class ColumnMajorLinear(nn.Linear):
    """A linear layer with more outputs than inputs, which computes (weight x^T)^T: its output lies feature by feature.

    The values are those of `nn.Linear`, up to rounding. CPUs multiply faster so where a product is wide, forward and
    backward, and much faster where a row of it would have an odd length, as the logits over GPT-2's 50,257 tokens have.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None and x.device.type != "cpu":
            return super().forward(x)  # other devices add a bias within the product
        inputs = x.reshape(-1, self.in_features).T  # (in, N)
        bias = self.bias
        outputs = self.weight @ inputs if bias is None else torch.addmm(bias[:, None], self.weight, inputs)  # (out, N)
        return outputs.T.view(*x.shape[:-1], self.out_features)


class Dropout(nn.Module):
    """In training sets each value to 0 with probability `rate` and divides the others by 1 - rate.

    (Srivastava et al. 2014.) No unit can rely on another one being there; on average each sends what it
    would send without dropout.
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
    """Causal attention with dropout on its weights, each step in the open: (B, H, T, K), three times -> the same.

    softmax(queries keys^T / sqrt(K)), where what comes later has no weight, times the values; for some queries at a
    time, so that little is computed that the mask then hides. Where it can, the model uses PyTorch's fused attention
    instead, which on CPUs is of no help with dropout.
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
