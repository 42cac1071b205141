"""What tests of runs share: their rows, equal weights, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.files import read_rows


def rows(run: str | Path, table: str = "metrics") -> list[dict[str, Any]]:
    return read_rows(Path(run, f"{table}.jsonl"))


def rows_without_times(run: str | Path) -> list[str]:
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [line.split(', "tokens_per_second"')[0] for line in lines]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_equal_weights(one: Path, other: Path) -> None:
    left, right = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, other))
    assert first_difference(left, right, "weights") is None
