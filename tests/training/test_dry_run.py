"""What `check` foretells, against what `fit` then does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Command = Callable[..., Result]


def test_check_says_what_fit_then_does(command: Command, config: Path) -> None:
    checked = command("check", "--config", config)
    assert checked.code == 0, checked.err
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.yaml"]
    fitted = command("fit", "--config", config, "--run_dir", "run")

    common = ("text ", "split ", "windows ", "batches ", "model ", "device ")
    assert [line for line in checked.out.splitlines() if line.startswith(common)] == fitted.out.splitlines()[:6]
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    untrained, last = rows[0], rows[-1]
    assert (
        f"untrained   Train loss {untrained['train_eval_loss']:.3f}, Val loss {untrained['val_loss']:.3f}"
        in checked.out
    )
    assert f"run         {last['step']} optimizer steps of " in checked.out
    assert f"tokens      {last['tokens_seen']:,} to train on in all" in checked.out
    assert "begins      'The lamp stood far out" in checked.out
    assert "inputs      'T', 'h', 'e', ' ', " in checked.out
    assert "targets     'h', 'e', ' ', " in checked.out
    evaluations = len([row for row in rows if "val_loss" in row])  # the run ends with one that is not in the rhythm
    assert f", {evaluations - 1} evaluations of " in checked.out


@pytest.mark.slow
def test_memory_by_kind_adds_up(command: Command, config: Path) -> None:
    out = command("check", "--config", config, "--model.emb_dim=512", "--model.n_layers=4").out

    found = re.search(r"memory      ([\d.]+) GB: ([\d.]+) (MB|GB) each .* means, ([\d.]+) GB for", out)
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
        (["--sampling.top_k=3"], "no effect   sampling.top_k: with sampling.temperature 0 "),
        (["--early_stopping_patience=9"], "no effect   early_stopping_patience (9): the run has 7 evaluations"),
        (["--save_every=99"], "no effect   save_every (99): the run has 15 steps"),
        (["--model.weight_decay=0", "--model.decay_matrices_only=true"], "no effect   model.decay_matrices_only: "),
        (["--model.min_learning_rate=0.01"], "no effect   model.min_learning_rate: it is model.learning_rate"),
        (["--trainer.gradient_clip_val=0"], "no effect   trainer.gradient_clip_val: 0 does not clip"),
    ],
)
def test_what_is_wrong_or_without_effect(command: Command, config: Path, arguments: list[str], line: str) -> None:
    result = command("check", "--config", config, *arguments)

    assert result.code == 0, result.err
    assert any(one.startswith(line) for one in result.out.splitlines()) == (arguments != [])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--resume"], "check looks at new runs; leave --resume out"),
        (["--data.text=missing.txt"], "missing.txt: no such file"),
        (["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"], "check needs an end to estimate: "),
        (["--model.warmup_steps=99"], "model.warmup_steps (99) must be below the run's 15 steps"),
    ],
)
def test_what_fit_refuses_check_refuses(command: Command, config: Path, arguments: list[str], error: str) -> None:
    result = command("check", "--config", config, *arguments)

    assert result.code == 2
    assert result.error.startswith(error)
