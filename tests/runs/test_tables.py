"""Resuming a run cuts its tables back to the checkpoint, and warns of the damaged lines that it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_lightning.runs.folder import Run
from gpt_lightning.runs.tables import cut_logs

METRICS = [{"step": step, "epoch": step / 5, "tokens_seen": 10 * step, "train_loss": 3.0} for step in (1, 2, 3)]
SAMPLES: list[dict[str, Any]] = [
    {"step": step, "epoch": 1, "prompt": "It", "completion": " was", "copied": None} for step in (1, 2, 3)
]


def write(path: Path, rows: list[dict[str, Any]], damage: str = "") -> None:
    """Write rows, with damage after the first one."""
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join([*lines[:1], damage, *lines[1:]]))


def test_tables_are_cut_without_damaged_lines_and_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(Path("run"))
    run.path.mkdir()
    write(run.metrics_file, METRICS, 'nonsense\n{"step": 1, "train_loss": 1.0}\n')
    write(run.samples_file, SAMPLES, '{"step": 1}\n')
    for path in (run.summary_file, run.report_file):
        path.write_text("outdated")

    cut_logs(run, 2, 20)

    for path, rows in ((run.metrics_file, METRICS), (run.samples_file, SAMPLES)):
        assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == rows[:2]
    assert capsys.readouterr().err.splitlines() == [
        "gpt_lightning: warning: run/metrics.jsonl: 2 damaged lines are skipped (first: line 2)",
        "gpt_lightning: warning: run/samples.jsonl: 1 damaged line is skipped (first: line 2)",
    ]
    assert not run.summary_file.exists()
    assert not run.report_file.exists()
    cut_logs(run, 2, 20)
    assert capsys.readouterr().err == ""


def test_metrics_without_a_valid_row_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.metrics_file.write_text("\x00\n")

    cut_logs(run, 2, 20)

    name = tmp_path / "metrics.jsonl"
    assert run.metrics_file.read_text() == ""
    assert capsys.readouterr().err.splitlines() == [
        f"gpt_lightning: warning: {name}: 1 damaged line is skipped (first: line 1)",
        f"gpt_lightning: warning: {name}: has no row up to step 2; the curves start there",
    ]
