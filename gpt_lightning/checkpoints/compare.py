"""Find the first difference between two checkpoints or two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gpt_lightning.files import read_rows

TIMES = ("tokens_per_second", "mfu")  # differ between any two runs


def first_difference(one: Any, other: Any, name: str) -> str | None:
    """Describe the first difference between two nested values, or return None if they are bit-identical.

    Args:
        one: Tensors, plain data, and dicts and lists of them.
        other: The value to compare it with.
        name: Name of the values, which starts the description.
    """
    if type(one) is not type(other):
        return f"{name}: types {type(one).__name__} and {type(other).__name__}"
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f"{name}: only one has {sorted(map(str, one.keys() ^ other.keys()))[0]}"
        pairs = [(f"{name}.{key}", one[key], other[key]) for key in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{name}: lengths {len(one)} and {len(other)}"
        pairs = [(f"{name}[{i}]", *values) for i, values in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{name}: {tuple(one.shape)} {one.dtype} and {tuple(other.shape)} {other.dtype}"
        if one.dim() == 0:
            one, other = one[None], other[None]
        if torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)):
            return None
        return f"{name}: values differ by up to {(one.double() - other.double()).abs().max().item():g}"
    else:
        return None if one == other else f"{name}: {one!r} and {other!r}"
    return next((found for found in (first_difference(a, b, key) for key, a, b in pairs) if found), None)


def compare_runs(one: Path, other: Path) -> str | None:
    """Describe the first difference between two finished run folders except timings, or return None."""
    for name in ("last.ckpt", "best.ckpt"):
        left, right = (torch.load(run / "checkpoints" / name, weights_only=True, mmap=True) for run in (one, other))
        if found := first_difference(left, right, name):
            return found
    for name in ("metrics.jsonl", "samples.jsonl"):
        left, right = (
            [{key: value for key, value in row.items() if key not in TIMES} for row in read_rows(run / name)]
            for run in (one, other)
        )
        if found := first_difference(left, right, name):
            return found
    return None
