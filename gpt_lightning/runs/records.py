"""Read what a run folder says about its run. Every file may be missing.

Damaged lines of a table are skipped with a warning; another damaged file is an error, with what to do about it.

The verdict and the report of a run follow from `read_run`, its figure from the part of it that `read_losses` reads.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8, with_filename
from gpt_lightning.runs.folder import BASELINES, ENVIRONMENT, SUMMARY, display_path
from gpt_lightning.runs.shapes import NUMBER, find_damage, is_finite
from gpt_lightning.runs.tables import read_metrics, read_samples

HPARAMS = "hparams.yaml"  # TensorBoard's copy of the settings
MAX_BYTES = 1_000_000  # of a file of settings or facts
BASELINE_MODELS = ("uniform", "unigram", "bigram", "trigram")  # in baselines.json, beside numbers of tokens
EXPECTED_LOSSES = {  # that a config may expect ranges of: what they are called
    "untrained_val_loss": "untrained Val loss",
    "best_val_loss": "best Val loss",
    "last_train_eval_loss": "last Train loss",
}

# The parts of each file that are used. Any of them may be missing or null.
SHAPES: dict[str, dict[str, Any]] = {
    SUMMARY: {
        "last": {"step": int},
        "turn": {"step": int},
        "memorizing_steps": int,
        "expected": {name: {"range": [NUMBER], "value": NUMBER} for name in EXPECTED_LOSSES},
        "advice": str,
        "verdict": [str],
    },
    BASELINES: dict.fromkeys((*BASELINE_MODELS, "training_tokens", "validation_tokens"), NUMBER),
    ENVIRONMENT: {
        **dict.fromkeys(("config", "text", "split", "windows", "batches", "model"), str),
        "defaults": {},
        "sessions": [
            {
                **dict.fromkeys(("started", "device", "processor", "platform", "error"), str),
                **dict.fromkeys(("from_step", "to_step"), int),
                **dict.fromkeys(("minutes", "memory_bytes", "peak_memory_bytes"), NUMBER),
                "versions": {},
            }
        ],
    },
}


@dataclass(frozen=True)
class MetricsRow:
    """A row of metrics.jsonl.

    Attributes:
        step: Optimizer step; 0 is the evaluation before training.
        epoch: Epochs trained, with a fraction.
        tokens_seen: Tokens trained on.
    """

    step: int
    epoch: float
    tokens_seen: int


@dataclass(frozen=True)
class StepRow(MetricsRow):
    """A logged optimizer step.

    Attributes:
        metrics: Its finite values by name: train_loss, learning_rate, gradient_norm, tokens_per_second and so on.
    """

    metrics: dict[str, float]


@dataclass(frozen=True)
class EvaluationRow(MetricsRow):
    """An evaluation; losses in nats per token.

    Attributes:
        train_eval_loss: Training loss in evaluation mode.
        val_loss: Validation loss.
        val_blocks: Losses of groups of validation windows; empty if there were too few windows.
        val_windows: Number of windows in these groups; None if it is unknown.
        val_tokens: Number of validation tokens, over all ranks; None if it is unknown.
    """

    train_eval_loss: float
    val_loss: float
    val_blocks: tuple[float, ...] = ()
    val_windows: int | None = None
    val_tokens: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """The files of a run folder.

    Attributes:
        path: The folder, absolute.
        settings: The value of each setting by its full name; empty without the YAML file.
        config: Path of the YAML file with all settings, or None.
        steps: The optimizer steps in metrics.jsonl that have a finite loss, in order.
        evaluations: The evaluations there that have finite losses of both splits, in order.
        samples: Rows of samples.jsonl, in order.
        summary: Content of summary.json; empty without it, or if it is outdated.
        outdated: Step of the last evaluation in a summary.json that is not about these evaluations; None otherwise.
        baselines: Losses of counting models, in nats per token, and their numbers of tokens; empty if unknown.
        environment: Content of environment.json; empty without it.
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    config: Path | None = None
    steps: list[StepRow] = field(default_factory=list)
    evaluations: list[EvaluationRow] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    outdated: int | None = None
    baselines: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

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
    def best_baseline(self) -> tuple[str, float] | None:
        """Name and loss of the best baseline; None if none is known."""
        return min(self.baseline_losses.items(), key=lambda one: one[1], default=None)

    @property
    def validation_text(self) -> str | None:
        """Name and size of the text that the validation loss is of; None if it is unknown."""
        own, text, ratio = (self.settings.get(f"data.{name}") for name in ("val_text", "text", "train_ratio"))
        if not (own or text):
            return None
        name = Path(str(own or text)).name
        size = re.search(r"/ ([\d,]+ characters)", self.environment.get("split") or "")
        return ", ".join([name, *([] if own else [f"train_ratio {ratio}"]), *(size.groups() if size else [])])

    @property
    def divergence(self) -> str | None:
        """The error of the last process if training diverged in it, else None."""
        sessions = self.environment.get("sessions") or [{}]
        error = sessions[-1].get("error") or ""
        return error if error.startswith("non-finite ") else None

    @property
    def best(self) -> EvaluationRow | None:
        """The evaluation with the lowest validation loss, the first of equal ones; None without an evaluation."""
        trained = [row for row in self.evaluations if row.step > 0] or self.evaluations
        return min(trained, key=lambda row: row.val_loss, default=None)

    @property
    def last(self) -> EvaluationRow | None:
        """The last evaluation, or None."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def end(self) -> MetricsRow | None:
        """The row of the last step or evaluation, or None."""
        rows: list[MetricsRow] = [*self.steps[-1:], *self.evaluations[-1:]]
        return max(rows, key=lambda row: row.step, default=None)

    @property
    def copied(self) -> float | None:
        """Share of the tokens of the last samples that is copied from the training text; None if it is unknown."""
        last = [row.get("copied") or {} for row in self.samples if row["step"] == self.samples[-1]["step"]]
        if any(one.get(name) is None for one in last for name in ("tokens", "of")):
            return None
        total = sum(one["of"] for one in last)
        return sum(one["tokens"] for one in last) / total if total else None

    @property
    def training_minutes(self) -> float | None:
        """Time in optimizer steps, from the speed of those that were logged; None if no step was logged."""
        seconds = before = 0.0
        for row, speed in self.metric("tokens_per_second"):
            if speed > 0:
                seconds += (row.tokens_seen - before) / speed
                before = row.tokens_seen
        return seconds / 60 if before else None

    @property
    def expected_ranges(self) -> dict[str, tuple[float, float]]:
        """The range that each loss is expected in: from summary.json, without it from the settings `expected.*`."""
        if self.summary:
            compared = self.summary.get("expected") or {}
            found = {name: (compared.get(name) or {}).get("range") for name in EXPECTED_LOSSES}
        elif self.settings.get("expected.sha256"):
            found = {name: self.settings.get(f"expected.{name}") for name in EXPECTED_LOSSES}
        else:
            found = {}
        return {name: (float(one[0]), float(one[1])) for name, one in found.items() if _is_range(one)}

    def metric(self, name: str) -> list[tuple[StepRow, float]]:
        """Return the optimizer steps that have a finite value of a metric, and the values."""
        return [(row, row.metrics[name]) for row in self.steps if name in row.metrics]


def read_run(folder: Path) -> RunRecord:
    """Read the files of a run folder.

    Args:
        folder: The run folder.

    Raises:
        InputError: A file is damaged.
        MachineError: A file cannot be read.
    """
    path = folder.absolute()
    folder = Path(display_path(path))  # errors show it
    with _removable():
        rows = sorted(read_metrics(folder / "metrics.jsonl"), key=lambda row: row["step"])
        evaluations = _evaluations(rows)
        environment = read_facts(folder / ENVIRONMENT)
        config = _find_config(folder, environment.get("config"))
        summary = read_facts(folder / SUMMARY)
        judged = (summary.get("last") or {}).get("step")
        is_outdated = judged is not None and (not evaluations or evaluations[-1].step != judged)
        return RunRecord(
            path=path,
            settings=_read_settings(config) if config is not None else {},
            config=config.absolute() if config is not None else None,
            steps=_steps(rows),
            evaluations=evaluations,
            samples=read_samples(folder / "samples.jsonl"),
            summary={} if is_outdated else summary,
            outdated=judged if is_outdated else None,
            baselines=read_facts(folder / BASELINES),
            environment=environment,
        )


def read_losses(path: Path) -> RunRecord:
    """Read the evaluations, the baselines and the settings of a run, and no other files.

    Args:
        path: A run folder, or a file in the format of its metrics.jsonl.

    Raises:
        InputError: baselines.json or the file of settings is damaged.
        MachineError: A file cannot be read.
    """
    path = path.absolute()
    shown = Path(display_path(path))
    if not path.is_dir():
        return RunRecord(path.with_suffix(""), evaluations=read_evaluations(shown))
    with _removable():
        evaluations, baselines = read_evaluations(shown / "metrics.jsonl"), read_facts(shown / BASELINES)
        config = _find_config(shown, None)
        settings = _read_settings(config) if config is not None else {}
        return RunRecord(path, settings=settings, evaluations=evaluations, baselines=baselines)


def read_evaluations(table: Path) -> list[EvaluationRow]:
    """Return the evaluations in a file in the format of metrics.jsonl, in file order."""
    return _evaluations(read_metrics(table))


@contextlib.contextmanager
def _removable() -> Iterator[None]:
    """Add to the error of a damaged file what can be done about it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; remove it to continue without it") from None


# ---- tables


def _place(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("step", "epoch", "tokens_seen")}


def _steps(rows: list[dict[str, Any]]) -> list[StepRow]:
    return [
        StepRow(**_place(row), metrics={name: value for name, value in row.items() if is_finite(value)})
        for row in rows
        if is_finite(row.get("train_loss"))
    ]


def _evaluations(rows: list[dict[str, Any]]) -> list[EvaluationRow]:
    found = []
    for row in rows:
        if is_finite(row.get("train_eval_loss")) and is_finite(row.get("val_loss")):
            blocks = row.get("val_blocks")
            names = ("train_eval_loss", "val_loss", "val_windows", "val_tokens")
            values: dict[str, Any] = {name: row.get(name) for name in names}
            if isinstance(blocks, list) and all(map(is_finite, blocks)):
                values["val_blocks"] = tuple(blocks)
            found.append(EvaluationRow(**_place(row), **values))
    return found


def _is_range(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 2 and all(map(is_finite, value))


# ---- settings and facts


def _find_config(folder: Path, name: str | None) -> Path | None:
    """Return the YAML file with all settings: the one of that name; if it is not known, that written last."""
    configs = [path for path in folder.glob("*.yaml") if path.name != HPARAMS]
    if name is not None:
        return next((path for path in configs if path.name == name), None)
    return max(configs, key=lambda path: path.stat().st_mtime_ns, default=None)


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
        raise (error if isinstance(error, InputError) else InputError(f"{path}: is damaged, not valid YAML")) from None
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
    try:
        content: dict[str, Any] = json.loads(decode_utf8(_read_bytes(path), path))
    except (ValueError, RecursionError) as error:
        raise (error if isinstance(error, InputError) else InputError(f"{path}: is damaged, not valid JSON")) from None
    if damage := find_damage(content, SHAPES[path.name]):
        raise InputError(f"{path}: {damage}")
    return content
