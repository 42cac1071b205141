"""Checks of settings, whose errors name the setting, its limit and its value in one line."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpt_lightning.errors import InputError


def require(condition: bool, setting: str, must: str, value: object) -> None:
    """Raise `InputError` "<setting> must <must>, got <value>" unless the condition holds."""
    if not condition:
        shown = repr(value) if isinstance(value, str) else value
        raise InputError(f"{setting} must {must}, got {shown}")


def require_integer(setting: str, value: object, least: int, most: int | None = None) -> None:
    """Raise `InputError` unless the value is an int (not a bool) with least <= value <= most."""
    must = f"be an int of at least {least}" if most is None else f"be an int from {least} to {most}"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    require(is_int and least <= value and (most is None or value <= most), setting, must, value)  # type: ignore[operator]


def require_number(setting: str, value: object, must: str, fits: Callable[[float], bool]) -> None:
    """Raise `InputError` unless the value is a finite number for which `fits` returns True.

    Args:
        setting: Full name of the setting.
        value: Value of the setting.
        must: The requirement in words, such as "be above 0".
        fits: The same requirement as a function of a finite number.
    """
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    require(abs(number) < math.inf and fits(number), setting, must, value)
