"""Runs of several processes against one process with the same global batches."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Result

from gpt_lightning.files import read_rows
from gpt_lightning.training.distributed import gathered

Command = Callable[..., Result]
STEPS = 20
SETTINGS = (
    "data.global_batch_size=8",
    "data.batch_size=2",
    "model.n_layers=2",
    "model.drop_rate=0.0",
    "model.warmup_steps=4",
    "model.decay_matrices_only=true",
    "trainer.gradient_clip_val=0.5",
    f"trainer.max_steps={STEPS}",
    "trainer.logger=false",
    "trainer.enable_progress_bar=false",
    "evaluate_every=7",
)


def arguments(config: Path, processes: int, strategy: str, *settings: str) -> list[str]:
    devices = (f"trainer.devices={processes}", f"trainer.strategy={strategy}")
    return ["fit", "--config", str(config), *(f"--{one}" for one in (*SETTINGS, *devices, *settings))]


def fit(config: Path, processes: int, strategy: str, *settings: str) -> None:
    """Run `fit`; Lightning starts up to 2 processes, torchrun more."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    program = [sys.executable, *(launcher if processes > 2 else []), "-m", "gpt_lightning"]
    program += arguments(config, processes, strategy, *settings)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "gpt_lightning: error" not in done.stderr
    assert "Warning" not in done.stderr


def losses(folder: str) -> dict[tuple[int, str], float]:
    names = ("train_loss", "gradient_norm", "val_loss", "train_eval_loss")
    rows = read_rows(Path(folder) / "metrics.jsonl")
    return {(row["step"], name): row[name] for row in rows for name in names if name in row}


def test_split_weights_train_like_one_process_and_give_the_same_checkpoints(command: Command, config: Path) -> None:
    tied = ("model.tie_weights=true", "model.init=gpt2", "model.min_learning_rate=1e-4")
    assert command(*arguments(config, 1, "auto", *tied, "run_dir=one")).code == 0

    fit(config, 2, "fsdp", *tied, "run_dir=split")

    assert losses("split") == pytest.approx(losses("one"), abs=1e-5)
    last, expected = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("split", "one"))
    assert last.keys() == expected.keys()
    sizes = [Path(f"{run}/checkpoints/best.ckpt").stat().st_size for run in ("split", "one")]
    assert sizes[0] == pytest.approx(sizes[1], abs=2000)  # the tied head is not stored twice
    torch.testing.assert_close(last["state_dict"], expected["state_dict"], rtol=0, atol=1e-5)
    (optimizer,), (other,) = last["optimizer_states"], expected["optimizer_states"]
    assert optimizer["param_groups"] == other["param_groups"]
    torch.testing.assert_close(optimizer["state"], other["state"], rtol=0, atol=1e-5)
    samples = [read_rows(Path(run) / "samples.jsonl") for run in ("split", "one")]
    assert [row["completion"] for row in samples[0]] == [row["completion"] for row in samples[1]]


def test_a_run_is_resumed_by_another_number_of_processes(command: Command, config: Path) -> None:
    assert command(*arguments(config, 1, "auto", "run_dir=whole")).code == 0
    assert command(*arguments(config, 1, "auto", "run_dir=parts", "trainer.max_steps=7")).code == 0

    fit(config, 2, "ddp", "run_dir=parts", "resume")

    assert losses("parts") == pytest.approx(losses("whole"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "tolerance", "settings"),
    [
        (2, 1e-5, ("data.batch_size=1",)),  # 4 batches accumulated
        (2, 1e-5, ("model.activation_checkpointing=true",)),
        (4, 1e-5, ("model.tie_weights=true", "model.init=gpt2")),
        (2, 1e-2, ("trainer.precision=bf16-mixed",)),
    ],
)
def test_split_weights_with_other_settings(
    command: Command, config: Path, processes: int, tolerance: float, settings: tuple[str, ...]
) -> None:
    assert command(*arguments(config, 1, "auto", *settings, "run_dir=one")).code == 0

    fit(config, processes, "fsdp", *settings, "run_dir=split")

    assert losses("split") == pytest.approx(losses("one"), abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_passes_from_1_to_2_to_4_to_1_processes(command: Command, config: Path, strategy: str) -> None:
    settings = ("evaluate_every=5",)
    assert command(*arguments(config, 1, "auto", *settings, "run_dir=whole")).code == 0

    for steps, processes in ((5, 1), (10, 2), (15, 4), (STEPS, 1)):
        fit(config, processes, strategy, *settings, "run_dir=parts", "resume", f"trainer.max_steps={steps}")

    assert losses("parts") == pytest.approx(losses("whole"), abs=1e-5)


@pytest.mark.slow
def test_without_global_batch_size_a_run_keeps_its_number_of_processes(command: Command, config: Path) -> None:
    own = [one for one in arguments(config, 1, "auto", "run_dir=run") if not one.startswith("--data.global")]
    assert command(*own, "--trainer.max_steps=6").code == 0

    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--resume"]
    done = subprocess.run([sys.executable, "-m", "gpt_lightning", *own, *more], capture_output=True, text=True)

    assert done.returncode == 2
    assert (
        "last.ckpt: its batches had 2 windows on all processes together, now 4; resume it with as many" in done.stderr
    )


@pytest.mark.slow
def test_a_learning_rate_finder_works_on_split_weights(config: Path) -> None:
    finder = "{class_path: LearningRateFinder, init_args: {num_training_steps: 20, early_stop_threshold: 1.5}}"
    fit(config, 2, "fsdp", "run_dir=run", f"trainer.callbacks=[{finder}]", "trainer.max_steps=6")

    assert max(step for step, _ in losses("run")) == 6


@pytest.mark.slow
def test_split_weights_resume_exactly_with_dropout(config: Path) -> None:
    settings = ("evaluate_every=5", "model.drop_rate=0.2")
    fit(config, 2, "fsdp", *settings, "run_dir=whole")

    for steps in (10, STEPS):
        fit(config, 2, "fsdp", *settings, "run_dir=part", "resume", f"trainer.max_steps={steps}")

    assert losses("part") == losses("whole")
    part, whole = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("part", "whole"))
    torch.testing.assert_close(part["state_dict"], whole["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(part["optimizer_states"], whole["optimizer_states"], rtol=0, atol=0)


def test_a_batch_that_does_not_divide_the_global_batch_is_one_line(command: Command, config: Path) -> None:
    result = command(*arguments(config, 1, "auto", "data.global_batch_size=7"))

    assert result.code == 2
    message = "data.global_batch_size (7) must be a multiple of data.batch_size (2) times the number of processes (1)"
    assert message in result.error


def start_hosts(config: Path, *settings: str, of_second: tuple[str, ...] = ()) -> list[subprocess.Popen[str]]:
    """Start the two processes of a run as torchrun does on two machines, in the folders host0 and host1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        launcher = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank}
        launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "run"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in launcher.items()}
        own = [f"--{one}" for one in (*SETTINGS, "run_dir=run", *settings, *(of_second if rank else ()))]
        program = [sys.executable, "-m", "gpt_lightning", "fit", "--config", str(config), *own]
        Path(f"host{rank}").mkdir(exist_ok=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(program, cwd=f"host{rank}", env=environment, **pipes))  # type: ignore[call-overload]
    return processes


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for processes, and return their exit codes and error messages."""
    outputs = [process.communicate(timeout=100) for process in processes]
    return [(process.returncode, errors) for process, (_, errors) in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_hosts_that_share_no_folder_resume_a_run_of_the_first(command: Command, config: Path) -> None:
    for steps in (7, STEPS):
        assert end(start_hosts(config, "resume", f"trainer.max_steps={steps}")) == [(0, ""), (0, "")]

    assert os.listdir("host1") == []
    assert command(*arguments(config, 1, "auto", "run_dir=one")).code == 0
    found = losses("host0/run")
    assert {key: found[key] for key in losses("one")} == pytest.approx(losses("one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "of_second", "message"),
    [
        (("data.text=none.txt",), (), "none.txt: no such file"),
        ((), ("model.learning_rate=0.5",), "rank 1 has model.learning_rate 0.5, rank 0 has 0.01"),
        ((), ("data.text=none.txt",), "rank 1 has data.text none.txt, rank 0 has "),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_line(
    config: Path, settings: tuple[str, ...], of_second: tuple[str, ...], message: str
) -> None:
    (code, error), other = end(start_hosts(config, *settings, of_second=of_second))

    assert code == 2
    assert error.startswith(f"gpt_lightning: error: {message}")
    assert error.count("\n") == 1
    assert other == (1, "")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_other_with_one_line(config: Path, killed: int, strategy: str) -> None:
    processes = start_hosts(config, f"trainer.strategy={strategy}", "trainer.max_steps=100000", "save_every=2")
    while not Path("host0/run/checkpoints/last.ckpt").exists():
        time.sleep(0.1)
        assert processes[0].poll() is None
    processes[killed].kill()

    (_, _), (code, error) = end([processes[killed], processes[1 - killed]])

    assert code == 1
    assert error.startswith("gpt_lightning: error: lost the connection to another process, which may have failed (")
    assert error.endswith("); --resume continues the run\n")
    assert end(start_hosts(config, f"trainer.strategy={strategy}", "resume")) == [(0, ""), (0, "")]


def test_gathered_tensors_are_freed_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    gc.disable()
    try:
        state = gathered({"state": {0: {"exp_avg": torch.ones(3), "step": 1}}})
        assert state["state"][0]["exp_avg"].tolist() == [1, 1, 1]
        reference = weakref.ref(state["state"][0]["exp_avg"])
        del state
        assert reference() is None
    finally:
        gc.enable()
