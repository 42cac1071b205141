from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STORY, Result

from gpt_lightning.files import read_rows

Command = Callable[..., Result]


def test_early_stopping_waits_and_resumes_with_more_patience(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1e-30")  # changes no weight

    stopped = command(*arguments, "--early_stopping_patience=2")
    finished = command(*arguments, "--early_stopping_patience=2", "--resume")
    resumed = command(*arguments, "--early_stopping_patience=50", "--resume")

    losses = [row["val_loss"] for row in read_rows(Path("run/metrics.jsonl")) if "val_loss" in row]
    evaluated = stopped.out.count("\nEp ")
    assert (stopped.code, finished.code, resumed.code) == (0, 0, 0)
    assert "Stopping early: the validation loss has not fallen for 2 evaluations." in stopped.out
    assert evaluated == 3
    assert "finished; nothing is left to do" in finished.out
    assert "resumed     after step" in resumed.out
    assert len(losses) > evaluated + 1


@pytest.mark.parametrize(
    "ending",
    ["monitor: train_loss, patience: 1", "monitor: val_loss, patience: 1", "monitor: val_loss, stopping_threshold: 99"],
)
def test_a_run_that_a_callback_ended_is_finished(command: Command, config: Path, ending: str) -> None:
    stopping = f"--trainer.callbacks=[{{class_path: EarlyStopping, init_args: {{{ending}}}}}]"
    arguments = ("--run_dir", "run", stopping, "--model.learning_rate=1", "--evaluate_every=3")
    first = command("fit", "--config", config, *arguments, "--trainer.max_epochs=9")
    before = Path("run/checkpoints/last.ckpt").read_bytes()

    again = command("fit", "--config", config, *arguments, "--trainer.max_epochs=9", "--resume")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert again.out.endswith("run: finished; nothing to do: trainer.max_time or a callback stops it at once\n")
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before


def test_a_run_that_a_callback_ended_resumes_with_more_patience_or_another_text(command: Command, config: Path) -> None:
    def fit(patience: int, *arguments: str) -> int:
        """Return the step at which the run ends."""
        ending = f"monitor: val_loss, patience: {patience}, min_delta: 99"
        stopping = f"--trainer.callbacks=[{{class_path: EarlyStopping, init_args: {{{ending}}}}}]"
        always = ("--run_dir=run", stopping, "--evaluate_every=5", "--trainer.max_epochs=9")
        result = command("fit", "--config", config, *always, *arguments)
        assert result.code == 0, result.err
        return int(read_rows(Path("run/metrics.jsonl"))[-1]["step"])

    assert fit(1) == 10  # the first evaluation is always the best so far
    assert fit(1, "--resume") == 10
    assert fit(2, "--resume") == 15
    Path("other.txt").write_text(STORY.read_text().replace("lamp", "lantern"))
    assert fit(2, "--resume", "--allow_data_change", "--data.text=other.txt") > 15
