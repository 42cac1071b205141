"""Read what a run folder says about its run. Every file may be missing; a damaged one is an error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8, read_rows, with_filename
from gpt_lightning.runs.folder import BASELINES, SUMMARY, display_path, resolve_latest
from gpt_lightning.runs.records import BASELINE_MODELS, is_finite

ENVIRONMENT = "environment.json"
HPARAMS = "hparams.yaml"  # TensorBoard's copy of the settings
NUMBER = (int, float)
MAX_BYTES = 1_000_000  # of a file of settings or facts

EXPECTED_LOSSES = ("untrained_val_loss", "best_val_loss", "last_train_eval_loss")
EXPECTED = {"range": [NUMBER], "value": NUMBER}
# The parts of each file that the report reads. Any of them may be missing or null.
SHAPES: dict[str, dict[str, Any]] = {
    SUMMARY: {
        "minutes": NUMBER,
        "turn": {"step": int},
        "memorizing_steps": int,
        "copied": NUMBER,
        "expected": dict.fromkeys(EXPECTED_LOSSES, EXPECTED),
        "advice": str,
        "verdict": [str],
    },
    BASELINES: dict.fromkeys((*BASELINE_MODELS, "training_tokens"), NUMBER),
    ENVIRONMENT: {
        **dict.fromkeys(("text", "split", "windows", "batches", "model"), str),
        "defaults": {},
        "sessions": [
            {
                **dict.fromkeys(("started", "device", "processor", "platform"), str),
                **dict.fromkeys(("from_step", "to_step", "processes", "cores"), int),
                **dict.fromkeys(("minutes", "memory_bytes", "peak_memory_bytes"), NUMBER),
                "versions": {},
            }
        ],
    },
}
COPY = {"begin": int, "end": int, "tokens": int, "source": int, "before": str, "after": str}
COPIED = {"at_least": int, "share": NUMBER, "tokens": int, "of": int, "longest": int, "runs": [COPY]}


@dataclass(frozen=True)
class RunRecord:
    """The files of a run folder.

    Attributes:
        path: The folder, absolute.
        settings: The value of each setting by its full name; empty without the YAML file.
        config: Path of the YAML file with all settings, or None.
        steps: Rows of metrics.jsonl for optimizer steps, in order.
        evaluations: Rows of metrics.jsonl with finite losses of both splits, in order.
        samples: Rows of samples.jsonl, in order.
        summary: Content of summary.json; empty without it.
        baselines: Losses of counting models, in nats per token; empty if they are not known.
        environment: Content of environment.json; empty without it.
    """

    path: Path
    settings: dict[str, Any]
    config: Path | None
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    baselines: dict[str, Any]
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        """Names of the run folder and the folder it is in."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def display_path(self) -> str:
        """The path for messages and commands: relative if it is below the current folder, absolute otherwise."""
        return display_path(self.path)

    @property
    def baseline_losses(self) -> dict[str, float]:
        """The baselines that are known, without their numbers of tokens."""
        return {name: self.baselines[name] for name in BASELINE_MODELS if self.baselines.get(name) is not None}

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation loss, the first of equal ones; None without an evaluation."""
        trained = [row for row in self.evaluations if row["step"] > 0] or self.evaluations
        return min(trained, key=lambda row: row["val_loss"], default=None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last evaluation, or None."""
        return self.evaluations[-1] if self.evaluations else None


def find_run(path: str) -> Path:
    """Return the absolute run folder that a path names: the folder, its checkpoints/, or runs/NAME/latest.

    Raises:
        InputError: The path does not exist, or is not a run folder.
    """
    folder = Path(resolve_latest(path))
    with with_filename(path):
        if not folder.exists():
            raise InputError(f"{path}: no such folder")
        folder = folder.resolve()
        if folder.name == "checkpoints" and folder.is_dir():
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{path}: is a file; name the folder of a run")
        if not any((folder / name).exists() for name in ("metrics.jsonl", "samples.jsonl", "checkpoints", SUMMARY)):
            raise InputError(f"{path}: is not the folder of a run; it has no metrics.jsonl and no checkpoints")
    return folder


def read_run(folder: Path) -> RunRecord:
    """Read the files of a run folder.

    Args:
        folder: The run folder.

    Raises:
        InputError: A file is damaged.
        MachineError: A file cannot be read.
    """
    folder = folder.absolute()
    rows = _read_table(folder / "metrics.jsonl")
    rows = sorted((row for row in rows if _are_finite(row, "epoch", "tokens_seen")), key=lambda row: row["step"])
    configs = sorted(path for path in folder.glob("*.yaml") if path.name != HPARAMS)
    summary = read_facts(folder / SUMMARY)
    return RunRecord(
        path=folder,
        settings=_read_settings(configs[0]) if configs else {},
        config=configs[0] if configs else None,
        steps=[row for row in rows if _are_finite(row, "train_loss")],
        evaluations=[row for row in rows if _are_finite(row, "train_eval_loss", "val_loss")],
        samples=_read_samples(folder / "samples.jsonl"),
        summary=summary,
        baselines=read_facts(folder / BASELINES),
        environment=read_facts(folder / ENVIRONMENT),
    )


def _are_finite(row: dict[str, Any], *names: str) -> bool:
    return all(is_finite(row.get(name)) for name in names)


def _read_table(path: Path) -> list[dict[str, Any]]:
    with with_filename(path):
        rows = read_rows(path)
        if not rows and path.exists() and path.stat().st_size > 0 and b"\n" in path.read_bytes():
            raise InputError(f"{path}: is damaged, it has no valid row; remove it to make a report without it")
    return rows


def _read_samples(path: Path) -> list[dict[str, Any]]:
    samples = []
    for row in _read_table(path):
        if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            where, copied = f"{path}: copied (step {row['step']})", row.get("copied")
            _check(copied, COPIED, where)
            for one in (copied or {}).get("runs") or ():
                if set(one) < set(COPY) or not 0 <= one["begin"] <= one["end"] <= len(row["completion"]):
                    raise InputError(f"{where}.runs is damaged, it must have places in the completion")
            samples.append(row)
    return samples


def _read_bytes(path: Path) -> bytes:
    with with_filename(path):
        content = path.read_bytes()
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: is damaged ({len(content):,} bytes, limit {MAX_BYTES:,})")
    return content


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file by their full names: section.name."""
    try:
        content = yaml.safe_load(decode_utf8(_read_bytes(path), path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, InputError) else f"{path}: is damaged, not valid YAML"
        raise InputError(problem) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is damaged, it does not contain settings (name: value)")
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            settings |= {f"{name}.{part}": one for part, one in value.items()}
        else:
            settings[str(name)] = value
    return settings


def read_facts(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file whose parts have the types of `SHAPES`; an empty dict without the file."""
    if not path.exists():
        return {}
    hint = "remove it to make a report without it"
    try:
        content = json.loads(decode_utf8(_read_bytes(path), path))
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, InputError) else f"{path}: is damaged, not valid JSON"
        raise InputError(f"{problem}; {hint}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is damaged, it must contain names and values; {hint}")
    _check(content, SHAPES[path.name], f"{path}: ")
    return content


def _check(value: Any, shape: Any, where: str) -> None:
    """Raise `InputError` unless a value is None or has a shape: a type, [shape of items] or {name: shape}.

    Args:
        value: A value from a file.
        shape: Its shape. Names that a dict does not have, or that the shape does not have, are accepted.
        where: File and name of the value, for the message.
    """
    if value is None:
        return
    kinds = {dict: "names and values", list: "a list", str: "a text", int: "an int", bool: "true or false"}
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    is_right = is_finite(value) if kind is NUMBER else isinstance(value, kind)
    if not is_right or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} is damaged, it must be {kinds.get(kind, 'a finite number')}")
    if isinstance(shape, dict):
        for name, part in shape.items():
            _check(value.get(name), part, f"{where}{'' if where.endswith(': ') else '.'}{name}")
    elif isinstance(shape, list):
        for one in value:
            _check(one, shape[0], where)


def range_of(record: RunRecord, name: str) -> tuple[float, float] | None:
    """Return the expected range of a loss, or None: from summary.json, without it from the YAML's section `expected`.

    Args:
        record: A run.
        name: untrained_val_loss, best_val_loss or last_train_eval_loss.
    """
    if record.summary:
        found = ((record.summary.get("expected") or {}).get(name) or {}).get("range")
    else:
        found = record.settings.get(f"expected.{name}") if record.settings.get("expected.sha256") else None
    if not isinstance(found, list) or len(found) != 2 or not all(map(is_finite, found)):
        return None
    return float(found[0]), float(found[1])
