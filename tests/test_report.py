from __future__ import annotations

import shlex

import pytest

from gpt_lightning.report import format_bytes, predict_command


@pytest.mark.parametrize(
    ("folder", "prompt"), [("runs/a", "Every effort"), ("a b/\u00fc", "it's"), ("x", '"$HOME" `ls` \\ !')]
)
def test_the_command_that_samples_can_be_pasted(folder: str, prompt: str) -> None:
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


def test_sizes_are_shown_in_decimal_units() -> None:
    assert format_bytes(2_598_715_392) == "2.6 GB"
    assert format_bytes(6_245_376) == "6.2 MB"
