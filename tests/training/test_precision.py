"""`trainer.precision: auto` in `fit`, when resuming, and in `validate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Result, tiny_settings

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.cli import lightning_cli

Command = Callable[..., Result]
BF16 = ("bf16-mixed", "it is fast here")
FP32 = ("32-true", "it is not")


@pytest.fixture
def auto(in_tmp: Path) -> Path:
    """Write `tiny_settings` for one step, without a precision."""
    settings = tiny_settings()
    del settings["trainer"]["precision"]
    settings["trainer"]["max_steps"] = 1
    path = in_tmp / "auto.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, str]], None]:
    """Return a function that sets the precision that `auto` chooses from then on."""

    def become(choice: tuple[str, str]) -> None:
        monkeypatch.setattr(lightning_cli, "choose_precision", lambda *_, **__: choice)

    return become


@pytest.mark.parametrize(
    ("arguments", "precision", "reason"),
    [
        ([], "bf16-mixed", "it is fast here"),
        (["--trainer.precision=auto"], "bf16-mixed", "it is fast here"),
        (["--trainer.precision=32-true"], "32-true", "as the settings say"),
        (["--trainer.precision=64-true"], "64-true", "as the settings say"),
    ],
)
def test_a_run_trains_in_the_chosen_precision_and_prints_the_reason(
    command: Command, auto: Path, machine: Any, arguments: list[str], precision: str, reason: str
) -> None:
    machine(BF16)
    result = command("fit", "--config", auto, "--run_dir", "run", *arguments)

    assert result.code == 0, result.err
    assert f"precision {precision} ({reason})" in result.out
    assert read_checkpoint("run/checkpoints/last.ckpt")["gpt_lightning"]["fit"]["trainer.precision"] == precision
    assert yaml.safe_load(Path("run/auto.yaml").read_text())["trainer"]["precision"] == precision


def test_a_resumed_run_keeps_its_precision(command: Command, auto: Path, machine: Any) -> None:
    machine(BF16)
    fit = ("fit", "--config", auto, "--run_dir", "run", "--resume")
    command(*fit)
    machine(FP32)
    resumed = command(*fit, "--trainer.max_steps=2")
    refused = command(*fit, "--trainer.max_steps=3", "--trainer.precision=32-true")

    assert "precision bf16-mixed (as the run began)" in resumed.out
    assert refused.code == 2
    assert refused.error.endswith("last.ckpt has trainer.precision bf16-mixed, the settings say 32-true")


def test_a_checkpoint_is_evaluated_in_float32_on_every_machine(command: Command, auto: Path, machine: Any) -> None:
    machine(BF16)
    command("fit", "--config", auto, "--run_dir", "run")
    validate = ("validate", "--ckpt_path", "run/checkpoints/best.ckpt")
    results = [command(*validate)]
    machine(FP32)
    results += [command(*validate), command(*validate, "--trainer.precision=bf16-mixed")]

    assert [result.code for result in results] == [0, 0, 0]
    assert results[0].out == results[1].out != results[2].out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--trainer.precision=bf61"], "trainer.precision must be one of auto, 32-true, "),
        (
            ["--trainer.precision=16-mixed"],
            "trainer.precision 16-mixed does not run on cpu; use bf16-mixed or 32-true",
        ),
    ],
)
def test_invalid_precisions_are_refused(command: Command, auto: Path, arguments: list[str], error: str) -> None:
    result = command("fit", "--config", auto, *arguments)

    assert result.code == 2
    assert result.error.startswith(error)
    assert not Path("runs").exists()


def test_auto_in_yaml_does_not_override_the_checkpoints_precision(command: Command, config: Path, machine: Any) -> None:
    machine(BF16)
    command("fit", "--config", config, "--run_dir", "run", "--trainer.precision=64-true", "--trainer.max_steps=1")
    Path("auto.yaml").write_text("trainer: {precision: auto}\n")
    validate = ("validate", "--ckpt_path", "run/checkpoints/best.ckpt")

    assert command(*validate, "--config", "auto.yaml").out == command(*validate).out
