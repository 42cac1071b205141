from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Result
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.training.assembly import logged_settings
from gpt_lightning.training.callbacks.exact_resume import ExactResume
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]


def test_a_run_prints_its_data_model_and_results(trained: Path, command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run")

    lines = result.out.splitlines()
    assert lines[:3] == [
        "text        the-lamp-at-low-water.txt: 20,459 characters, 20,459 tokens (bytes, 257 in the vocabulary)",
        "split       18,413 / 2,046 characters, 18,413 / 2,046 tokens for training / validation",
        "windows     287 + 31 of 64 tokens, stride 64; 44 + 61 trailing tokens are unused",
    ]
    assert lines[3].startswith("batches     5 + 1 of 56 windows; 5 optimizer steps per epoch, 7 windows per epoch left")
    assert lines[4].startswith("baselines   trigram 1.616, bigram 2.183, unigram 2.987 (validation loss of counting")
    assert lines[5].startswith("model       12,512 parameters: 1 layer, 2 heads, width 16, context 64, untied head")
    assert lines[6].startswith(
        "device      cpu (as set by trainer.accelerator), precision 32-true (as the settings say), "
    )
    assert lines[7].startswith("run folder  run; checkpoints take 350.3 kB when done, up to 500.5 kB while it runs")
    untrained = r"Untrained \(Step 000000\): Train loss \d\.\d{3}, Val loss \d\.\d{3}; uniform baseline: ln 257 = 5.549"
    assert re.fullmatch(untrained, lines[8])
    assert re.fullmatch(r"Training completed in \d+\.\d\d minutes\.", lines[-8])
    assert re.match(
        r"53,760 tokens seen, [\d,]+ tokens per second in the training steps \(utilization of the peak rate n/a\), \d",
        lines[-7],
    )
    assert [one[:12].strip() for one in lines[-6:-2]] == ["verdict", "", "", "advice"]
    assert re.match(r"best.ckpt is of step 15 \(Val loss \d\.\d{3}\), last.ckpt of step 15. To sample:", lines[-2])
    assert lines[-1] == (
        '  python -m gpt_lightning predict --ckpt_path run/checkpoints/best.ckpt --prompt "Every effort"'
    )
    assert "training: 100%" in result.err
    assert "15/15" in result.err


def test_callbacks_are_in_the_order_of_their_dependencies(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def record(self: ExactResume, trainer: Trainer, *_: Any) -> None:
        names.extend(type(callback).__name__ for callback in trainer.callbacks)  # type: ignore[attr-defined]

    monkeypatch.setattr(ExactResume, "on_train_start", record)
    users = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    arguments = ("--trainer.max_steps=1", "--early_stopping_patience=3")
    command("fit", "--config", config, "--run_dir", "run", users, *arguments)

    expected = ["Progress", "Metrics", "StepBar", "EMAWeightAveraging", "FoundRate", "EarlyStop", "Evaluation"]
    assert names == [*expected, "Summary", "Samples", "StopOnSignal", "ExactResume", "Checkpointing"]


def test_a_run_folder_that_disappears_is_named(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, batches = Progress.on_train_batch_start, iter(range(1000))

    def move_the_folder(self: Progress, *arguments: Any) -> None:
        start(self, *arguments)
        if next(batches) == 3:
            Path("run").rename("moved")  # deleting it would race with TensorBoard's thread, which writes there

    monkeypatch.setattr(Progress, "on_train_batch_start", move_the_folder)

    result = command("fit", "--config", config, "--run_dir", "run", "--save_every=2")

    assert result.code == 1
    assert result.error == "run: the run folder was deleted or moved; what was trained after step 2 is lost"


def test_tensorboard_takes_the_name_of_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    module = SimpleNamespace(hparams={"n_layers": 1})
    data = SimpleNamespace(hparams={"text": "caf\udce9.txt", "url": None})

    settings = logged_settings(cast(GPTModule, module), cast(TextDataModule, data))

    assert settings == {"n_layers": 1, "text": r"caf\udce9.txt", "url": None}
    TensorBoardLogger(str(tmp_path)).log_hyperparams(settings, {"loss": 1.0})  # a name with a surrogate is an error
    with pytest.raises(UnicodeEncodeError):
        TensorBoardLogger(str(tmp_path / "other")).log_hyperparams(data.hparams, {"loss": 1.0})
