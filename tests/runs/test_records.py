"""The files of a run folder are read; each may be missing, and a damaged one is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from compared import rows
from pages import copied, write_run

from gpt_lightning.errors import InputError
from gpt_lightning.runs.records import RunRecord, read_run


def write(path: Path, table: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))


def test_the_record_of_a_run(trained: Path) -> None:
    record = read_run(trained)

    evaluated = [row for row in rows(trained) if "val_loss" in row]
    assert [row.step for row in record.evaluations] == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    assert [row.val_loss for row in record.evaluations] == [row["val_loss"] for row in evaluated]
    assert all(len(row.val_blocks) == 31 for row in record.evaluations)
    assert {(row.val_windows, row.val_tokens) for row in record.evaluations} == {(31, 31 * 64)}
    stepped = [row for row in rows(trained) if "train_loss" in row]
    for metric in ("train_loss", "gradient_norm", "learning_rate"):
        assert [(row.step, value) for row, value in record.metric(metric)] == [
            (row["step"], row[metric]) for row in stepped
        ]
    seconds = sum(56 * 64 / row["tokens_per_second"] for row in stepped)
    assert record.training_minutes == pytest.approx(seconds / 60)
    assert record.baseline_losses.keys() == {"uniform", "unigram", "bigram", "trigram"}
    assert record.end == record.steps[-1]
    assert record.last == record.evaluations[-1]


def test_an_empty_folder_has_an_empty_record(tmp_path: Path) -> None:
    record = read_run(tmp_path)

    assert record == RunRecord(tmp_path)
    assert (record.best, record.last, record.end) == (None, None, None)
    assert (record.training_minutes, record.copied) == (None, None)
    assert (record.baseline_losses, record.expected_ranges) == ({}, {})


def test_minutes_of_steps_that_are_not_logged_are_estimated_from_the_next_one(tmp_path: Path) -> None:
    place = {"epoch": 1, "train_loss": 3.0}
    write(
        tmp_path / "metrics.jsonl",
        [
            {"step": 0, "epoch": 0, "tokens_seen": 0, "train_eval_loss": 3.0, "val_loss": 3.0},
            {"step": 4, "tokens_seen": 400, "tokens_per_second": 10.0, **place},
            {"step": 5, "tokens_seen": 500, "tokens_per_second": 0, **place},
            {"step": 8, "tokens_seen": 800, "tokens_per_second": 20.0, **place},
        ],
    )

    assert read_run(tmp_path).training_minutes == pytest.approx((400 / 10 + 400 / 20) / 60)


@pytest.mark.parametrize(
    "broken", [{"val_loss": math.nan}, {"epoch": None}, {"train_eval_loss": "3"}, {"tokens_seen": 10**400}]
)
def test_an_evaluation_without_usable_losses_is_left_out(tmp_path: Path, broken: dict[str, Any]) -> None:
    row = {"step": 1, "epoch": 0.5, "tokens_seen": 9, "train_eval_loss": 3.0, "val_loss": 4.0}
    write(tmp_path / "metrics.jsonl", [row, row | broken, row | {"val_blocks": [1.0, None]}])

    found = read_run(tmp_path).evaluations

    assert [one.val_blocks for one in found] == [(), ()]


@pytest.mark.parametrize(
    ("last", "share"),
    [
        ([{"tokens": 42, "of": 50}, {"tokens": 0, "of": 10}], 42 / 60),
        ([{"tokens": 42, "of": 50}, None], None),
        ([{"tokens": 0, "of": 0}], None),
        ([{}], None),
    ],
)
def test_the_copied_share_is_that_of_the_last_samples(
    tmp_path: Path, last: list[dict[str, Any] | None], share: float | None
) -> None:
    sample = {"epoch": 1, "prompt": "It", "completion": " was"}
    earlier = {**sample, "step": 4, "copied": {"tokens": 1, "of": 50}}
    write(tmp_path / "samples.jsonl", [earlier, *({**sample, "step": 9, "copied": copied} for copied in last)])

    assert read_run(tmp_path).copied == (None if share is None else pytest.approx(share))


# ---- damaged files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json: is damaged, not valid JSON"),
        ("summary.json", "[" * 100_000, "summary.json: is damaged, not valid JSON"),
        ("summary.json", "[1]", "summary.json: is damaged, it must be names and values"),
        ("summary.json", "null", "summary.json: is damaged, it must be names and values"),
        ("summary.json", '{"verdict": "good"}', "summary.json: verdict is damaged, it must be a list"),
        ("summary.json", '{"verdict": [3]}', "summary.json: verdict is damaged, it must be a text"),
        ("summary.json", '{"verdict": [null]}', "summary.json: verdict is damaged, it must be a text"),
        ("summary.json", '{"turn": {"step": 0.5}}', "summary.json: turn.step is damaged, it must be an int"),
        ("summary.json", '{"turn": {"step": true}}', "summary.json: turn.step is damaged, it must be an int"),
        *(
            (
                "summary.json",
                f'{{"expected": {{"best_val_loss": {{"value": {value}}}}}}}',
                "summary.json: expected.best_val_loss.value is damaged, it must be a finite number",
            )
            for value in ("NaN", "1e400", "true")
        ),
        ("summary.json", '{"x": ' + "1" * 5000 + "}", "summary.json: is damaged, not valid JSON"),
        ("summary.json", b"\xff", "summary.json: not UTF-8 text"),
        ("summary.json", " " * 1_000_001, r"summary.json: is damaged \(1,000,001 bytes, limit 1,000,000\)"),
        ("baselines.json", '{"bigram": "low"}', "baselines.json: bigram is damaged, it must be a finite number"),
        *(
            (
                "environment.json",
                f'{{"sessions": [{value}]}}',
                "environment.json: sessions is damaged, it must be names and values",
            )
            for value in ("3", "null")
        ),
        ("tiny.yaml", "a: [", "tiny.yaml: is damaged, not valid YAML"),
        ("tiny.yaml", "a: !tag 1", "tiny.yaml: is damaged, not valid YAML"),
        ("tiny.yaml", "a: 2024-13-45", "tiny.yaml: is damaged, not valid YAML"),
        ("tiny.yaml", "- 1", "tiny.yaml: is damaged, it does not contain settings"),
        ("tiny.yaml", "{a: " * 5000, "tiny.yaml: is damaged, not valid YAML"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(InputError, match=f"{message}.*; remove it to continue without it$"):
        read_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None},
        {"prompt": 3},
        {"completion": None},
        {"copied": []},
        {"copied": {"share": "all"}},
        {"copied": {"share": math.nan}},
        {"copied": {"at_least": "8"}},
        {"copied": {"runs": 3}},
        {"copied": {"runs": [None]}},
        {"copied": {"runs": [{"begin": 0}]}},
        *(
            {"copied": {"runs": [{"tokens": 9, "source": 0, "before": "", "after": "", "begin": 5, "end": 6} | place]}}
            for place in ({"begin": None}, {"end": 99}, {"end": 3}, {"begin": -1}, {"before": 1})
        ),
    ],
)
def test_a_sample_with_a_damaged_field_is_a_damaged_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    sample = {"step": 6, "epoch": 1, "prompt": "So", "completion": " the the the", "copied": copied("")}
    folder = write_run(tmp_path / "run", samples=[sample, sample | change, sample])

    assert read_run(folder).samples == [sample, sample]
    words = "samples.jsonl: 1 damaged line is skipped (first: line 2)"
    assert capsys.readouterr().err == f"gpt_lightning: warning: {folder / words}\n"


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("metrics", {5: "nonsense"}, "1 damaged line is skipped (first: line 5)"),
        ("metrics", {9: "\x00\x00", 11: '{"step": 3, "epo'}, "2 damaged lines are skipped (first: line 9)"),
        ("metrics", {2: '{"step": 1, "train_loss": 3}', 3: "[1]"}, "2 damaged lines are skipped (first: line 2)"),
        ("samples", {2: '{"step": 6, "prompt": "So"}'}, "1 damaged line is skipped (first: line 2)"),
        ("samples", {2: '{"step": 3}'}, "1 damaged line is skipped (first: line 2)"),
        ("samples", {3: ""}, "1 damaged line is skipped (first: line 3)"),
    ],
)
def test_damaged_lines_are_skipped_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    lines: dict[int, str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = read_run(write_run(tmp_path / "runs" / "x" / "1"))
    table = Path(f"runs/x/1/{name}.jsonl")
    content = table.read_text().splitlines()
    for number, line in lines.items():
        content.insert(number - 1, line)
    table.write_text("\n".join(content) + "\n")

    found = read_run(Path("runs/x/1"))

    assert found == whole
    assert capsys.readouterr().err == f"gpt_lightning: warning: runs/x/1/{name}.jsonl: {words}\n"


def test_a_line_separator_inside_of_a_json_string_does_not_end_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    row = '{"step": 12, "epoch": 2, "prompt": "So", "completion": "a\u2028b\u0085c"}\r\n'
    (folder / "samples.jsonl").write_bytes(row.encode())

    (sample,) = read_run(folder).samples

    assert sample["completion"] == "a\u2028b\u0085c"
    assert capsys.readouterr().err == ""


def test_a_table_of_damaged_lines_only_is_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("\x00\x01\nnonsense\n\x02")

    assert read_run(folder).evaluations == []
    assert capsys.readouterr().err.endswith("metrics.jsonl: 2 damaged lines are skipped (first: line 1)\n")


# ---- the file of settings


@pytest.mark.parametrize(
    ("recorded", "chosen"),
    [
        ("another.yaml", "another.yaml"),
        (None, "zebra.yaml"),
        ("gone.yaml", None),
        ("../other.yaml", None),
    ],
)
def test_the_settings_are_in_the_recorded_file_else_in_the_newest(
    tmp_path: Path, recorded: str | None, chosen: str | None
) -> None:
    folder = write_run(tmp_path / "runs" / "tiny" / "1", environment={"config": recorded})  # with tiny.yaml
    (folder.parent / "other.yaml").write_text("from: another folder\n")
    for time, name in enumerate(("tiny.yaml", "another.yaml", "zebra.yaml", "hparams.yaml")):
        (folder / name).write_text(f"from: {name}\n")
        os.utime(folder / name, (time, time))

    record = read_run(folder)

    assert record.config == (folder / chosen if chosen else None)
    assert record.settings == ({"from": chosen} if chosen else {})
