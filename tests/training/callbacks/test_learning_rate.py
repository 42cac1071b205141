from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.files import read_rows
from gpt_lightning.training.optimizers import learning_rate_factor

Command = Callable[..., Result]


FINDER = (
    "--trainer.callbacks=[{class_path: LearningRateFinder, init_args: {num_training_steps: 14, min_lr: 1e-4}}]",
    "--model.warmup_steps=2",
    "--model.min_learning_rate=1e-5",
)


def test_a_resumed_run_keeps_the_learning_rate_that_was_found(command: Command, config: Path) -> None:
    whole = command("fit", "--config", config, "--run_dir", "whole", *FINDER)
    first = command("fit", "--config", config, "--run_dir", "pieces", *FINDER, "--trainer.max_steps=7")
    second = command("fit", "--config", config, "--run_dir", "pieces", *FINDER, "--resume")

    assert (whole.code, first.code, second.code) == (0, 0, 0), whole.err + first.err + second.err
    rate = read_checkpoint("whole/checkpoints/last.ckpt")["hyper_parameters"]["learning_rate"]
    assert f"learning rate {rate:.3g} found by LearningRateFinder; {rate:.3g} is used\n" in whole.out
    assert "found by" not in second.out
    rates = [row["learning_rate"] for row in read_rows(Path("whole/metrics.jsonl")) if "learning_rate" in row]
    expected = [rate * learning_rate_factor(step, 2, 15, 1e-5 / rate) for step in range(15)]
    assert rates == pytest.approx(expected, rel=1e-12)
    resumed = torch.load("pieces/checkpoints/last.ckpt")
    assert resumed["hyper_parameters"]["learning_rate"] == rate
    refused = command(
        "fit", "--config", config, "--run_dir", "pieces", *FINDER, "--resume", "--model.learning_rate=0.5"
    )
    assert f"has model.learning_rate {rate}, the settings say 0.5" in refused.error
    assert sorted(os.listdir()) == ["pieces", "tiny.yaml", "whole"]


def test_check_does_not_run_the_learning_rate_finder(command: Command, config: Path) -> None:
    result = command("check", "--config", config, *FINDER)

    assert (result.code, os.listdir()) == (0, ["tiny.yaml"]), result.err
