"""Colours of losses: a scale of one direction in lightness, for people with any colour vision and for print.

The scale ends at ln V, the loss of a uniform guess among the V tokens of the vocabulary, so that texts of different
tokenizers look alike. Level 0 is the least loss; level `WORSE` is more than that of the guess.
"""

from __future__ import annotations

import math

WORSE = 10
# matplotlib's magma from both ends, paler or darker towards level 0, which is nearly the background of the page.
LIGHT = (
    *("#fffef8", "#fdf5cd", "#ffddba", "#fec4a8", "#f9a49a", "#e88399"),
    *("#cb6a9a", "#a44d95", "#7d358e", "#521c7f", "#21114e"),
)
DARK = (
    *("#18171d", "#25164a", "#391355", "#541d5d", "#70265f", "#95315e"),
    *("#bc4455", "#d96853", "#eb9869", "#f5c68c", "#fcf9bb"),
)
INKS = ("#141414", "#ffffff")
TERMINAL = (233, 17, 54, 89, 125, 161, 203, 209, 215, 222, 230)
BLACK, WHITE, FIRST_BRIGHT = 16, 231, 6


def level(loss: float, vocab_size: int) -> int:
    """Return the level of a loss: tenths of ln V, from 0 to `WORSE`.

    Args:
        loss: Loss of a token in nats, at least 0.
        vocab_size: V.
    """
    guess = math.log(vocab_size)
    return min(WORSE, int(loss / guess * WORSE)) if guess > 0 else 0


def ink(colour: str) -> str:
    """Return which of `INKS` contrasts more with a background."""
    return max(INKS, key=lambda one: contrast(one, colour))


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours #rrggbb, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def terminal_code(level: int) -> str:
    """Return the escape sequence for the background of a level, and a readable ink, in a terminal of 256 colours."""
    return f"\x1b[48;5;{TERMINAL[level]};38;5;{WHITE if level < FIRST_BRIGHT else BLACK}m"
