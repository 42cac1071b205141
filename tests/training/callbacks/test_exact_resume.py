from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from lightning.pytorch import Trainer

from gpt_lightning.training.callbacks.exact_resume import ExactResume

Command = Callable[..., Result]


def test_callbacks_are_in_the_order_that_they_depend_on(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def note(self: ExactResume, trainer: Trainer, *_: Any) -> None:
        names.extend(type(callback).__name__ for callback in trainer.callbacks)  # type: ignore[attr-defined]

    monkeypatch.setattr(ExactResume, "on_train_start", note)
    users = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    arguments = ("--trainer.max_steps=1", "--early_stopping_patience=3")
    command("fit", "--config", config, "--run_dir", "run", users, *arguments)

    expected = ["Progress", "Metrics", "StepBar", "EMAWeightAveraging", "FoundRate", "EarlyStop", "Evaluation"]
    assert names == [*expected, "Summary", "Samples", "StopOnSignal", "ExactResume", "Checkpointing"]
