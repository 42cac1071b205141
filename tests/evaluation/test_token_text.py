"""Tokens as text: pieces that add up, names, colours of a terminal."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.console import visible
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.evaluation import token_colours as colours
from gpt_lightning.evaluation.token_text import coloured_text, token_name, token_pieces
from gpt_lightning.evaluation.tokens import TokenScores

CUBE = (0, 95, 135, 175, 215, 255)  # values of a channel in the colours 16 to 231 of a terminal


def terminal_colour(number: int) -> str:
    """Return a colour of a terminal with 256 colours as #rrggbb."""
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    number -= 16
    return "#" + "".join(f"{CUBE[i]:02x}" for i in (number // 36, number // 6 % 6, number % 6))


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="·"), max_size=40))
def test_pieces_add_up_to_the_text(name: str, text: str) -> None:
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)

    pieces = token_pieces(tokenizer, ids)

    assert len(pieces) == len(ids)
    shown = "".join(pieces).replace("·", "")
    assert shown == visible(text).replace("\n", "↵\n")


def test_a_character_of_several_tokens_is_shown_by_the_last_one() -> None:
    tokenizer = load_tokenizer("bytes")

    assert token_pieces(tokenizer, tokenizer.encode("a日é")) == ["a", "·", "·", "日", "·", "é"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m\x07\r", r"\x1b[31m\x07\r"),
        ("\u202eevil\u2066\ufeff", r"\u202eevil\u2066\ufeff"),
        ("\x85\u2028\ud800", r"\x85\u2028\ud800"),
        ("a\tb\n", "a\tb\n"),
        ("👩\u200d👧 نمی\u200cشود \xa0<b>", "👩\u200d👧 نمی\u200cشود \xa0<b>"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_names_of_tokens() -> None:
    tokenizer = load_tokenizer("bytes")

    names = [token_name(tokenizer, token_id) for token_id in (32, 10, 39, 0xE6, 256, 999)]
    assert names == ["' '", r"'\n'", '"\'"', r"b'\xe6'", "'<|endoftext|>'", r"b'\xff'"]


def test_levels_are_tenths_of_a_uniform_guess() -> None:
    guess = math.log(257)

    levels = [colours.level(share * guess, 257) for share in (0, 0.09, 0.11, 0.99, 1.01, 9)]
    assert levels == [0, 0, 1, 9, 10, 10]
    assert colours.level(0.0, 1) == 0


@pytest.mark.parametrize(
    ("scale", "inks"),
    [
        (colours.LIGHT, [colours.ink(one) for one in colours.LIGHT]),
        (colours.DARK, [colours.ink(one) for one in colours.DARK]),
        tuple(
            [terminal_colour(int(re.findall(r"\d+", colours.terminal_code(i))[place])) for i in range(11)]
            for place in (2, 5)
        ),
    ],
    ids=["light", "dark", "terminal"],
)
def test_scales_go_in_one_direction_and_text_on_them_is_readable(scale: list[str], inks: list[str]) -> None:
    """A contrast of 4.5 is level AA of WCAG 2.2; the lightness alone tells the levels apart, without any hue."""
    assert len(scale) == colours.WORSE + 1
    assert min(colours.contrast(one, text) for one, text in zip(scale, inks, strict=True)) >= 4.5
    with_black = [colours.contrast(one, "#000000") for one in scale]
    assert with_black in (sorted(with_black), sorted(with_black, reverse=True))
    assert len(set(with_black)) == len(scale)
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_text_in_colours() -> None:
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode("ab\nc\x1b")
    guess = math.log(257)
    losses = np.float32([0, 0.35 * guess, 0.35 * guess, 2 * guess])
    scores = TokenScores(losses, np.ones(4, int), np.zeros((4, 5), int), np.zeros((4, 5)))

    shown = coloured_text(tokenizer, ids, scores, 257)

    codes = [colours.terminal_code(level) for level in (0, 3, 10)]
    text, _, legend = shown.partition("\n\n")
    assert text == f"a{codes[0]}b\x1b[0m{codes[1]}↵\x1b[0m\n{codes[1]}c\x1b[0m{codes[2]}\\x1b\x1b[0m"
    assert [float(one) for one in re.findall(r"m (\d+\.\d) \x1b", legend)] == pytest.approx(
        [i / 10 * guess for i in range(11)], abs=0.051
    )
