"""What a checkpoint contains: its format number, its weights' prefix and its schema."""

from __future__ import annotations

from types import NoneType
from typing import Any

from gpt_lightning.errors import InputError

FORMAT = 1
PLAIN = (NoneType, bool, int, float, str, list, dict)
SCHEMA = {
    "global_step": int,
    "state_dict": dict,
    "hyper_parameters": dict,
    "datamodule_hyper_parameters": dict,
    "gpt_lightning": {
        "versions": dict,
        "text": {"name": str, "sha256": str, "characters": int, "tokens": int, "val_sha256": (str, NoneType)},
        "progress": {"epochs": int, "steps": int, "tokens_seen": int},
        "evaluated": dict,
        "fit": dict,
    },
}
WEIGHTS_PREFIX = "model."


def check_schema(content: dict[str, Any], schema: dict[str, Any], name: str, prefix: str = "") -> None:
    """Raises `InputError` where nested settings are missing or of the wrong type."""
    for key, expected in schema.items():
        if key not in content or not isinstance(content[key], dict if isinstance(expected, dict) else expected):
            raise InputError(f"{name}: {prefix}{key} is missing or of the wrong type")
        if isinstance(expected, dict):
            check_schema(content[key], expected, name, f"{prefix}{key}.")
