"""`verify-resume`: whether an interrupted run of one's own config ends as an uninterrupted one does.

    python -m gpt_lightning verify-resume --config FILE [settings of fit]

Trains 6 optimizer steps in 2 epochs twice, with a checkpoint after each step: once in one piece, and once
killed (SIGKILL) while it trains, twice, and resumed. Then compares all weights, optimizer and random states,
metrics and samples. Everything else is as the config says, but that a warm-up is at most 3 steps long and
losses are evaluated on 2 batches and logged at every step. Both runs are removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpt_lightning.checkpoints.compare import compare_runs
from gpt_lightning.cli.arguments import was_passed
from gpt_lightning.cli.config_files import read_config
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import read_rows
from gpt_lightning.runs.folder import RUNS

STEPS_PER_EPOCH = 3
EPOCHS = 2
KILLED_AFTER = (2, 4)
OWNED = ("--run_dir", "--resume", "--save_every", "--save_minutes")


def run(arguments: list[str]) -> None:
    """`verify-resume --config FILE [settings of fit]`."""
    if not arguments:
        raise InputError("verify-resume needs --config FILE")
    if arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    for name in OWNED:
        if was_passed(arguments, name):
            raise InputError(f"verify-resume decides {name} itself")
    accumulated = _read_setting(arguments, "trainer", "accumulate_grad_batches", 1)
    warmup_steps = _read_setting(arguments, "model", "warmup_steps", 0)
    overrides = [
        f"--trainer.limit_train_batches={STEPS_PER_EPOCH * accumulated}",
        f"--trainer.max_epochs={EPOCHS}",
        "--trainer.max_steps=-1",
        "--trainer.max_time=null",
        "--trainer.limit_val_batches=2",
        f"--model.warmup_steps={min(warmup_steps, STEPS_PER_EPOCH)}",
        "--evaluate_batches=2",
        "--evaluate_every=2",
        "--trainer.log_every_n_steps=1",
        "--save_every=1",
    ]
    RUNS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-", dir=RUNS))
    try:
        straight, interrupted = folder / "straight", folder / "interrupted"
        start = time.monotonic()
        _finish(_start([*arguments, *overrides], straight), straight)
        steps = [row["step"] for row in read_rows(straight / "metrics.jsonl")][-1]
        print(f"straight     {steps} steps in {time.monotonic() - start:.0f} s", flush=True)
        (straight / "checkpoints" / "prev.ckpt").unlink(missing_ok=True)
        start = time.monotonic()
        killed = []
        for step in KILLED_AFTER:
            if step < steps:
                killed.append(_kill_after(step, _start([*arguments, *overrides], interrupted), interrupted))
        _finish(_start([*arguments, *overrides], interrupted), interrupted)
        if not any(killed):
            raise InputError(f"its {steps} steps were over before they could be interrupted; take a larger config")
        after = " and ".join(str(step) for step in killed if step)
        print(f"interrupted  killed after steps {after}, in {time.monotonic() - start:.0f} s", flush=True)
        if found := compare_runs(straight, interrupted):
            raise MachineError(f"a resumed run is not the straight one: {found}")
        rows = len(read_rows(straight / "metrics.jsonl"))
        print(f"identical    weights, optimizer and random states, {rows} rows of metrics, samples")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(RUNS.iterdir()):
            RUNS.rmdir()


def _read_setting(arguments: list[str], section: str, name: str, default: int) -> int:
    """A setting as `fit` would take it: typed, else of the last YAML file that has it."""
    value = default
    typed = None
    for i, argument in enumerate(arguments):
        option, has_value, given = argument.partition("=")
        given = given if has_value else "".join(arguments[i + 1 : i + 2])
        if option in ("--config", "-c"):
            value = read_config(given)[0].get(section, {}).get(name, value)
        elif option == f"--{section}.{name}":
            typed = given
    try:
        return int(value if typed is None else typed)
    except (TypeError, ValueError):
        raise InputError(f"{section}.{name} must be an int, not {typed or value!r}") from None


def _start(arguments: list[str], run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", PROGRAM, "fit", *arguments, "--resume", "--run_dir", str(run)]
    with open(_printed(run), "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _printed(run: Path) -> Path:
    """Where what a run prints goes: beside its folder."""
    return run.with_suffix(".txt")


def _finish(process: subprocess.Popen[bytes], run: Path) -> None:
    """Waits for a run to end. Raises `InputError` with its error line where it fails."""
    try:
        process.wait()
    except BaseException:
        _kill(process)
        raise
    if process.returncode != 0:
        printed = _printed(run).read_text(errors="replace")
        errors = [line for line in printed.splitlines() if line.startswith(f"{PROGRAM}: error: ")]
        reason = errors[-1].removeprefix(f"{PROGRAM}: error: ") if errors else f"exit code {process.returncode}"
        raise InputError(f"the run itself fails: {reason}")


def _kill_after(step: int, process: subprocess.Popen[bytes], run: Path) -> int | None:
    """Kills a run once it has logged a step; returns the step that it had come to, None if it ended before."""
    try:
        while process.poll() is None:
            rows = read_rows(run / "metrics.jsonl")
            if rows and rows[-1]["step"] >= step and "train_loss" in rows[-1]:
                break
            time.sleep(0.005)
    finally:
        _kill(process)
    if process.returncode != -signal.SIGKILL:
        _finish(process, run)
        return None
    return int(read_rows(run / "metrics.jsonl")[-1]["step"])


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
