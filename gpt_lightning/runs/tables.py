"""The tables of a run folder, metrics.jsonl and samples.jsonl. Damaged lines are skipped, with a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_lightning.console import plural, warn
from gpt_lightning.files import read_lines, replace_bytes, with_filename
from gpt_lightning.runs.folder import Run, display_path
from gpt_lightning.runs.metrics import cut_events
from gpt_lightning.runs.shapes import NUMBER, find_damage, is_finite

COPY = {"begin": int, "end": int, "tokens": int, "source": int, "before": str, "after": str}
COPIED = {"at_least": int, "share": NUMBER, "tokens": int, "of": int, "longest": int, "runs": [COPY]}
SAMPLE = {"epoch": NUMBER, "prompt": str, "completion": str, "copied": COPIED}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the valid rows of a file in the format of metrics.jsonl, in file order."""
    return _read_table(path, lambda row: all(is_finite(row.get(name)) for name in ("step", "epoch", "tokens_seen")))


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the valid rows of samples.jsonl, in file order."""
    return _read_table(path, _is_sample)


def cut_logs(run: Run, step: int, tokens_seen: int) -> None:
    """Remove log entries after a step, so that a resumed run does not log them twice, and the outdated verdict.

    Args:
        run: The run folder.
        step: Last optimizer step to keep.
        tokens_seen: Tokens seen at that step.
    """
    for outdated in (run.summary_file, run.report_file):
        outdated.unlink(missing_ok=True)
    for path, read in ((run.metrics_file, read_metrics), (run.samples_file, read_samples)):
        kept = [row for row in read(path) if row["step"] <= step]
        if path == run.metrics_file and step > 0 and not kept:
            warn(f"{display_path(path)}: has no row up to step {step}; the curves start there")
        replace_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    for path in run.path.glob("events.out.tfevents.*"):
        cut_events(path, step, tokens_seen)


def _is_sample(row: dict[str, Any]) -> bool:
    if any(row.get(name) is None for name in ("epoch", "prompt", "completion")) or find_damage(row, SAMPLE):
        return False
    copies = (row.get("copied") or {}).get("runs") or []
    is_whole = all(one.get(name) is not None for one in copies for name in COPY)
    return is_whole and all(0 <= one["begin"] <= one["end"] <= len(row["completion"]) for one in copies)


def _read_table(path: Path, is_valid: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    with with_filename(path):
        lines = list(read_lines(path))
    rows = [row for _, row in lines if row is not None and is_valid(row)]
    damaged = [number for number, row in lines if row is None or not is_valid(row)]
    if damaged:
        are = "is" if len(damaged) == 1 else "are"
        warn(f"{display_path(path)}: {plural(len(damaged), 'damaged line')} {are} skipped (first: line {damaged[0]})")
    return rows
