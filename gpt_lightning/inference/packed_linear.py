"""Pack weight matrices for fast decoding on CPUs.

Decoding a token reads every matrix once, which takes most of the time. PyTorch stores a matrix row by row; oneDNN, its
library for matrix products on CPUs, can store it in blocks instead. On two cores, packed matrices decoded one prompt
1.2 times as fast and eight prompts twice as fast (`benchmarks/generation.py`).

PyTorch's compiler packs matrices with the same two operations, which have no public name;
`tests/inference/test_packed_linear.py` tests the assumptions made here about them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer whose matrix is stored in blocks.

    Args:
        linear: The layer to pack, on the CPU.
        rows: Expected number of rows of the input, which oneDNN chooses the blocks for.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def is_packable(weight: Tensor) -> bool:
    """Return whether a matrix can be packed: float32 on a CPU, bfloat16 on a CPU with bfloat16 instructions."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(model: nn.Module, rows: int) -> None:
    """Pack the matrices of all linear layers that can be packed, in place.

    A packed model can neither be trained nor saved.

    Args:
        model: The model.
        rows: Expected batch size.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and is_packable(child.weight):
                setattr(module, name, PackedLinear(child, rows))
