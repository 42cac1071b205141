"""The Python API returns the same results as the commands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import STORY, Result
from torch.nn import functional as F

import gpt_lightning
from gpt_lightning.api import train
from gpt_lightning.errors import InputError
from gpt_lightning.inference.pretrained import load

Command = Callable[..., Result]


def test_complete_returns_what_predict_prints(command: Command, trained: Path) -> None:
    checkpoint = trained / "checkpoints/best.ckpt"

    completion = load(checkpoint).complete("The", max_new_tokens=9, temperature=1.0, top_k=5, seed=7)

    options = ("--sampling.max_new_tokens=9", "--sampling.temperature=1", "--sampling.top_k=5", "--sampling.seed=7")
    assert "The" + completion + "\n" == command("predict", "--ckpt_path", checkpoint, "--prompt=The", *options).out


def test_the_loss_is_the_mean_over_all_tokens_but_the_first(trained: Path) -> None:
    gpt = load(trained / "checkpoints/best.ckpt")
    text = STORY.read_text()[:150]  # two windows of 64 tokens and one of 21

    token_ids = torch.tensor(list(text.encode()))
    total = 0.0
    with torch.no_grad():
        for start, end in ((0, 64), (64, 128), (128, 149)):
            log_probs = F.log_softmax(gpt.model(token_ids[None, start:end])[0], dim=-1)
            total -= log_probs[torch.arange(end - start), token_ids[start + 1 : end + 1]].double().sum().item()
    assert gpt.loss(text) == pytest.approx(total / 149, rel=1e-6)
    assert not math.isclose(gpt.loss(text), gpt.loss(text.upper()))


def test_train_returns_the_run_folder(config: Path) -> None:
    run = train(config, "--trainer.max_steps=2", "--trainer.enable_progress_bar=false")

    assert run == Path("runs/tiny/1").absolute()
    assert load(run / "checkpoints/last.ckpt").model.context_length == 64
    assert train(config, "--trainer.max_steps=3", "--resume") == run
    assert train(config, "--trainer.max_steps=3", "--resume", f"--run_dir={run}") == run  # finished


def test_train_uses_one_process(config: Path) -> None:
    with pytest.raises(InputError, match=r"train\(\) uses one process, the settings ask for 2; use the command line: "):
        train(config, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu")

    assert not Path("runs").exists()


def test_the_package_offers_the_interface_when_it_is_used() -> None:
    assert gpt_lightning.load is load
    assert gpt_lightning.train is train
    with pytest.raises(AttributeError, match="module 'gpt_lightning' has no attribute 'lod'"):
        gpt_lightning.lod  # noqa: B018


def test_invalid_arguments_raise_input_errors(config: Path, trained: Path) -> None:
    gpt = load(trained / "checkpoints/best.ckpt")

    with pytest.raises(
        InputError, match="unknown setting 'topk'; sampling has max_new_tokens, min_new_tokens, temperature"
    ):
        gpt.complete("The", topk=3)
    with pytest.raises(InputError, match="sampling.top_k must be an int from 1 to 257, got 0"):
        gpt.complete("The", top_k=0)
    with pytest.raises(InputError, match="the loss of a text needs at least 2 tokens, got 1"):
        gpt.loss("T")
    with pytest.raises(InputError, match="nope.ckpt: no such file"):
        load("nope.ckpt")
    with pytest.raises(InputError, match="model.n_layers must be an int of at least 1, got 0"):
        train(config, "--model.n_layers=0")
