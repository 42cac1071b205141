"""environment.json says on what, how long and with how much memory a run was trained; the report ends a run."""

from __future__ import annotations

import html
import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import STORY, Result

from gpt_lightning.errors import DivergedError, InputError, MachineError, Stopped, Terminated, memory_bytes
from gpt_lightning.runs.records import MAX_BYTES, read_run
from gpt_lightning.training import fit, results
from gpt_lightning.training.environment import describe_error, peak_memory_bytes, processor_name

Command = Callable[..., Result]
draw_report = results.draw_report  # before a fixture replaces it


def read_facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))


def test_a_run_records_its_text_machine_time_and_memory(trained: Path) -> None:
    facts = read_facts(trained)

    assert facts["windows"] == "287 + 31 of 64 tokens, stride 64; 44 + 61 trailing tokens are unused"
    assert facts["model"] == "12,512 parameters: 1 layer, 2 heads, width 16, context 64, untied head"
    assert facts["text"].startswith("the-lamp-at-low-water.txt: 20,459 characters")
    (session,) = facts["sessions"]
    assert (session["from_step"], session["to_step"], session["processes"]) == (0, 15, 1)
    assert session["device"].startswith("cpu (as set by trainer.accelerator), precision 32-true")
    assert session["memory_bytes"] == memory_bytes()
    assert (
        session["versions"] | {"python": platform.python_version(), "torch": torch.__version__} == session["versions"]
    )
    assert 0 < session["minutes"] < 10
    assert 2**26 < session["peak_memory_bytes"] < memory_bytes()  # torch alone takes more than 64 MB
    assert session["processor"]


def test_the_defaults_are_those_of_all_settings(trained: Path, command: Command) -> None:
    defaults, settings = read_facts(trained)["defaults"], read_run(trained).settings

    assert set(defaults) == set(settings)
    (page,) = [command("fit", "--help=markdown").out]
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    shown = {name.strip(" `"): value.strip(" `") for name, value in rows}
    common = set(shown) & set(defaults)
    assert len(common) > 50
    assert {name: yaml.safe_load(shown[name]) for name in common} == {name: defaults[name] for name in common}


def test_a_resumed_run_has_the_sessions_of_both_processes(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("fit", "--config", config, "--run_dir", "run")
    assert command(*run, "--trainer.max_steps=4").code == 0
    first = read_facts(Path("run"))

    def interrupt(*_: object) -> None:
        raise InputError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train", interrupt)
        assert command(*run, "--trainer.max_steps=9", "--resume").error == "interrupted"
    assert command(*run, "--trainer.max_steps=9", "--resume").code == 0

    sessions = read_facts(Path("run"))["sessions"]
    assert [one["from_step"] for one in sessions] == [0, 4, 4]
    assert [one.get("error") for one in sessions] == [None, "interrupted", None]
    assert (sessions[0]["to_step"], sessions[2]["to_step"]) == (4, 9)
    assert sessions[0] == first["sessions"][0]
    assert all(one["minutes"] >= 0 for one in sessions)
    assert read_facts(Path("run"))["defaults"] == first["defaults"]  # not the checkpoint's settings


def test_a_run_that_another_config_resumes_has_the_settings_of_that_one(command: Command, config: Path) -> None:
    run = ("--run_dir", "runs/tiny/1", "--trainer.logger=false")
    assert command("fit", "--config", config, *run, "--trainer.max_steps=1").code == 0
    shutil.copy(config, "big.yaml")
    assert command("fit", "--config", "big.yaml", *run, "--trainer.max_steps=2", "--resume").code == 0
    Path("runs/tiny/1/notes.yaml").write_text("!tag")

    record = read_run(Path("runs/tiny/1"))

    assert record.config == Path("runs/tiny/1/big.yaml").absolute()
    assert record.settings["trainer.max_steps"] == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DivergedError("non-finite\nloss"), "non-finite loss"),
        (Stopped(15), "stopped by signal 15"),
        (Terminated(1), "terminated by signal 1"),
        (KeyboardInterrupt(), "interrupted"),
        (FileNotFoundError(2, "No such file", "x.txt"), "x.txt: no such file"),
        (KeyError("a"), "internal error: KeyError"),
        (MachineError("a" * 2000), "a" * 200),
        (MachineError("https://x.org/a.txt?api_key=s3cret: not found"), "https://x.org/a.txt not found"),
        (MachineError("https://me:s3cret@x.org/a@b?key=s3cret&b=1: lost"), "https://x.org/a@b lost"),
        (
            OSError("Max retries exceeded with url: /v1?api_key=s3cret (Caused by ...)"),
            "max retries exceeded with url: /v1 (caused by ...)",
        ),
        (InputError("did you mean x? y@z.org"), "did you mean x? y@z.org"),
    ],
)
def test_what_ended_a_process_is_described_in_one_line_without_secrets(error: BaseException, words: str) -> None:
    assert describe_error(error) == words


def test_the_report_of_a_diverged_run_says_so(command: Command, config: Path) -> None:
    diverging = ("fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1e12", "--evaluate_every=1")

    failed = command(*diverging)
    told = command("report", "run")

    assert (failed.code, told.code) == (3, 0)
    assert failed.error.startswith("non-finite ")
    session = read_facts(Path("run"))["sessions"][0]
    assert session["error"] == failed.error
    page = html.unescape(Path("run/report.html").read_text(encoding="utf-8"))
    what, step = re.findall(r"^(non-finite [\w ]+?) at step (\d+)", failed.error)[0]
    assert f"The run diverged at step {step}: {what}" in page


def test_of_many_sessions_the_first_and_the_last_99_are_kept(command: Command, config: Path) -> None:
    run = ("fit", "--config", config, "--run_dir", "run")
    command(*run, "--trainer.max_steps=2")
    facts = read_facts(Path("run"))
    error = describe_error(MachineError("\U0001f600" * 1000))
    facts["sessions"] = [facts["sessions"][0] | {"from_step": number, "error": error} for number in range(120)]
    Path("run/environment.json").write_text(json.dumps(facts))

    result = command(*run, "--trainer.max_steps=4", "--resume")

    assert result.code == 0
    sessions = read_facts(Path("run"))["sessions"]
    assert [one["from_step"] for one in sessions] == [0, *range(22, 120), 2]
    assert sessions[-1]["to_step"] == 4
    assert Path("run/environment.json").stat().st_size < MAX_BYTES / 2


def test_a_text_whose_name_is_not_utf_8_is_recorded(command: Command, config: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    shutil.copy(STORY, name)

    arguments = ("--trainer.max_steps=1", "--trainer.logger=false", "--data.text", name)
    result = command("fit", "--config", config, "--run_dir", "run", *arguments)

    assert result.code == 0, result.err
    assert read_facts(Path("run"))["text"].startswith(name)


def test_a_damaged_environment_is_written_again(command: Command, config: Path) -> None:
    run = ("fit", "--config", config, "--run_dir", "run")
    command(*run, "--trainer.max_steps=2")
    Path("run/environment.json").write_text("{")

    result = command(*run, "--trainer.max_steps=4", "--resume")

    assert result.code == 0
    name = Path("run/environment.json").absolute()
    assert f"gpt_lightning: warning: {name}: is damaged, not valid JSON; it is written again\n" in result.err
    assert [one["from_step"] for one in read_facts(Path("run"))["sessions"]] == [2]


def test_fit_prints_the_path_of_the_report(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "draw_report", draw_report)

    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")

    assert result.out.splitlines()[-3] == "report      run/report.html"
    assert "warning" not in result.err
    page = Path("run/report.html").read_bytes()
    assert command("report", "run").code == 0
    assert Path("run/report.html").read_bytes() == page
    assert (Path("run/report.html").stat().st_mode & 0o777) == (Path("run/metrics.jsonl").stat().st_mode & 0o777)


@pytest.mark.parametrize(
    ("error", "reason"), [(InputError("x: is\ndamaged"), "x: is damaged"), (KeyError("a"), "KeyError('a')")]
)
def test_a_report_that_fails_is_a_warning_because_the_run_is_complete(
    command: Command, config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(results, "draw_report", draw_report)
    monkeypatch.setattr(results, "write_report", refuse)
    shutil.copytree(trained, "run")
    Path("run/report.html").unlink()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert (result.code, result.out.count("\n")) == (0, 1)
    assert result.err == (
        f"gpt_lightning: warning: the report is not written: {reason}; the run is complete, `report run` tries again\n"
    )


def test_facts_about_a_gpu_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)

    assert processor_name(torch.device("cuda")) == "NVIDIA A10"
    assert peak_memory_bytes(torch.device("cuda")) == 123
