"""Combine a checkpoint's settings with those of the command line and YAML files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from gpt_lightning.cli.arguments import TEXT_SETTINGS
from gpt_lightning.cli.config_files import one_line_yaml
from gpt_lightning.console import warn
from gpt_lightning.errors import InputError
from gpt_lightning.models.config import GPTConfig

ARCHITECTURE = tuple(f"model.{field.name}" for field in fields(GPTConfig))

# The settings in a checkpoint that a resumed run may change; all others must be the checkpoint's.
FREE_ON_RESUME = {
    "data.num_workers",
    "data.test_text",
    "data.text",
    "data.url",
    "data.fallback_text",
    "evaluate_batches",
}


def checkpoint_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's settings by their full names."""
    own = {f"model.{name}": value for name, value in checkpoint["hyper_parameters"].items()}
    own |= {f"data.{name}": value for name, value in checkpoint["datamodule_hyper_parameters"].items()}
    return own | checkpoint["gpt_lightning"]["fit"]


def keep(settings: Namespace, own: dict[str, Any], fixed: Iterable[str], name: str) -> None:
    """Require settings to equal the checkpoint's, and fill in those that were not set.

    Args:
        settings: Settings of the command; modified in place.
        own: The checkpoint's settings.
        fixed: Names of the settings that must equal the checkpoint's.
        name: Name of the checkpoint.

    Raises:
        InputError: A setting differs; the message has both values.
    """
    left_open = {"model.vocab_size": None, "trainer.precision": "auto"}
    for setting in fixed:
        now, then = settings[setting], own.get(setting)
        if setting in left_open and now == left_open[setting]:
            settings[setting] = then
        elif now != then:
            has = f"{name} has no {setting}" if then is None else f"{name} has {setting} {one_line_yaml(then)}"
            raise InputError(f"{has}, the settings {'have none' if now is None else f'say {one_line_yaml(now)}'}")


def keep_text(data: Namespace, own: dict[str, Any], name: str) -> None:
    """Replace the text that a YAML file names by the checkpoint's, and warn if the two differ.

    Args:
        data: The settings `data.*`; modified in place.
        own: The checkpoint's settings.
        name: Name of the checkpoint.
    """
    named, kept = data["text"], own.get("data.text")
    if named and isinstance(kept, str) and Path(named).name != Path(kept).name:
        warn(f"using {kept}, the text of {name}, not {named}")
    for setting in ("text", *TEXT_SETTINGS):
        data[setting] = own.get(f"data.{setting}")
