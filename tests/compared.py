"""Helpers for tests of runs: read their tables, compare their weights, damage their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.files import read_rows


def rows(run: str | Path, table: str = "metrics") -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, or of another table."""
    return read_rows(Path(run, f"{table}.jsonl"))


def rows_without_times(run: str | Path) -> list[str]:
    """Return the lines of a run's metrics.jsonl without tokens_per_second, which differs between equal runs."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [line.split(', "tokens_per_second"')[0] for line in lines]


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_equal_weights(one: Path, other: Path) -> None:
    """Assert that the last.ckpt of two runs have equal weights, bit for bit."""
    left, right = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, other))
    assert first_difference(left, right, "weights") is None
