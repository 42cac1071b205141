"""`fit` judges a run from its folder, whenever and however it ends."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import STORY, Result, tiny_settings

from gpt_lightning.errors import MachineError
from gpt_lightning.evaluation.verdict import Verdict, judge
from gpt_lightning.runs.records import read_run
from gpt_lightning.training import results
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.config import ExpectedConfig

Command = Callable[..., Result]
draw_figure, draw_report = results.draw_figure, results.draw_report  # before a fixture replaces them
EXPECTED = {
    "sha256": hashlib.sha256(STORY.read_bytes()).hexdigest(),
    "steps": 3,
    "parameters": 12512,
    "untrained_val_loss": [5.0, 6.5],
    "best_val_loss": [3.0, 5.4],
    "last_train_eval_loss": [3.0, 5.4],
}
KEYS = [
    *("steps", "epochs", "minutes", "untrained", "best", "last", "turn", "memorizing_steps", "gap_at_best"),
    *("gap_at_last", "baselines", "copied", "expected", "advice", "verdict"),
]


def summary(run: Path | str = "run") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(run, "summary.json").read_text())
    return content


def without_minutes(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "minutes"}


def test_the_summary_follows_from_the_tables_of_the_run(trained: Path) -> None:
    verdict = judge(read_run(trained))

    assert verdict is not None
    assert summary(trained) == verdict.to_dict()
    assert list(summary(trained)) == [one.name for one in fields(Verdict)] == KEYS
    assert (summary(trained)["steps"], summary(trained)["epochs"], summary(trained)["best"]["step"]) == (15, 3.0, 15)


def test_the_verdict_is_printed_before_the_next_command(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=3")

    lines = result.out.splitlines()
    words = summary()["verdict"]
    assert lines[-6] == f"verdict     {words[0]}"
    assert lines[-5:-3] == [f"            {one}" for one in words[1:]]
    assert lines[-3] == f"advice      {summary()['advice']}"
    assert lines[-2].startswith("best.ckpt is of step 3 ")


def test_baselines_and_copied_tokens_of_the_folder_are_part_of_it(
    command: Command, config: Path, trained: Path
) -> None:
    shutil.copytree(trained, "run")
    Path("run/summary.json").unlink()
    Path("run/baselines.json").write_text('{"uniform": 5.549, "unigram": 3.0, "bigram": 2.0}')
    table = Path("run/samples.jsonl")
    rows = [json.loads(line) | {"copied": {"tokens": 2, "of": 8}} for line in table.read_text().splitlines()]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert summary()["baselines"] == {"uniform": 5.549, "unigram": 3.0, "bigram": 2.0}
    assert summary()["copied"] == 0.25
    assert (
        " is better than the counting model uniform (5.549), worse than unigram (3.000) and bigram (2.000)\n"
        in result.out
    )
    assert "; 25 % of the tokens of the last samples are copied\n" in result.out


def test_a_stopped_run_has_no_verdict_until_it_ends(
    command: Command, config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=4")
    assert summary()["steps"] == 4
    Path("run/report.html").write_text("has the verdict")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_batch_start", lambda *_: signal.raise_signal(signal.SIGTERM))
        patch.setattr(Progress, "on_train_batch_end", lambda *_: None)

        stopped = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert stopped.code == 143
    assert not Path("run/summary.json").exists()  # that of step 4 is outdated
    assert not Path("run/report.html").exists()
    shutil.rmtree("run")
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=4")
    command("fit", "--config", config, "--run_dir", "run", "--resume")
    assert without_minutes(summary()) == without_minutes(summary(trained))


def test_a_finished_run_that_was_killed_before_its_verdict_gets_it(
    command: Command, config: Path, trained: Path
) -> None:
    shutil.copytree(trained, "run")
    Path("run/summary.json").unlink()

    first = command("fit", "--config", config, "--run_dir", "run", "--resume")
    again = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert summary() == summary(trained)
    assert first.out.startswith(f"verdict     {summary()['verdict'][0]}\n")
    assert again.out.startswith("run: finished; nothing is left to do")


def test_a_resumed_run_without_a_step_left_keeps_its_verdict_and_report(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "draw_report", draw_report)
    arguments = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_time=00:00:00:01")
    command(*arguments, "--trainer.max_epochs=100000")
    before = summary()

    result = command(*arguments, "--trainer.max_epochs=100000", "--resume")

    assert "finished; nothing to do: trainer.max_time or a callback stops it at once" in result.out
    assert summary() == before
    assert before["verdict"][0] in html.unescape(Path("run/report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("error", "reason"), [(MachineError("disk:\nfull"), "disk: full"), (KeyError("a"), "KeyError('a')")]
)
def test_a_verdict_that_fails_is_a_warning_because_the_run_is_complete(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    arguments = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr("gpt_lightning.training.summary.judge", refuse)
        result = command(*arguments)
    again = command(*arguments, "--resume")

    assert result.code == 0
    assert "verdict" not in result.out
    assert result.out.splitlines()[-2].startswith("best.ckpt is of step 2 ")
    assert result.err.splitlines()[-1] == (
        f"gpt_lightning: warning: the verdict is not written: {reason}; the run is complete, `fit --resume` tries again"
    )
    assert again.out.startswith(f"verdict     {summary()['verdict'][0]}\n")


def test_a_damaged_file_of_the_folder_is_named_instead_of_a_verdict(
    command: Command, config: Path, trained: Path
) -> None:
    shutil.copytree(trained, "run")
    Path("run/summary.json").unlink()
    Path("run/baselines.json").write_text('{"bigram": "low"}')

    refused = command("fit", "--config", config, "--run_dir", "run", "--resume")
    Path("run/baselines.json").unlink()
    again = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert (refused.code, "verdict" in refused.out) == (0, False)
    assert refused.err == (
        "gpt_lightning: warning: the verdict is not written: run/baselines.json: bigram is "
        "damaged, it must be a finite number; remove it to continue without it; the run is complete, "
        "`fit --resume` tries again\n"
    )
    assert again.out.startswith("verdict     ")
    assert summary()["baselines"] is None


RESULTS = ("loss.pdf", "loss.png", "summary.json", "report.html")


@pytest.fixture
def unjudged(trained: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete run without its figure, verdict and report, which are drawn."""
    monkeypatch.setattr(results, "draw_figure", draw_figure)
    monkeypatch.setattr(results, "draw_report", draw_report)
    shutil.copytree(trained, "run", ignore=shutil.ignore_patterns(*RESULTS))
    return in_tmp / "run"


def test_figure_verdict_and_report_warn_of_damaged_lines_once(command: Command, config: Path, unjudged: Path) -> None:
    for name in ("metrics", "samples"):
        with open(unjudged / f"{name}.jsonl", "a") as file:
            file.write("nonsense\n")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert [line.partition(" skipped")[0] for line in result.err.splitlines()] == [
        "gpt_lightning: warning: run/metrics.jsonl: 1 damaged line is",
        "gpt_lightning: warning: run/samples.jsonl: 1 damaged line is",
    ]
    assert all((unjudged / name).exists() for name in RESULTS)


def test_a_damaged_file_is_named_once_instead_of_figure_verdict_and_report(
    command: Command, config: Path, unjudged: Path
) -> None:
    (unjudged / "environment.json").write_text("{")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert result.err == (
        "gpt_lightning: warning: the loss figure and the verdict and the report are not written: "
        "run/environment.json: is damaged, not valid JSON; remove it to continue without it; "
        "the run is complete, `fit --resume` tries again\n"
    )
    assert not any((unjudged / name).exists() for name in RESULTS)


def test_a_file_in_the_way_of_the_figure_is_named(command: Command, config: Path, unjudged: Path) -> None:
    (unjudged / "loss.pdf").mkdir()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert result.err == (
        "gpt_lightning: warning: the loss figure is not written: run/loss.pdf: is a directory; "
        "the run is complete, `fit --resume` tries again\n"
    )
    assert [name for name in RESULTS if (unjudged / name).is_file()] == ["summary.json", "report.html"]


def test_a_run_without_recorded_evaluations_has_no_figure_and_no_verdict(
    command: Command, config: Path, unjudged: Path
) -> None:
    (unjudged / "metrics.jsonl").unlink()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert result.err == (
        "gpt_lightning: warning: the loss figure is not written: run: has no evaluation after the first optimizer "
        "step; the run is complete, `fit --resume` tries again\n"
    )
    assert [name for name in RESULTS if (unjudged / name).exists()] == ["report.html"]


def test_a_run_of_one_step_has_a_verdict(command: Command, config: Path) -> None:
    limits = ("--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=5")
    result = command("fit", "--config", config, "--run_dir", "run", *limits)

    assert result.code == 0, result.err
    assert (summary()["minutes"], summary()["best"]["step"], summary()["turn"]["step"]) == (None, 1, None)
    assert "at step 1, the only evaluation\n" in result.out


def test_check_writes_no_verdict(command: Command, config: Path) -> None:
    result = command("check", "--config", config)

    assert result.code == 0
    assert "verdict" not in result.out
    assert not list(Path().rglob("summary.json"))


# ---- the ranges that a config expects


@pytest.fixture
def described(in_tmp: Path) -> Path:
    """A config of three steps that knows its losses."""
    settings = tiny_settings() | {"expected": EXPECTED}
    settings["trainer"]["max_steps"] = 3
    Path("described.yaml").write_text(yaml.safe_dump(settings))
    return Path("described.yaml")


def test_a_run_is_compared_with_the_ranges_of_its_config(command: Command, described: Path) -> None:
    inside = command("fit", "--config", described, "--run_dir", "run", "--sampling.max_new_tokens=2")
    again = command("fit", "--config", "run/described.yaml", "--run_dir", "again", "--expected.best_val_loss=[1, 2]")

    found = summary()["expected"]
    assert list(found) == ["untrained_val_loss", "best_val_loss", "last_train_eval_loss"]
    assert found["best_val_loss"] == {"range": [3.0, 5.4], "value": summary()["best"]["val_loss"], "inside": True}
    assert "\n            losses as expected of this config\n" in inside.out
    assert summary("again")["expected"]["best_val_loss"]["inside"] is False
    assert "\nadvice      check the installation (pip install " in again.out


@pytest.mark.parametrize(
    "changed",
    [
        "--model.learning_rate=0.02",
        "--trainer.max_steps=2",
        "--seed_everything=1",
        "--data.text=other.txt",
        "--trainer.precision=bf16-true",
        "--config=overlay.yaml",
    ],
)
def test_a_changed_run_is_not_compared(command: Command, described: Path, changed: str) -> None:
    Path("other.txt").write_text(STORY.read_text() + ".")
    Path("overlay.yaml").write_text("model: {drop_rate: 0.2}\n")

    result = command("fit", "--config", described, "--run_dir", "run", changed)

    assert result.code == 0, result.err
    assert summary()["expected"] is None


@pytest.mark.parametrize(
    "harmless", ["--trainer.precision=64-true", f"--data.text={STORY}", "--config=harmless.yaml", "--save_every=1"]
)
def test_settings_that_keep_the_losses_keep_the_comparison(command: Command, described: Path, harmless: str) -> None:
    Path("harmless.yaml").write_text("trainer: {logger: false}\nprompt: [It]\n")

    command("fit", "--config", described, "--run_dir", "run", harmless)

    assert all(one["inside"] for one in summary()["expected"].values())


def test_ranges_apply_to_one_text_and_one_size() -> None:
    expected = ExpectedConfig("a" * 64, 90, 1000, best_val_loss=[5.9, 6.3])

    assert expected.ranges == {"best_val_loss": [5.9, 6.3]}
    assert expected.applies_to("a" * 64, 90, 1000)
    assert not expected.applies_to("b" * 64, 90, 1000)
    assert not expected.applies_to("a" * 64, 91, 1000)
    assert not expected.applies_to("a" * 64, 90, 1001)
    assert not ExpectedConfig().applies_to("a" * 64, 90, 1000)
