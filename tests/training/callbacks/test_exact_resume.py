from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import assert_equal_weights, rows_without_times
from conftest import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_lightning.files import read_rows
from gpt_lightning.training.callbacks.exact_resume import get_rng_states, set_rng_states
from gpt_lightning.training.optimizers import learning_rate_factor

Command = Callable[..., Result]


def test_random_states_are_restored_from_a_file(tmp_path: Path) -> None:

    import numpy as np

    torch.save(get_rng_states(), tmp_path / "states")
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist())

    set_rng_states(torch.load(tmp_path / "states", weights_only=True))

    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == expected


@pytest.mark.parametrize("stops", [[5], [1, 2, 4, 5, 6, 9, 10, 14]])
def test_a_run_stopped_and_resumed_equals_an_uninterrupted_run(
    command: Command, config: Path, trained: Path, stops: list[int]
) -> None:
    for number, step in enumerate([*stops, -1]):
        arguments = ["--resume"] if number else []
        result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps", step, *arguments)
        assert result.code == 0, result.err

    whole = torch.load(trained / "checkpoints/last.ckpt")
    pieces = torch.load("run/checkpoints/last.ckpt")
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(pieces["state_dict"][key], tensor)
    train_rows = [line for line in rows_without_times("run") if "train_loss" in line]
    assert train_rows == [line for line in rows_without_times(trained) if "train_loss" in line]
    assert pieces["gpt_lightning"]["progress"] == whole["gpt_lightning"]["progress"]


def test_a_resumed_run_keeps_its_accumulation_schedule(command: Command, config: Path) -> None:
    schedule = "--trainer.callbacks=[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}]"
    command("fit", "--config", config, "--run_dir", "whole", schedule, "--trainer.max_epochs=2")
    for steps in (4, 5, 6, 7, 8):  # of 5 in the first epoch and 3 in the second
        command("fit", "--config", config, "--run_dir", "run", "--resume", schedule, f"--trainer.max_steps={steps}")

    assert [row["step"] for row in read_rows(Path("whole/metrics.jsonl")) if "train_loss" in row] == list(range(1, 9))
    assert_equal_weights(Path("whole"), Path("run"))


@pytest.mark.parametrize("steps", [2, 3])
def test_lightnings_monitors_log_at_the_right_steps_after_a_resume(command: Command, config: Path, steps: int) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--evaluate_every=3", "--save_every=1")
    monitor = "--trainer.callbacks=[{class_path: LearningRateMonitor, init_args: {logging_interval: step}}]"
    command(*arguments, f"--trainer.max_steps={steps + 1}")
    os.replace("run/checkpoints/prev.ckpt", "run/checkpoints/last.ckpt")  # saved after a batch, or an evaluation

    command(*arguments, monitor, "--resume", "--trainer.max_epochs=2")

    rates = EventAccumulator("run").Reload().Scalars("lr-AdamW")
    assert [one.step for one in rates] == list(range(steps, 10))


def test_a_run_resumed_with_more_epochs_follows_the_longer_schedule(command: Command, config: Path) -> None:
    schedule = ("--model.warmup_steps=2", "--model.min_learning_rate=0.001")
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", *schedule)
    result = command("fit", "--config", config, "--run_dir", "run", "--resume", *schedule)

    rates = [row["learning_rate"] for row in read_rows(Path("run/metrics.jsonl")) if "learning_rate" in row]
    expected = [0.01 * learning_rate_factor(step, 2, 5 if step < 5 else 15, 0.1) for step in range(15)]
    assert result.code == 0
    assert rates == pytest.approx(expected, rel=1e-12)
