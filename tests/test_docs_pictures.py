"""The picture of a run's output; TensorBoard's needs a browser and is not tested."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT
from scripts import load_script

PICTURES = load_script("make_pictures")
HEADER = ["text        story.txt: <3 & more", "Untrained (Step 000000): Train loss 10.999, Val loss 10.981"]
EPOCHS = [
    [f"Ep {epoch} (Step {2 * epoch:06d}): Train loss 1.000, Val loss 2.000", f"Every   effort\x07 {epoch}", "x" * 500]
    for epoch in range(1, 12)
]
SUMMARY = ["Training completed in 8.09 minutes.", "best.ckpt is of step 50"]


def log(epochs: list[list[str]]) -> list[str]:
    return [*HEADER, *(line for epoch in epochs for line in epoch), *SUMMARY]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (EPOCHS, [*EPOCHS[:2], ["..."], EPOCHS[-1]]),
        (EPOCHS[:4], [*EPOCHS[:2], ["..."], EPOCHS[3]]),
        (EPOCHS[:3], EPOCHS[:3]),
        ([], []),
    ],
)
def test_the_first_two_epochs_and_the_last_are_shown(printed: list[list[str]], expected: list[list[str]]) -> None:
    assert PICTURES.shorten("\n".join(log(printed))) == log(expected)


def test_the_picture_is_text_without_addresses(tmp_path: Path) -> None:
    PICTURES.draw_terminal("python -m gpt_lightning fit", "\n".join(log(EPOCHS[:1])), tmp_path)

    for name in ("run-light.svg", "run-dark.svg"):
        svg = (tmp_path / name).read_text(encoding="utf-8")
        lines = [
            "".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        ]
        assert lines == [
            "$ python -m gpt_lightning fit",
            *HEADER,
            EPOCHS[0][0],
            "Every   effort  1",
            "x" * (PICTURES.COLUMNS - 1) + "…",
            *SUMMARY,
        ]
        assert svg.count("http") == 1  # the name space


def test_the_committed_pictures_are_of_the_committed_output(tmp_path: Path) -> None:
    command = "python -m gpt_lightning fit --config configs/verdict.yaml --trainer.precision 32-true"

    PICTURES.draw_terminal(command, (ROOT / "docs" / "verdict.txt").read_text(), tmp_path)

    for name in ("run-light.svg", "run-dark.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / name).read_bytes()
