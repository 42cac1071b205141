from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import rows
from conftest import STORY, Result
from torch.nn.functional import cross_entropy

from gpt_lightning.checkpoints.loading import open_checkpoint

Command = Callable[..., Result]


LINE = re.compile(r"Ep (\d+) \(Step (\d{6})\): Train loss (\d+\.\d{3}), Val loss (\d+\.\d{3})")


def evaluated_steps(result: Result) -> list[tuple[int, int]]:
    """Return (epoch, step) of each printed evaluation."""
    return [(int(found[1]), int(found[2])) for found in LINE.finditer(result.out)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 5 batches an epoch, 3 epochs
        ([], [(1, 2), (1, 4), (2, 6), (2, 8), (2, 10), (3, 12), (3, 14), (3, 15)]),
        (["--trainer.accumulate_grad_batches=2"], [(1, 2), (2, 4), (2, 6), (3, 8), (3, 9)]),
        (["--trainer.accumulate_grad_batches=3"], [(1, 2), (2, 4), (3, 6)]),
        (["--trainer.max_steps=3"], [(1, 2), (1, 3)]),
        (["--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2"], [(1, 2), (1, 3)]),
        (["--evaluate_every=100", "--trainer.max_epochs=1"], [(1, 5)]),
        (["--evaluate_every=100", "--trainer.max_epochs=-1", "--trainer.max_steps=7"], [(2, 7)]),
    ],
)
def test_evaluations_come_every_n_optimizer_steps_and_after_the_last(
    command: Command, config: Path, settings: list[str], expected: list[tuple[int, int]]
) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", *settings)

    assert evaluated_steps(result) == expected
    assert rows("run")[0]["step"] == 0
    assert [row["step"] for row in rows("run") if "val_loss" in row] == [0, *(step for _, step in expected)]


def test_a_stop_by_time_waits_for_the_optimizer_step(command: Command, config: Path) -> None:
    settings = ["--trainer.max_time=00:00:00:01", "--trainer.max_epochs=-1", "--trainer.accumulate_grad_batches=5"]

    result = command("fit", "--config", config, "--run_dir", "run", "--evaluate_every=1000", *settings)

    ((_, step),) = evaluated_steps(result)
    assert rows("run")[-1]["step"] == step
    assert rows("run")[-1]["tokens_seen"] == step * 5 * 56 * 64


def test_a_limited_evaluation_prints_how_many_windows_are_left_out(command: Command, trained: Path) -> None:
    arguments = ("--data.batch_size=4", "--trainer.limit_val_batches=2")

    shown = command("validate", "--ckpt_path", trained / "checkpoints/last.ckpt", *arguments)

    assert shown.out.endswith("over 512 tokens in 8 windows of 64; 23 windows left out by a limit\n")


def test_evaluations_record_the_losses_of_groups_of_validation_windows(
    command: Command, config: Path, trained: Path
) -> None:
    command("fit", "--config", config, "--run_dir", "many", "--trainer.max_epochs=1", "--model.context_length=32")
    command("fit", "--config", config, "--run_dir", "few", "--trainer.max_epochs=1", "--model.context_length=220")
    text = STORY.read_bytes()

    for run, length, size in ((trained, 64, 1), (Path("many"), 32, 2)):
        network = open_checkpoint(run / "checkpoints/last.ckpt").build().eval()
        ids = torch.tensor(list(text[int(0.9 * len(text)) :]))
        windows = torch.stack([ids[start : start + length + 1] for start in range(0, len(ids) - length, length)])
        with torch.no_grad():
            logits = network(windows[:, :-1]).transpose(1, 2)
        losses = cross_entropy(logits, windows[:, 1:], reduction="none").double().mean(1)
        expected = [group.mean().item() for group in losses.split(size)]
        row = rows(run)[-1]
        assert row["val_blocks"] == pytest.approx(expected, rel=1e-5)
        assert row["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert all(("val_blocks" in row) == ("val_loss" in row) for row in rows(trained))
    assert not any("val_blocks" in row for row in rows("few"))  # 9 windows
