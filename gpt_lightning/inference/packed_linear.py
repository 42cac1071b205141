"""Matrices in the order in which a CPU multiplies few rows with them fastest, for `predict`.

A new token reads every matrix once, and that reading is most of its time. PyTorch keeps a matrix row by row; oneDNN,
the library that it multiplies with on CPUs, can keep it in blocks instead. On the two cores that were measured one
prompt got its tokens a fifth faster for it, eight prompts twice as fast (`benchmarks/generation.py`).

PyTorch's own compiler packs matrices with the same two operations. They have no public name; `tests/test_packing.py`
pins what they are taken for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer with its matrix in blocks.

    Args:
        linear: Where its values come from; on the CPU.
        rows: The number of rows that it will mostly be multiplied with.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def is_packable(weight: Tensor) -> bool:
    """Whether this machine packs such a matrix: float32 on a CPU, bfloat16 on one that computes with it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(model: nn.Module, rows: int) -> None:
    """Packs the matrices of all linear layers, where that can be done.

    After it the model can be called, but neither be trained nor saved.

    Args:
        model: In its place.
        rows: Completions that are mostly made together.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and is_packable(child.weight):
                setattr(module, name, PackedLinear(child, rows))
