"""`verify-resume` with real processes, and the differences that it finds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

from gpt_lightning.checkpoints.compare import compare_runs, first_difference

Command = Callable[..., Result]


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_identical(command: Command, config: Path) -> None:
    result = command("verify-resume", "--config", config, "--trainer.accumulate_grad_batches", 1)

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("reference    6 steps in ")
    assert re.fullmatch(r"interrupted  killed after steps? [1-5]( and [1-6])?, in .* s", lines[1])
    assert lines[2] == "identical    weights, optimizer and random states, 10 rows of metrics, samples"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--config", "tiny.yaml", "--resume"], "verify-resume sets --resume itself; leave it out"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
        (["--model.warmup_steps=x"], "model.warmup_steps must be an int, not 'x'"),
        (["--config", "tiny.yaml", "--data.text=no"], "the run failed: no: no such file"),
    ],
)
def test_runs_that_cannot_be_verified_are_refused(
    command: Command, config: Path, arguments: list[str], error: str
) -> None:
    result = command("verify-resume", *arguments)

    assert (result.code, result.error) == (2, error)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), "x: values differ by up to 0.5"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "x: values differ by up to 0"),  # equal values, different bits
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), None),
        (torch.tensor(1), torch.tensor(1), None),
        (torch.zeros(2), torch.zeros(3), "x: (2,) torch.float32 and (3,) torch.float32"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "x.a[1].b: 2 and 3"),
        ({"a": 1}, {"b": 1}, "x: only one has a"),
        ([1], [1, 2], "x: lengths 1 and 2"),
        (1, 1.0, "x: types int and float"),
        ({"a": (None, "t", torch.ones(2, 2))}, {"a": (None, "t", torch.ones(2, 2))}, None),
    ],
)
def test_the_first_difference(one: Any, other: Any, difference: str | None) -> None:
    assert first_difference(one, other, "x") == difference


def test_a_changed_metric_is_found(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    assert compare_runs(trained, tmp_path / "run") is None
    table = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[3]["tokens_per_second"] = 1.0
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare_runs(trained, tmp_path / "run") is None
    rows[3]["step"] += 1
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare_runs(trained, tmp_path / "run")
    assert found is not None
    assert found.startswith("metrics.jsonl[3].step: ")
