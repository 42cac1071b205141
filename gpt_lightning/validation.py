"""Checks of settings: one line that names the setting, its limit and its value."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpt_lightning.errors import InputError


def require(condition: bool, setting: str, must: str, value: object) -> None:
    """Raises `InputError` "<setting> must <must>, got <value>" unless the condition holds."""
    if not condition:
        shown = repr(value) if isinstance(value, str) else value
        raise InputError(f"{setting} must {must}, got {shown}")


def require_integer(setting: str, value: object, least: int, most: int | None = None) -> None:
    """Raises `InputError` unless the value is an int (bools are not) within least..most."""
    must = f"be an int of at least {least}" if most is None else f"be an int from {least} to {most}"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    require(is_int and least <= value and (most is None or value <= most), setting, must, value)  # type: ignore[operator]


def require_number(setting: str, value: object, must: str, fits: Callable[[float], bool]) -> None:
    """Raises `InputError` for anything but a finite number that fits.

    Args:
        setting: Its full name.
        value: What was given.
        must: What it must be, as "be above 0".
        fits: Whether a finite number is that.
    """
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    require(abs(number) < math.inf and fits(number), setting, must, value)
