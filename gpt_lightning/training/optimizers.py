"""The learning-rate schedule and the norm of the gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def learning_rate_factor(updates: int, warmup_steps: int, total_steps: float, least: float | None) -> float:
    """Share of the learning rate that update number `updates` + 1 is made with.

    Rises linearly to 1 at update `warmup_steps`, then stays, or falls along half a cosine to `least` at
    update `total_steps`.

    Args:
        updates: Updates made so far.
        warmup_steps: 0 starts at 1.
        total_steps: Updates of the whole run; used for the cosine only.
        least: Where the cosine ends, as a share; None for no cosine.
    """
    update = updates + 1
    if update <= warmup_steps:
        return update / warmup_steps
    if least is None:
        return 1.0
    progress = min(1.0, (update - warmup_steps) / max(1, total_steps - warmup_steps))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The root of the sum of all squares, from the norms of the rows.

    `torch.nn.utils.get_total_norm` adds up the squares of a whole matrix at once, in float32: with the 38 million of
    GPT-2's embedding its norm is a thousandth too small on a CPU, and takes longer. `sum` sums pairwise.
    """
    norms = []
    for gradient in gradients:
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norms.append(torch.linalg.vector_norm(gradient, dim=-1, dtype=dtype).flatten())
    return torch.cat(norms).square().sum().sqrt()
