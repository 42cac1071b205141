"""The estimates of `check`, compared with what `fit` does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]


def test_check_predicts_what_fit_does(command: Command, config: Path) -> None:
    checked = command("check", "--config", config)
    assert checked.code == 0, checked.err
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.yaml"]
    fitted = command("fit", "--config", config, "--run_dir", "run")

    common = ("text ", "split ", "windows ", "batches ", "baselines ", "model ", "device ")
    assert [line for line in checked.out.splitlines() if line.startswith(common)] == fitted.out.splitlines()[:7]
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    untrained, last = rows[0], rows[-1]
    assert (
        f"untrained   Train loss {untrained['train_eval_loss']:.3f}, Val loss {untrained['val_loss']:.3f}"
        in checked.out
    )
    assert f"run         {last['step']} optimizer steps of " in checked.out
    assert f"tokens      {last['tokens_seen']:,} to train on in the whole run, " in checked.out
    assert "begins      'The lamp stood far out" in checked.out
    assert "inputs      'T', 'h', 'e', ' ', " in checked.out
    assert "targets     'h', 'e', ' ', " in checked.out
    evaluations = len([row for row in rows if "val_loss" in row])  # the estimate leaves out the last step's
    assert f", {evaluations - 1} evaluations of " in checked.out


@pytest.mark.slow
def test_parts_of_the_memory_estimate_add_up(command: Command, config: Path) -> None:
    out = command("check", "--config", config, "--model.emb_dim=512", "--model.n_layers=4").out

    found = re.search(r"memory      ([\d.]+) GB: ([\d.]+) (MB|GB) each .* moments, ([\d.]+) GB for", out)
    assert found
    weights = 2 * 257 * 512 + 64 * 512 + 4 * (12 * 512**2 + 10 * 512) + 2 * 512
    each = float(found[2]) / (1000 if found[3] == "MB" else 1)
    assert each == pytest.approx(4 * weights / 1e9, rel=0.02)
    assert float(found[1]) == pytest.approx(4 * each + float(found[4]), abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "problem     1"),  # tokens per parameter, as 18,413 / 12,448
        (["--evaluate_every=16"], "problem     evaluate_every (16) is more than the run's 15 steps"),
        (["--model.init=gpt2", "--model.emb_dim=256"], "untrained   Train loss 5.5"),
        (["--sampling.top_k=3"], "no effect   sampling.top_k: sampling.temperature 0 "),
        (["--early_stopping_patience=9"], "no effect   early_stopping_patience (9): the run has only 7 evaluations"),
        (["--save_every=99"], "no effect   save_every (99): the run has only 15 steps"),
        (["--model.weight_decay=0", "--model.decay_matrices_only=true"], "no effect   model.decay_matrices_only: "),
        (["--model.min_learning_rate=0.01"], "no effect   model.min_learning_rate: it equals model.learning_rate"),
        (["--model.sampled_softmax=257"], "no effect   model.sampled_softmax (257): the vocabulary has 257 tokens"),
        (["--trainer.gradient_clip_val=0"], "no effect   trainer.gradient_clip_val: 0 turns clipping off"),
    ],
)
def test_problems_and_settings_without_effect_are_reported(
    command: Command, config: Path, arguments: list[str], line: str
) -> None:
    result = command("check", "--config", config, *arguments)

    assert result.code == 0, result.err
    assert any(one.startswith(line) for one in result.out.splitlines()) == (arguments != [])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--resume"], "check estimates new runs only; leave --resume out"),
        (["--data.text=missing.txt"], "missing.txt: no such file"),
        (["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"], "check needs a run of known length; "),
        (["--model.warmup_steps=99"], "model.warmup_steps (99) must be below the run's 15 steps"),
    ],
)
def test_check_refuses_what_fit_refuses(command: Command, config: Path, arguments: list[str], error: str) -> None:
    result = command("check", "--config", config, *arguments)

    assert result.code == 2
    assert result.error.startswith(error)


def test_a_diverging_probe_gives_advice_with_its_numbers(command: Command, config: Path) -> None:
    result = command("check", "--config", config, "--model.learning_rate=1e30")

    what = "non-finite gradient at step 2; the weights were not changed; expect fit to fail, too"
    numbers = r"the training loss was 5\.\d{3} before, with model.learning_rate 1e\+30"
    advice = "try a lower model.learning_rate, more model.warmup_steps or trainer.gradient_clip_val"
    assert result.code == 3
    assert re.fullmatch(f"{what}; {numbers}; {advice}", result.error)


def test_a_non_finite_untrained_loss_gives_no_advice(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"train_eval_loss": math.nan, "val_loss": math.inf}
    monkeypatch.setattr(GPTModule, "on_validation_epoch_end", lambda self: setattr(self, "evaluated", losses))

    checked, fitted = command("check", "--config", config), command("fit", "--config", config)

    what = "non-finite loss in the evaluation at step 0 (Train loss nan, Val loss inf)"
    assert (checked.code, checked.error) == (3, f"{what}; expect fit to fail, too")
    assert (fitted.code, fitted.error) == (3, f"{what}; no checkpoint was saved")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("loss", "non-finite gradient at step 1; the weights were not changed"),
        ("train_loss", "non-finite training loss (nan) at step 1"),  # as with a gradient scaler, which skips the step
    ],
)
def test_a_first_step_that_is_not_finite_gives_no_advice(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    step = GPTModule.training_step

    def spoil(self: GPTModule, *arguments: Any) -> Any:
        losses = step(self, *arguments)
        return losses | {name: losses[name] * math.nan}

    monkeypatch.setattr(GPTModule, "training_step", spoil)

    result = command("check", "--config", config)

    assert (result.code, result.error) == (3, f"{what}; expect fit to fail, too")
