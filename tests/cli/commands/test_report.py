"""`report` writes the page of a run into its folder, and of several runs where it overwrites nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from pages import read_page, write_run

Command = Callable[..., Result]


@pytest.fixture
def runs(in_tmp: Path) -> Path:
    """Two runs of the name tiny; `latest` links to the second."""
    for number in ("1", "2"):
        write_run(in_tmp / "runs" / "tiny" / number)
    os.symlink("2/checkpoints", in_tmp / "runs" / "tiny" / "latest")
    return in_tmp / "runs" / "tiny"


@pytest.mark.parametrize("name", ["runs/tiny/2", "runs/tiny/2/", "runs/tiny/latest", "runs/tiny/2/checkpoints"])
def test_the_report_of_a_run_is_in_its_folder_and_rewritten(runs: Path, command: Command, name: str) -> None:
    first = command("report", name)
    page = (runs / "2" / "report.html").read_text(encoding="utf-8")
    (runs / "2" / "report.html").write_text("old")
    second = command("report", name)

    assert (first.code, first.out, first.err) == (0, "runs/tiny/2/report.html\n", "")
    assert (second.out, (runs / "2" / "report.html").read_text(encoding="utf-8")) == (first.out, page)
    assert read_page(page).one("h1").words == "tiny/2"
    assert sorted(os.listdir(runs / "2")) == sorted([*os.listdir(runs / "1"), "report.html"])


def test_the_report_of_several_runs_is_in_the_current_folder(runs: Path, command: Command) -> None:
    result = command("report", "runs/tiny/1", "runs/tiny/latest")

    assert (result.code, result.out) == (0, "report.html\n")
    assert read_page(Path("report.html").read_text(encoding="utf-8")).one("h1").words == "2 runs"
    assert "report.html: already exists" in command("report", "runs/tiny/1", "runs/tiny/2").error
    assert command("report", "runs/tiny/1", "runs/tiny/2", "--output", "both.html").out == "both.html\n"
    assert not (runs / "1" / "report.html").exists()


def test_a_run_elsewhere_is_named_by_its_whole_path(
    runs: Path, command: Command, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    assert command("report", runs / "1").out == f"{runs / '1' / 'report.html'}\n"


def test_an_output_is_not_overwritten_but_for_the_runs_own_report(runs: Path, command: Command) -> None:
    Path("mine.html").write_text("mine")

    own = "runs/tiny/1/report.html"
    assert command("report", "runs/tiny/1", "--output", "mine.html").error == (
        "--output mine.html: already exists; choose another or remove it"
    )
    assert Path("mine.html").read_text() == "mine"
    assert command("report", "runs/tiny/1", f"--output={own}").out == f"{own}\n"
    assert command("report", "runs/tiny/1", f"--output={own}").out == f"{own}\n"
    assert "already exists" in command("report", "runs/tiny/2", f"--output={own}").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere: no such folder"),
        (["runs/none/latest"], "runs/none/latest: no such folder"),
        (["runs"], "runs: is not the folder of a run; it has no metrics.jsonl and no checkpoints"),
        (["runs/tiny/1/metrics.jsonl"], "runs/tiny/1/metrics.jsonl: is a file; name the folder of a run"),
        (["runs/tiny/1/metrics.jsonl/x"], "runs/tiny/1/metrics.jsonl/x: no such folder"),
        (["a\x00b"], "a\\x00b: no such folder"),
        (["n" * 300], "file name too long"),
        (["runs/tiny/1", "runs/tiny/1/checkpoints"], "runs/tiny/1/checkpoints: is given twice"),
        (["runs/tiny/1"] * 9, "report compares at most 8 runs, got 9"),
        (["runs/tiny/1", "--output", "no/page.html"], "--output no/page.html: folder no does not exist"),
        (
            ["runs/tiny/1", "--output", "runs/tiny/1/tiny.yaml/page.html"],
            "--output runs/tiny/1/tiny.yaml/page.html: runs/tiny/1/tiny.yaml is not a folder",
        ),
        (["runs/tiny/1", "--output", "runs"], "--output must name a file, got 'runs'"),
        (["runs/tiny/1", "--output", ""], "--output is empty"),
    ],
)
def test_bad_arguments_get_one_line(runs: Path, command: Command, arguments: list[str], message: str) -> None:
    result = command("report", *arguments)

    assert result.error.endswith(message)
    assert result.code == 2 or "too long" in message
    assert not list(runs.rglob("*.html"))


def test_a_damaged_file_gets_one_line_and_the_old_page_stays(runs: Path, command: Command) -> None:
    command("report", "runs/tiny/1")
    page = (runs / "1" / "report.html").read_bytes()
    (runs / "1" / "summary.json").write_text("{")

    result = command("report", "runs/tiny/1")

    assert result.code == 2
    assert result.error == "runs/tiny/1/summary.json: is damaged, not valid JSON; remove it to continue without it"
    assert (runs / "1" / "report.html").read_bytes() == page


def test_damaged_lines_are_a_warning(runs: Path, command: Command) -> None:
    with open(runs / "1" / "samples.jsonl", "a") as file:
        file.write("nonsense\n")

    result = command("report", "runs/tiny/1")

    assert (result.code, result.out) == (0, "runs/tiny/1/report.html\n")
    assert result.err == (
        "gpt_lightning: warning: runs/tiny/1/samples.jsonl: 1 damaged line is skipped (first: line 3)\n"
    )


@pytest.mark.parametrize("call", ["pathlib.Path.write_bytes", "os.replace"])
def test_a_failed_write_gets_one_line_and_leaves_nothing(
    runs: Path, command: Command, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    before = sorted(os.listdir(runs / "1"))
    monkeypatch.setattr(call, refuse)

    result = command("report", "runs/tiny/1")

    assert (result.code, result.error) == (1, "runs/tiny/1/report.html: permission denied")
    assert sorted(os.listdir(runs / "1")) == before
