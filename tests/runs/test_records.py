"""The tables of a run folder are read; what is missing or invalid is left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from compared import rows

from gpt_lightning.runs.records import read_baselines, read_records


def write(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))


def test_the_records_of_a_run(trained: Path) -> None:
    records = read_records(trained)

    evaluated = [row for row in rows(trained) if "val_loss" in row]
    assert [row.step for row in records.evaluations] == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    assert [row.val_loss for row in records.evaluations] == [row["val_loss"] for row in evaluated]
    assert all(len(row.val_blocks) == 31 for row in records.evaluations)
    stepped = [row for row in rows(trained) if "train_loss" in row]
    assert records.gradient_norms == [row["gradient_norm"] for row in stepped]
    seconds = sum(56 * 64 / row["tokens_per_second"] for row in stepped)
    assert records.minutes == pytest.approx(seconds / 60)


def test_an_empty_folder_has_no_records(tmp_path: Path) -> None:
    records = read_records(tmp_path)

    assert (records.evaluations, records.gradient_norms) == ([], [])
    assert (records.minutes, records.baselines, records.copied) == (None, None, None)


def test_minutes_of_steps_that_are_not_logged_are_estimated_from_the_next_one(tmp_path: Path) -> None:
    write(
        tmp_path / "metrics.jsonl",
        [
            {"step": 0, "tokens_seen": 0, "val_loss": 3.0},
            {"step": 4, "tokens_seen": 400, "tokens_per_second": 10.0},
            {"step": 5, "tokens_seen": 500, "tokens_per_second": 0},
            {"step": 8, "tokens_seen": 800, "tokens_per_second": 20.0},
        ],
    )

    assert read_records(tmp_path).minutes == pytest.approx((400 / 10 + 400 / 20) / 60)


@pytest.mark.parametrize(
    "broken", [{"val_loss": math.nan}, {"epoch": None}, {"train_eval_loss": "3"}, {"tokens_seen": 10**400}]
)
def test_an_evaluation_without_usable_losses_is_left_out(tmp_path: Path, broken: dict[str, Any]) -> None:
    row = {"step": 1, "epoch": 0.5, "tokens_seen": 9, "train_eval_loss": 3.0, "val_loss": 4.0}
    write(tmp_path / "metrics.jsonl", [row, row | broken, row | {"val_blocks": [1.0, None]}])

    found = read_records(tmp_path).evaluations

    assert [one.val_blocks for one in found] == [(), ()]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"uniform": 5.5, "unigram": 3.1}', {"uniform": 5.5, "unigram": 3.1}),
        ('{"uniform": 5.5', None),
        ('{"uniform": NaN}', None),
        ("[5.5]", None),
        ("{}", None),
        ("[" * 100_000, None),
    ],
)
def test_baselines_are_read_if_they_are_valid(tmp_path: Path, content: str, found: dict[str, float] | None) -> None:
    assert read_baselines(tmp_path) is None
    (tmp_path / "baselines.json").write_text(content)

    assert read_baselines(tmp_path) == found


@pytest.mark.parametrize(
    ("last", "share"),
    [
        ([{"tokens": 42, "of": 50}, {"tokens": 0, "of": 10}], 42 / 60),
        ([{"tokens": 42, "of": 50}, None], None),
        ([{"tokens": 0, "of": 0}], None),
        ([{"tokens": "42", "of": 50}], None),
        ([{}], None),
    ],
)
def test_the_copied_share_is_that_of_the_last_samples(
    tmp_path: Path, last: list[dict[str, Any] | None], share: float | None
) -> None:
    earlier = {"step": 4, "copied": {"tokens": 1, "of": 50}}
    write(tmp_path / "samples.jsonl", [earlier, *({"step": 9, "copied": copied} for copied in last)])

    assert read_records(tmp_path).copied == (None if share is None else pytest.approx(share))
