"""`explain` computes the numbers that the reference notes state; they are copied here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Command = Callable[..., Result]


def cells(line: str) -> list[str]:
    return line.split()


def row(out: str, name: str, number: int = 0) -> list[str]:
    """Return the cells after the first of the `number`th row that starts with a word."""
    return [cells(line)[1:] for line in out.splitlines() if cells(line)[:1] == [name]][number]


def test_windows_of_the_sentence_in_the_second_note(in_tmp: Path, command: Command) -> None:
    out = command("explain", "windows").out

    assert [row(out, token_id) for token_id in ("10603", "1810", "3274")] == [
        ["'World'"],
        ["'", "War'"],
        ["'", "First'"],
    ]
    for number, (name, ids) in enumerate(
        [("inputs", "10603 1810 314 393"), ("targets", "1810 314 393 262"), ("inputs", "1810 314 393 262")]
    ):
        window = 1 if number < 2 else 2
        assert row(out, str(window), number % 2)[:5] == [name, *ids.split()]
    assert row(out, "2", 1)[:5] == ["targets", "314", "393", "262", "3274"]
    assert "'World War I or'  ' the'" in out
    assert "the-verdict.txt is neither in data/ nor in the folder named by GPT_LIGHTNING_DATA" in out


def test_windows_of_the_verdict(verdict: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_LIGHTNING_DATA", str(verdict.parent))

    out = command("explain", "windows").out

    assert "20,479 characters, 5,145 tokens; 18,431 + 2,048 characters, 4,612 + 534 tokens" in out
    assert row(out, "64") == ["72", "+", "8", "36", "+", "4", "4,608", "+", "512"]
    assert row(out, "128") == ["36", "+", "4", "18", "+", "2", "4,608", "+", "512"]
    assert row(out, "256") == ["18", "+", "2", "9", "+", "1", "4,608", "+", "512"]
    assert row(out, "1024")[:3] == ["4", "+", "0"]


def test_loss(command: Command) -> None:
    out = command("explain", "loss").out

    for after, probability, logarithm in [
        ("'every'", 7.4534e-05, -9.5043),
        ("'every effort'", 3.1060e-05, -10.3796),
        ("'every effort moves'", 1.1564e-05, -11.3676),
        ("'I'", 1.0337e-05, -11.4798),
        ("'I really'", 5.6776e-05, -9.7765),
        ("'I really like'", 4.7559e-06, -12.2561),
    ]:
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {after}  ")]
        assert float(cells(line)[-2]) == pytest.approx(probability, rel=5e-4)
        assert float(cells(line)[-1]) == pytest.approx(logarithm, abs=3e-4)
    for token in ("16657 ' Armed'", "339 ' he'", "42826 'Netflix'", "49906 ", "29669 ", "41751 ", "11311 ' chocolate'"):
        assert token in out
    assert "logits (6, 50257) and targets (6,):\n  loss 10.7940, perplexity exp(loss) = 48,72" in out
    assert row(out, "10.8249")[0] == "50,257.0"
    assert row(out, "0.0000")[0] == "1.0"
    losses = [11.5184, 10.8454, 11.1303, 10.9084, 10.9867, 10.7553, 11.4947, 10.8743]
    assert [float(line.split()[1]) for line in out.splitlines() if line.startswith("   ") and "e-0" in line] == losses
    assert "loss 11.0642; perplexity 63,842.9283" in out
    assert "exp(2) = 7.389, not (2.718 + 20.086) / 2 = 11.402" in out


def test_sampling(in_tmp: Path, command: Command) -> None:
    out = command("explain", "sampling", "--output", "figures").out

    words = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
    columns = list(zip(*(row(out, word) for word in words), strict=True))
    assert [float(cell) for cell in columns[0]] == [4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]
    assert [int(cell) for cell in columns[2]] == [73, 0, 0, 582, 2, 0, 0, 343, 0]
    assert [int(cell) for cell in columns[4]] == [0, 0, 0, 985, 0, 0, 0, 15, 0]
    assert [int(cell) for cell in columns[6]] == [165, 75, 42, 239, 71, 46, 32, 227, 103]
    assert [float(cell) for cell in columns[7]] == [0.0615, 0, 0, 0.5775, 0, 0, 0, 0.3610, 0]
    assert row(out, "pizza")[5] == "0.0430"
    assert row(out, "effort")[1] == "1.0019e-04"

    words = ["war", "battle", "revolution", "novel", "experiment", "day", "journey", "movement"]
    columns = list(zip(*(row(out, word) for word in words), strict=True))
    logits = [-0.4459, 0.4815, -1.4785, -0.9617, -4.7877, 0.8371, -3.8894, -3.0202]
    assert [float(cell) for cell in columns[0]] == logits
    assert [int(cell) for cell in columns[2]] == [11, 31, 7, 4, 0, 46, 1, 0]
    assert [float(cell) for cell in columns[3]][:2] == [0.0105, 0.2311]
    assert [float(cell) for cell in columns[5]] == [0.148, 0.2747, 0.0744, 0.105, 0.0082, 0.3482, 0.0149, 0.0266]
    assert [float(cell) for cell in columns[7]] == [0.1402, 0.3543, 0, 0, 0, 0.5056, 0, 0]
    assert [int(cell) for cell in columns[8]] == [13, 34, 0, 0, 0, 53, 0, 0]
    assert "argmax: 'forward'" in out
    assert "argmax: 'day'" in out
    written = sorted(os.listdir("figures"))
    assert written == [f"temperature-{number}.{suffix}" for number in (1, 2) for suffix in ("pdf", "png")]
    assert Path("figures/temperature-2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: what"),
        (["perplexity"], "argument what: invalid choice: 'perplexity' (choose from"),
        (["loss", "--output", "x"], "explain loss draws no figures; leave --output out"),
    ],
)
def test_wrong_arguments(command: Command, arguments: list[str], error: str) -> None:
    result = command("explain", *arguments)

    assert result.code == 2
    assert result.error.startswith(error)
