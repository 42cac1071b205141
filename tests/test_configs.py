"""Every shipped config is a whole run, and its header is its manual."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Result

Command = Callable[..., Result]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert [path.stem for path in CONFIGS] == ["debug", "verdict"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_is_a_manual(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))

    assert f"python -m gpt_lightning fit --config configs/{path.name}" in header
    for word in ("Text:", "What to expect:", "One override:"):
        assert word in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_a_step_at_a_small_size(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    small = ["--model.emb_dim=12", "--model.n_layers=1", "--model.warmup_steps=0", "--trainer.max_steps=1"]
    offline = ["--data.address=null"] if "address" in path.read_text() else []

    result = command("fit", "--config", path, "--run_dir", tmp_path / "run", *small, *offline)

    assert result.code == 0, result.err
    assert "Ep 1 (Step 000001): " in result.out


def test_debug_does_what_its_header_says(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    result = command("fit", "--config", "configs/debug.yaml", "--run_dir", tmp_path / "run")

    assert result.code == 0
    assert "batches     35 + 4 of 8 windows; 18 optimizer steps per epoch" in result.out
    losses = [float(loss) for loss in re.findall(r"Val loss (\d+\.\d+)", result.out)]
    assert losses[0] == pytest.approx(5.75, abs=0.1)
    assert losses[-2] == pytest.approx(2.2, abs=0.1)  # the last is repeated in the closing words
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*"))
    assert 5e6 < size < 7e6
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 108


def test_verdict_has_the_documents_settings() -> None:
    config = yaml.safe_load((ROOT / "configs" / "verdict.yaml").read_text())

    assert config["model"] == {
        "vocab_size": None,
        "context_length": 256,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
        "tie_weights": False,
        "init": "book",
        "learning_rate": 4e-4,
        "weight_decay": 0.1,
    }
    assert config["data"]["train_ratio"] == 0.9
    assert config["data"]["batch_size"] == 2
    assert config["trainer"] == {"accelerator": "auto", "precision": "32-true", "max_epochs": 10}
    assert (config["seed_everything"], config["evaluate_every"], config["evaluate_batches"]) == (123, 5, 5)
    assert config["prompt"] == ["Every effort moves you"]
    assert config["sampling"] == {"max_new_tokens": 50, "temperature": 0.0, "top_k": None}


def test_the_own_story_is_as_described() -> None:
    story = (ROOT / "data" / "the-lamp-at-low-water.txt").read_text()

    assert 20_000 <= len(story) <= 21_000
    assert story.isascii()
    assert story[: int(0.9 * len(story))].count("Every effort moves you") >= 2
