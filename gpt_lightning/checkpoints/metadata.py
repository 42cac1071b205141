"""The metadata of a checkpoint, and the schema that its content is checked against."""

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
    """The progress of a run when its checkpoint was saved.

    Attributes:
        epochs: Finished epochs.
        steps: Optimizer steps.
        tokens_seen: Tokens trained on, over all ranks.
    """

    epochs: int
    steps: int
    tokens_seen: int


def installed_versions() -> dict[str, str]:
    """Return the versions of this package, torch and lightning."""
    return {
        "gpt_lightning": gpt_lightning.__version__,
        "torch": str(torch.__version__),
        "lightning": version("lightning"),  # from the installed metadata, because importing it takes seconds
    }


@dataclass(frozen=True)
class CheckpointInfo:
    """The metadata of a checkpoint, stored under the key "gpt_lightning".

    The settings `model.*` are stored under `hyper_parameters`, `data.*` under `datamodule_hyper_parameters`.

    Attributes:
        text: The text that the model was trained on.
        progress: Progress of the run.
        evaluated: Losses and perplexities of the last evaluation.
        fit: The settings outside `model.*` and `data.*` that a resumed run keeps.
        baselines: Validation losses of counting the training text, see `evaluation.baselines`.
        imported: Source and format of imported weights; None for a checkpoint of a run.
        format: Version of the file format; a file of another version is refused.
        versions: Versions of this package, torch and lightning.
    """

    text: TextInfo
    progress: ProgressInfo
    evaluated: dict[str, float]
    fit: dict[str, Any]
    baselines: dict[str, float] | None = None
    imported: dict[str, str] | None = None
    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=installed_versions)

    @classmethod
    def parse(cls, checkpoint: dict[str, Any]) -> CheckpointInfo:
        """Return the metadata of a checkpoint that `checkpoints.io.read_checkpoint` has checked."""
        return _build(cls, checkpoint["gpt_lightning"])

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as the plain data that the file stores."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _build(record: Any, content: dict[str, Any]) -> Any:
    """Build a dataclass and its nested dataclasses from nested dicts, ignoring unknown keys."""
    hints = get_type_hints(record).items()
    return record(
        **{
            name: _build(hint, content[name]) if is_dataclass(hint) else content[name]
            for name, hint in hints
            if name in content
        }
    )


def _schema_of(record: Any) -> dict[str, Any]:
    """Return the type of each required field of a dataclass, with a dict for each nested dataclass."""
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
        name: Name of the file, for the error message.
        prefix: Path of `content` inside the file, for the error message.
    """
    for key, expected in schema.items():
        if key not in content or not isinstance(content[key], dict if isinstance(expected, dict) else expected):
            raise InputError(f"{name}: {prefix}{key} is missing or of the wrong type")
        if isinstance(expected, dict):
            check_schema(content[key], expected, name, f"{prefix}{key}.")
