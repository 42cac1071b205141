from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import lightning
import pytest
import torch
from conftest import STORY, Result
from lightning.pytorch import Trainer

from gpt_lightning.console import format_bytes, labeled
from gpt_lightning.training.summary import describe_device, predict_command

Command = Callable[..., Result]


@pytest.mark.parametrize(
    ("folder", "prompt"), [("runs/a", "Every effort"), ("a b/\u00fc", "it's"), ("x", '"$HOME" `ls` \\ !')]
)
def test_the_printed_predict_command_is_quoted_for_the_shell(folder: str, prompt: str) -> None:
    words = shlex.split(predict_command(f"{folder}/best.ckpt", prompt))

    assert words == [
        "python",
        "-m",
        "gpt_lightning",
        "predict",
        "--ckpt_path",
        f"{folder}/best.ckpt",
        "--prompt",
        prompt,
    ]


@pytest.mark.parametrize(
    ("asked", "device", "line"),
    [
        ("auto", "cuda", "device      cuda (found on this machine), precision bf16-mixed (it is fast)"),
        (
            "auto",
            "mps",
            "device      mps (found on this machine), precision bf16-mixed (it is fast); the reference "
            "notes report issues with training on MPS; --trainer.accelerator cpu trains on the CPU",
        ),
        ("cpu", "cpu", "device      cpu (as set by trainer.accelerator), precision bf16-mixed (it is fast), 1 thread"),
        ("auto", "cpu", "device      cpu (no CUDA or MPS device found), precision bf16-mixed (it is fast), 1 thread"),
    ],
)
def test_the_device_is_described_with_reasons(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, line: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy, world_size=1, precision="bf16-mixed")

    assert labeled("device", describe_device(cast(Trainer, trainer), asked, "it is fast")) == line


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_accelerator_auto_chooses_the_available_device(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, chosen: str
) -> None:
    """Check Lightning's choice on machines with CUDA, MPS or neither."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    for library in (lightning.fabric, lightning.pytorch):
        monkeypatch.setattr(library.accelerators.MPSAccelerator, "is_available", lambda: bool(mps))

    trainer = Trainer(accelerator="auto", logger=False, enable_checkpointing=False)

    assert trainer.strategy.root_device.type == chosen


def test_sizes_are_shown_in_decimal_units() -> None:
    assert format_bytes(2_598_715_392) == "2.6 GB"
    assert format_bytes(6_245_376) == "6.2 MB"
    assert format_bytes(437_600_000) == "437.6 MB"


def test_a_text_found_elsewhere_is_shown_with_its_folder(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_LIGHTNING_DATA", str(STORY.parent))

    result = command("fit", "--config", config, "--data.text", STORY.name, "--trainer.max_steps=1")

    assert f"text        {STORY.name} (in {STORY.parent}): 20,459 characters" in result.out
