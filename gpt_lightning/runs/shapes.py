"""The types that values from files must have."""

from __future__ import annotations

from typing import Any, TypeGuard

NUMBER = (int, float)
KINDS = {dict: "names and values", list: "a list", str: "a text", int: "an int", NUMBER: "a finite number"}


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value from a file is a number that a float can hold."""
    is_number = isinstance(value, NUMBER) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300  # JSON integers may exceed the range of a float


def find_damage(value: Any, shape: Any, name: str = "") -> str | None:
    """Say what is wrong with a value from a file; return None if it has a shape.

    Args:
        value: A value from a file.
        shape: A type, [shape of each item] or {name: shape}. Names of a dict may be missing, null, or not in the shape.
        name: Full name of the value; empty for the content of a file.
    """
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    is_right = is_finite(value) if kind is NUMBER else isinstance(value, kind)
    if not is_right or (kind is int and isinstance(value, bool)):
        return f"{name} is damaged, it must be {KINDS[kind]}".lstrip()
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(shape, dict):
        known = [(key, part) for key, part in shape.items() if value.get(key) is not None]
        parts = [(value[key], part, f"{name}.{key}".lstrip(".")) for key, part in known]
    elif isinstance(shape, list):
        parts = [(one, shape[0], name) for one in value]
    return next((damage for part in parts if (damage := find_damage(*part)) is not None), None)
