"""Read what a run folder records about the run: losses, gradients, baselines and copied tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from gpt_lightning.files import read_rows
from gpt_lightning.runs.folder import BASELINES

BASELINE_MODELS = ("uniform", "unigram", "bigram", "trigram")  # in baselines.json, beside numbers of tokens


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation; losses in nats per token.

    Attributes:
        step: Optimizer step; 0 is the evaluation before training.
        epoch: Epochs trained, with a fraction.
        tokens_seen: Tokens trained on.
        train_eval_loss: Training loss in evaluation mode.
        val_loss: Validation loss.
        val_blocks: Losses of groups of validation windows; empty if there were too few windows.
        val_windows: Number of windows in these groups; None if it is unknown.
        val_tokens: Number of validation tokens, over all ranks; None if it is unknown.
    """

    step: int
    epoch: float
    tokens_seen: int
    train_eval_loss: float
    val_loss: float
    val_blocks: tuple[float, ...] = ()
    val_windows: int | None = None
    val_tokens: int | None = None


@dataclass(frozen=True)
class Records:
    """The tables of a run.

    Attributes:
        evaluations: In the order of the steps.
        gradient_norms: Norm of the gradient before clipping, of each optimizer step that was logged.
        minutes: Time in optimizer steps, without evaluations, samples and saving; None if no step was logged.
        baselines: Losses of counting models on the validation split, and their numbers of tokens; None if unknown.
        copied: Share of the tokens of the last samples that is copied from the training text; None if unknown.
    """

    evaluations: list[EvaluationRow]
    gradient_norms: list[float]
    minutes: float | None
    baselines: dict[str, float] | None
    copied: float | None


def read_records(folder: Path) -> Records:
    """Read the tables of a run folder; what is missing or invalid is left out."""
    rows = read_rows(folder / "metrics.jsonl")
    return Records(
        evaluations=_evaluations(rows),
        gradient_norms=[row["gradient_norm"] for row in rows if is_finite(row.get("gradient_norm"))],
        minutes=_training_minutes(rows),
        baselines=read_baselines(folder),
        copied=_last_copied(read_rows(folder / "samples.jsonl")),
    )


def read_evaluations(table: Path) -> list[EvaluationRow]:
    """Return the evaluations in a file in the format of metrics.jsonl."""
    return _evaluations(read_rows(table))


def _evaluations(rows: list[dict[str, Any]]) -> list[EvaluationRow]:
    names = ("step", "epoch", "tokens_seen", "train_eval_loss", "val_loss")
    found = []
    for row in rows:
        if all(is_finite(row.get(name)) for name in names):
            blocks = row.get("val_blocks")
            is_valid = isinstance(blocks, list) and all(map(is_finite, blocks))
            val_blocks = tuple(blocks) if is_valid else ()  # type: ignore[arg-type]
            values: dict[str, Any] = {name: row[name] for name in names}
            values |= {name: row.get(name) for name in ("val_windows", "val_tokens")}
            found.append(EvaluationRow(**values, val_blocks=val_blocks))
    return found


def read_baselines(folder: Path) -> dict[str, float] | None:
    """Return the contents of a run's baselines.json, or None if it is missing or invalid."""
    try:
        found = json.loads((folder / BASELINES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_valid = isinstance(found, dict) and found and all(map(is_finite, found.values()))
    return found if is_valid else None


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value from a file is a number that a float can hold."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300  # JSON integers may exceed the range of a float


def _training_minutes(rows: list[dict[str, Any]]) -> float | None:
    """Return the minutes in optimizer steps, from the speed of those that were logged."""
    seconds = before = 0.0
    for row in rows:
        speed, tokens = row.get("tokens_per_second"), row.get("tokens_seen")
        if is_finite(speed) and is_finite(tokens) and speed > 0:
            seconds += (tokens - before) / speed
            before = tokens
    return seconds / 60 if before else None


def _last_copied(samples: list[dict[str, Any]]) -> float | None:
    """Return the share of copied tokens in the samples of the last step; None if one of them does not say."""
    copied = total = 0.0
    for row in samples:
        if row["step"] == samples[-1]["step"]:
            counted = row.get("copied")
            tokens, of = (counted.get("tokens"), counted.get("of")) if isinstance(counted, dict) else (None, None)
            if not is_finite(tokens) or not is_finite(of):
                return None
            copied, total = copied + tokens, total + of
    return copied / total if total > 0 else None
