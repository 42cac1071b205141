"""What a checkpoint contains besides tensors: its description, the weights' prefix and the schema."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import version
from types import NoneType
from typing import Any, get_origin, get_type_hints

import torch

import gpt_lightning
from gpt_lightning.errors import InputError

FORMAT = 1
PLAIN = (NoneType, bool, int, float, str, list, dict)
WEIGHTS_PREFIX = "model."


@dataclass(frozen=True)
class TextInfo:
    """The fingerprint of a training text.

    Attributes:
        name: File name.
        sha256: Checksum of the training text, in hexadecimal digits.
        characters: Length of the text in characters.
        tokens: Length of the text in tokens.
        val_sha256: Checksum of `data.val_text`; None if the validation split is part of the training text.
    """

    name: str
    sha256: str
    characters: int
    tokens: int
    val_sha256: str | None


@dataclass(frozen=True)
class ProgressInfo:
    """How far a run was when it was saved.

    Attributes:
        epochs: Finished epochs.
        steps: Optimizer steps.
        tokens_seen: Tokens trained on, over all ranks.
    """

    epochs: int
    steps: int
    tokens_seen: int


def _versions() -> dict[str, str]:
    return {
        "gpt_lightning": gpt_lightning.__version__,
        "torch": str(torch.__version__),
        "lightning": version("lightning"),  # without importing it
    }


@dataclass(frozen=True)
class CheckpointInfo:
    """The description of a checkpoint, stored under the key "gpt_lightning".

    Beside it, `hyper_parameters` holds the settings `model.*`, `datamodule_hyper_parameters` the settings `data.*`.

    Attributes:
        text: The text that the model was trained on.
        progress: How far the run was.
        evaluated: Losses and perplexities of the last evaluation.
        fit: The settings outside `model.*` and `data.*` that a resumed run keeps.
        imported: Where imported weights are from; None for a checkpoint of a run.
        format: Number of the file format; a program that does not know it refuses the file.
        versions: Versions of this package, torch and lightning.
    """

    text: TextInfo
    progress: ProgressInfo
    evaluated: dict[str, float]
    fit: dict[str, Any]
    imported: dict[str, str] | None = None
    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=_versions)

    @classmethod
    def parse(cls, checkpoint: dict[str, Any]) -> CheckpointInfo:
        """Return the description of a checkpoint that `checkpoints.io.read_checkpoint` has checked."""
        return _build(cls, checkpoint["gpt_lightning"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as it is stored."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _build(record: Any, content: dict[str, Any]) -> Any:
    """Build a dataclass and those inside of it from nested dicts; unknown keys are ignored."""
    hints = get_type_hints(record).items()
    return record(
        **{
            name: _build(hint, content[name]) if is_dataclass(hint) else content[name]
            for name, hint in hints
            if name in content
        }
    )


def _schema_of(record: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass that a file must have."""
    hints = get_type_hints(record)
    required = {one.name: hints[one.name] for one in fields(record) if one.default is not None}
    return {
        name: _schema_of(hint) if is_dataclass(hint) else get_origin(hint) if get_origin(hint) is dict else hint
        for name, hint in required.items()
    }


SCHEMA = {
    "global_step": int,
    "state_dict": dict,
    "hyper_parameters": dict,
    "datamodule_hyper_parameters": dict,
    "gpt_lightning": _schema_of(CheckpointInfo),
}


def check_schema(content: dict[str, Any], schema: dict[str, Any], name: str, prefix: str = "") -> None:
    """Raise `InputError` if nested values are missing or of the wrong type.

    Args:
        content: Nested dicts.
        schema: The same keys, each with its type or the schema of the dict under it.
        name: Name of the file, for the error.
        prefix: Where `content` is in the file, for the error.
    """
    for key, expected in schema.items():
        if key not in content or not isinstance(content[key], dict if isinstance(expected, dict) else expected):
            raise InputError(f"{name}: {prefix}{key} is missing or of the wrong type")
        if isinstance(expected, dict):
            check_schema(content[key], expected, name, f"{prefix}{key}.")
