from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from lightning.pytorch import LightningModule, Trainer

from gpt_lightning.files import read_rows
from gpt_lightning.training.callbacks.metrics import Summary

Command = Callable[..., Result]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool, bool]]:
    """Record step, epoch_ended and run_ends of each `after_step`; an evaluation that is due must come before."""
    called: list[tuple[int, bool, bool]] = []
    after_step = Summary.after_step

    def record(self: Summary, trainer: Trainer, module: LightningModule, *, epoch_ended: bool, run_ends: bool) -> None:
        step = trainer.global_step
        called.append((step, epoch_ended, run_ends))
        evaluated = [row["step"] for row in read_rows(self.run.metrics_file) if "val_loss" in row]
        if step % 2 == 0 or run_ends:
            assert evaluated[-1] == step
        after_step(self, trainer, module, epoch_ended=epoch_ended, run_ends=run_ends)

    monkeypatch.setattr(Summary, "after_step", record)
    return called


STOPPING = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val_loss, stopping_threshold: 99}}]"


@pytest.mark.parametrize(
    ("settings", "last", "epoch_ends"),
    [
        # 5 batches an epoch, 3 epochs, an evaluation every 2 steps
        ([], 15, [5, 10, 15]),
        (["--trainer.accumulate_grad_batches=2"], 9, [3, 6, 9]),
        (["--trainer.accumulate_grad_batches=3"], 6, [2, 4, 6]),
        (["--trainer.max_steps=3"], 3, []),
        (["--trainer.max_steps=5"], 5, [5]),
        (["--trainer.max_steps=6"], 6, [5]),
        ([STOPPING], 2, []),
        (["--early_stopping_patience=1", "--model.learning_rate=1e-30"], 4, []),
    ],
)
def test_every_optimizer_step_ends_once_after_its_evaluation(
    command: Command,
    config: Path,
    steps: list[tuple[int, bool, bool]],
    settings: list[str],
    last: int,
    epoch_ends: list[int],
) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", *settings)

    assert result.code == 0, result.err
    assert steps == [(step, step in epoch_ends, step == last) for step in range(1, last + 1)]


@pytest.mark.parametrize("stops", [[2], [3], [5], [2, 3, 5, 6, 10]])
def test_a_resumed_run_ends_each_step_once(
    command: Command, config: Path, steps: list[tuple[int, bool, bool]], stops: list[int]
) -> None:
    """Stop after an evaluation, between two evaluations, and at the end of an epoch."""
    for step in [*stops, 15]:
        command("fit", "--config", config, "--run_dir", "run", "--resume", f"--trainer.max_steps={step}")

    assert [step for step, _, _ in steps] == list(range(1, 16))
    assert [step for step, _, run_ends in steps if run_ends] == [*stops, 15]


def test_a_sample_comes_after_the_evaluation_of_its_step(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--sample_every=2", "--trainer.max_steps=4")

    lines = [line for line in result.out.splitlines() if line.startswith(("Ep ", "Every effort"))]
    assert [line[:6] for line in lines] == ["Ep 1 (", "Every ", "Ep 1 (", "Every "]
