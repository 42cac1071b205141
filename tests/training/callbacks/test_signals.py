"""A run that is stopped by a signal and resumed equals an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import STORY, Result
from lightning.pytorch import Trainer

from gpt_lightning.checkpoints.compare import compare_runs, first_difference
from gpt_lightning.data import token_cache
from gpt_lightning.errors import STOP_SIGNALS
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.signals import StopOnSignal
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]


@pytest.fixture
def raise_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that raises signals at the start of a batch, counted from 0."""

    def at(batch: int, *numbers: int) -> None:
        seen = iter(range(10_000))
        start = Progress.on_train_batch_start

        def signalling(self: Progress, *arguments: Any) -> None:
            start(self, *arguments)
            if next(seen) == batch:
                for number in numbers:
                    signal.raise_signal(number)

        monkeypatch.setattr(Progress, "on_train_batch_start", signalling)

    return at


@pytest.mark.parametrize(
    ("number", "batch", "step"),
    [
        (signal.SIGTERM, 0, 1),
        (signal.SIGINT, 1, 2),
        (signal.SIGTERM, 4, 5),
        (signal.SIGINT, 12, 13),
        (signal.SIGHUP, 3, 4),
        (signal.SIGXCPU, 7, 8),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_run(
    command: Command, config: Path, trained: Path, raise_at: Callable[..., None], number: int, batch: int, step: int
) -> None:
    """Stop before, at and after an evaluation, and at the end of an epoch."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    raise_at(batch, number)

    stopped = command("fit", "--config", config, "--run_dir", "run")

    assert stopped.code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    resume = f"python -m gpt_lightning fit --config {config} --run_dir run --resume"
    assert stopped.out.endswith(f"Stopped after step {step}, which is saved. To resume:\n  {resume}\n")
    assert torch.load("run/checkpoints/last.ckpt")["global_step"] == step
    again = command("fit", "--config", config, "--run_dir", "run", "--resume")
    assert again.code == 0, again.err
    assert compare_runs(Path("run"), trained) is None


def test_sighup_and_sigterm_of_one_ending_session_stop_once(
    command: Command, config: Path, raise_at: Callable[..., None]
) -> None:
    raise_at(3, signal.SIGHUP, signal.SIGTERM)

    stopped = command("fit", "--config", config, "--run_dir", "run")

    assert stopped.code == 143
    assert "Stopped after step 4, which is saved." in stopped.out


def test_nohup_keeps_a_run_from_stopping(command: Command, config: Path, raise_at: Callable[..., None]) -> None:
    raise_at(3, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=6")

    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
    assert result.code == 0
    assert "Training completed" in result.out


def test_a_signal_between_accumulated_batches_waits_for_the_optimizer_step(
    command: Command, config: Path, raise_at: Callable[..., None]
) -> None:
    arguments = ("fit", "--config", config, "--data.batch_size=28", "--trainer.accumulate_grad_batches=3")
    assert command(*arguments, "--run_dir", "whole").code == 0
    raise_at(3, signal.SIGTERM)

    stopped = command(*arguments, "--run_dir", "run")

    assert (stopped.code, torch.load("run/checkpoints/last.ckpt")["global_step"]) == (143, 2)
    assert command(*arguments, "--run_dir", "run", "--resume").code == 0
    assert compare_runs(Path("run"), Path("whole")) is None


def test_a_signal_to_the_process_group_does_not_stop_the_data_workers(
    command: Command, config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: set[int] = set()
    start = Progress.on_train_batch_start

    def signalling(self: Progress, *arguments: Any) -> None:
        start(self, *arguments)
        if not workers:
            workers.update(child.pid for child in multiprocessing.active_children() if child.pid)
            for number in (signal.SIGTERM, signal.SIGINT):
                for worker in workers:
                    os.kill(worker, number)

    monkeypatch.setattr(Progress, "on_train_batch_start", signalling)

    result = command("fit", "--config", config, "--run_dir", "run", "--data.num_workers=2")

    assert len(workers) >= 2
    assert result.code == 0, result.err
    left, right = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (Path("run"), trained))
    assert first_difference(left, right, "weights") is None


def test_a_signal_in_the_last_step_lets_the_run_finish(
    command: Command, config: Path, trained: Path, raise_at: Callable[..., None]
) -> None:
    raise_at(14, signal.SIGTERM)

    result = command("fit", "--config", config, "--run_dir", "run")

    assert result.code == 0
    assert "Training completed" in result.out
    assert compare_runs(Path("run"), trained) is None


def test_a_second_ctrl_c_stops_immediately(command: Command, config: Path, raise_at: Callable[..., None]) -> None:
    raise_at(3, signal.SIGINT, signal.SIGINT)

    result = command("fit", "--config", config, "--run_dir", "run", "--save_every=2")

    assert (result.code, result.error) == (130, "interrupted")
    assert torch.load("run/checkpoints/last.ckpt")["global_step"] == 2


def test_slurm_preemption_saves_and_requeues_the_job(
    command: Command, config: Path, raise_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    scontrol = in_tmp / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {in_tmp}/asked\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    raise_at(3, signal.SIGUSR1)

    result = command("fit", "--config", config, "--run_dir", "run")

    assert result.code == 128 + signal.SIGUSR1
    assert Path("asked").read_text() == "requeue 17\n"
    assert torch.load("run/checkpoints/last.ckpt")["global_step"] == 4
    scontrol.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    raise_at(0, signal.SIGUSR1)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    refused = command("fit", "--config", config, "--run_dir", "run", "--resume")
    assert refused.code == 128 + signal.SIGUSR1
    assert "warning: SLURM did not requeue job 5_2 (no such job)" in refused.err


@pytest.mark.parametrize(("own", "others", "expected"), [(0, False, 0), (2, True, 2), (0, True, 15)])
def test_all_ranks_stop_if_one_was_asked_to(own: int, others: bool, expected: int) -> None:
    decided: list[tuple[bool, bool]] = []

    def decide(decision: bool, all: bool = True) -> bool:  # noqa: A002  Lightning's name
        decided.append((decision, all))
        return decision or others

    stop = StopOnSignal()
    stop.signal_number = own
    strategy = SimpleNamespace(reduce_boolean_decision=decide)

    assert stop.stop_requested(cast(Trainer, SimpleNamespace(world_size=2, strategy=strategy))) == (expected != 0)
    assert stop.signal_number == expected
    assert decided == [(own != 0, False)]


def test_a_signal_while_the_ranks_decide_waits_for_the_next_step() -> None:
    stop = StopOnSignal()

    def decide(decision: bool, all: bool = True) -> bool:  # noqa: A002  Lightning's name
        stop.signal_number = 15
        return decision

    trainer = cast(Trainer, SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce_boolean_decision=decide)))
    assert [stop.stop_requested(trainer), stop.stop_requested(trainer)] == [False, True]


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`"
)  # Lightning warns when it restores the weights
@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_signal_during_the_learning_rate_search_leaves_no_files(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    finder = "--trainer.callbacks=[{class_path: LearningRateFinder, init_args: {num_training_steps: 8}}]"
    step, kept = GPTModule.training_step, []

    def signalling(self: GPTModule, *arguments: Any) -> Any:
        kept.append([str(path.parent) for path in Path().rglob(".lr_find_*.ckpt")])
        if len(kept) == 3:
            signal.raise_signal(number)
        return step(self, *arguments)

    monkeypatch.setattr(GPTModule, "training_step", signalling)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    result = command("fit", "--config", config, "--run_dir", "run", finder)
    signal.signal(signal.SIGINT, before)

    assert result.code == 128 + number
    assert result.err.endswith(f"gpt_lightning: error: {word}\n")  # after Lightning's progress bar
    assert kept == [["run"]] * 3
    assert os.listdir() == ["tiny.yaml"]


def test_files_of_a_killed_learning_rate_search_are_deleted(command: Command, config: Path) -> None:
    Path("run").mkdir()
    for name in (".lr_find_ab-12.ckpt", ".lr_find_ab-12.ckpt.tmp-99"):
        Path("run", name).write_bytes(b"half")

    assert command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=1").code == 0
    assert list(Path("run").glob(".lr_find*")) == []


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_while_documents_are_encoded_leaves_no_files(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_tokens = token_cache._write_tokens

    def terminated(folder: Path, *arguments: Any) -> Any:
        write_tokens(folder, *arguments)
        assert list(Path("data/cache").iterdir()) == [folder]
        signal.raise_signal(number)

    monkeypatch.setattr(token_cache, "_write_tokens", terminated)
    Path("docs").mkdir()
    for name in "ab":
        Path("docs", f"{name}.txt").write_text(STORY.read_text())

    before = signal.getsignal(number)
    result = command("fit", "--config", config, "--data.text", "docs")

    assert (result.code, result.err) == (128 + number, "gpt_lightning: error: terminated\n")
    assert sorted(os.listdir()) == ["docs", "tiny.yaml"]
    assert signal.getsignal(number) == before
