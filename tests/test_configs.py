"""Every config trains, and its header documents it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, STORY, Result

from gpt_lightning.models.config import GPTConfig
from gpt_lightning.runs.records import read_evaluations
from gpt_lightning.training.config import ExpectedConfig

Command = Callable[..., Result]
ALL = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = [path for path in ALL if path.stem.startswith("gpt2_")]
CONFIGS = [path for path in ALL if path not in OVERLAYS]
# Configs whose text the user provides.
USER_TEXTS = ("own_text", "world_war")


def test_the_configs_are_complete() -> None:
    names = ["classroom", "debug", "finetune_gpt2", "own_text", "verdict", "verdict_small", "wikitext2", "world_war"]
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_an_overlay_has_the_sizes_of_a_published_gpt2(name: str, parameters: int) -> None:
    (overlay,) = [path for path in OVERLAYS if path.stem == f"gpt2_{name}"]
    sizes = yaml.safe_load(overlay.read_text())["model"]

    config = GPTConfig(50257, 1024, qkv_bias=True, tie_weights=True, **sizes)

    assert config.num_parameters == parameters


@pytest.mark.parametrize("name", USER_TEXTS)
def test_a_missing_user_text_is_reported(command: Command, in_tmp: Path, name: str) -> None:
    result = command("fit", "--config", ROOT / "configs" / f"{name}.yaml")

    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert (result.code, result.error) == (2, f"{config['data']['text']}: no such file")
    assert os.listdir() == []


def test_wikitext2_names_the_extra_that_it_needs(
    command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    result = command("fit", "--config", ROOT / "configs" / "wikitext2.yaml")

    name = "hf:Salesforce/wikitext/wikitext-2-raw-v1/train"
    extra = "needs the extra datasets: pip install -c constraints.txt -e '.[datasets]'"
    assert (result.code, result.error) == (2, f"{name}: {extra}")
    assert os.listdir() == []


def test_world_war_has_the_settings_of_note_b() -> None:
    config = yaml.safe_load((ROOT / "configs" / "world_war.yaml").read_text())

    assert (config["data"]["train_ratio"], config["data"]["clean"]) == (0.8, "remove_empty_lines")
    assert (config["model"]["context_length"], config["data"]["batch_size"]) == (128, 2)
    assert (config["prompt"], config["sampling"]["max_new_tokens"]) == (["at the start of"], 20)
    assert (config["evaluate_every"], config["evaluate_batches"], config["trainer"]["max_epochs"]) == (10, 5, 10)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_documents_the_config(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))

    assert f"python -m gpt_lightning fit --config configs/{path.name}" in header
    for word in ("Text:", "What to expect:", "One override:"):
        assert word in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_one_step_of_a_small_model(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    small = ["--model.emb_dim=12", "--model.n_layers=1", "--model.warmup_steps=0"]
    small += ["--model.n_heads=4", "--trainer.max_steps=1"]
    if path.stem in USER_TEXTS:
        small.append(f"--data.text={STORY}")
    elif path.stem == "wikitext2":
        small += [f"--data.text={STORY}", f"--data.val_text={STORY}", "--data.test_text=null"]
    elif "url:" in path.read_text():
        small.append("--data.url=null")
    if path.stem != "wikitext2":  # it has a text for each split
        small.append("--data.train_ratio=0.8")
    if path.stem == "finetune_gpt2":  # needs weights; test_readme.py runs it with them
        small.append("--init_from=null")

    result = command("fit", "--config", path, "--run_dir", tmp_path / "run", *small)

    assert result.code == 0, result.err
    assert "Ep 1 (Step 000001): " in result.out


def test_debug_matches_its_header(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    result = command("fit", "--config", "configs/debug.yaml", "--run_dir", tmp_path / "run")

    assert result.code == 0
    assert "batches     35 + 4 of 8 windows; 18 optimizer steps per epoch" in result.out
    losses = [float(loss) for loss in re.findall(r"Val loss (\d+\.\d+)", result.out)]
    assert losses[0] == pytest.approx(5.75, abs=0.1)
    assert losses[-2] == pytest.approx(2.2, abs=0.1)  # the last one is repeated in the summary
    files = (tmp_path / "run").rglob("*")
    size = sum(path.stat().st_size for path in files if path.name != "prev.ckpt")  # only runs above a minute have one
    assert 5e6 < size < 7e6
    assert "\n            losses as expected of this config\n" in result.out
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 108


@pytest.mark.parametrize(
    ("name", "steps"), [("verdict", 10 * 9), ("verdict_small", 45 * 9), ("classroom", 36 * 18), ("debug", 6 * 18)]
)
def test_what_a_config_expects_is_of_its_own_text_and_size(name: str, steps: int) -> None:
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    expected = ExpectedConfig(**config["expected"])

    settings = config["model"] | {"vocab_size": 257 if name == "debug" else 50257}
    model = GPTConfig(**{one.name: settings[one.name] for one in fields(GPTConfig) if one.name in settings})
    url = config["data"].get("url", f"#sha256={hashlib.sha256(STORY.read_bytes()).hexdigest()}")
    assert expected.applies_to(url.partition("#sha256=")[2], steps, model.num_parameters)
    assert list(expected.ranges) == ["untrained_val_loss", "best_val_loss", "last_train_eval_loss"]


def test_verdict_expects_the_losses_of_the_documents() -> None:
    """Of the shown run, of the reference notes' table, and of the book's loop on a CPU (6.130 and 0.356)."""
    ranges = yaml.safe_load((ROOT / "configs" / "verdict.yaml").read_text())["expected"]
    shown = (ROOT / "docs" / "verdict.txt").read_text()
    losses = [(float(one), float(other)) for one, other in re.findall(r"Train loss (\S+), Val loss ([\d.]+)", shown)]
    notes = read_evaluations(ROOT / "configs" / "reference" / "verdict.jsonl")

    best = [min(val for _, val in losses), min(row.val_loss for row in notes), 6.130]
    last = [losses[-1][0], notes[-1].train_eval_loss, 0.356]
    for name, values in (
        ("untrained_val_loss", [losses[0][1]]),
        ("best_val_loss", best),
        ("last_train_eval_loss", last),
    ):
        low, high = ranges[name]
        assert all(low < value < high for value in values)


def test_verdict_has_the_settings_of_note_a() -> None:
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
    assert config["trainer"] == {"accelerator": "auto", "precision": "auto", "max_epochs": 10}
    assert (config["seed_everything"], config["evaluate_every"], config["evaluate_batches"]) == (123, 5, 5)
    assert config["prompt"] == ["Every effort moves you"]
    assert config["sampling"] == {"max_new_tokens": 50, "temperature": 0.0, "top_k": None}


def test_the_bundled_story_has_its_documented_properties() -> None:
    story = (ROOT / "data" / "the-lamp-at-low-water.txt").read_text()

    assert 20_000 <= len(story) <= 21_000
    assert story.isascii()
    assert story[: int(0.9 * len(story))].count("Every effort moves you") >= 2
