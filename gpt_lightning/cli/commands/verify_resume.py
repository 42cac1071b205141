"""Check that a killed and resumed run of a config is bit-identical to an uninterrupted one.

    python -m gpt_lightning verify-resume --config FILE [settings of fit]

Trains the config twice for 6 optimizer steps in 2 epochs, with a checkpoint after each step: the reference run without
interruption, the other one killed (SIGKILL) twice and resumed. Then compares all weights, optimizer and random states,
metrics and samples. The warm-up is cut to at most 3 steps, and losses are evaluated on 2 batches and logged at every
step; all other settings are the config's. Both runs are deleted afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

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
    """Run `verify-resume` with these arguments."""
    if not arguments:
        raise InputError("verify-resume needs --config FILE")
    if arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    for name in OWNED:
        if was_passed(arguments, name):
            raise InputError(f"verify-resume sets {name} itself; leave it out")
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
        reference, interrupted = folder / "reference", folder / "interrupted"
        start = time.monotonic()
        _finish(_start([*arguments, *overrides], reference), reference)
        steps = [row["step"] for row in read_rows(reference / "metrics.jsonl")][-1]
        print(f"reference    {steps} steps in {time.monotonic() - start:.0f} s", flush=True)
        (reference / "checkpoints" / "prev.ckpt").unlink(missing_ok=True)
        start = time.monotonic()
        killed = []
        for step in KILLED_AFTER:
            if step < steps:
                killed.append(_kill_after(step, _start([*arguments, *overrides], interrupted), interrupted))
        _finish(_start([*arguments, *overrides], interrupted), interrupted)
        if not any(killed):
            raise InputError(f"the {steps} steps finished before the run could be killed; use a larger model or batch")
        after = " and ".join(str(step) for step in killed if step)
        print(f"interrupted  killed after steps {after}, in {time.monotonic() - start:.0f} s", flush=True)
        if found := compare_runs(reference, interrupted):
            raise MachineError(f"the resumed run differs from the reference run: {found}")
        rows = len(read_rows(reference / "metrics.jsonl"))
        print(f"identical    weights, optimizer and random states, {rows} rows of metrics, samples")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(RUNS.iterdir()):
            RUNS.rmdir()


def _read_setting(arguments: list[str], section: str, name: str, default: int) -> int:
    """Return a setting as `fit` would read it: from the command line, else from the last YAML file that has it."""
    value = default
    passed = None
    for i, argument in enumerate(arguments):
        option, has_value, given = argument.partition("=")
        given = given if has_value else "".join(arguments[i + 1 : i + 2])
        if option in ("--config", "-c"):
            value = read_config(given)[0].get(section, {}).get(name, value)
        elif option == f"--{section}.{name}":
            passed = given
    try:
        return int(value if passed is None else passed)
    except (TypeError, ValueError):
        raise InputError(f"{section}.{name} must be an int, not {passed or value!r}") from None


def _start(arguments: list[str], run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", PROGRAM, "fit", *arguments, "--resume", "--run_dir", str(run)]
    with open(_printed(run), "w", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _printed(run: Path) -> Path:
    """Return the path of a run's output, next to its folder."""
    return run.with_suffix(".txt")


def _finish(process: subprocess.Popen[bytes], run: Path) -> None:
    """Wait for a run to end; raise `InputError` with its error line if it failed."""
    try:
        process.wait()
    except BaseException:
        _kill(process)
        raise
    if process.returncode != 0:
        printed = _printed(run).read_text(encoding="utf-8", errors="replace")
        errors = [line for line in printed.splitlines() if line.startswith(f"{PROGRAM}: error: ")]
        reason = errors[-1].removeprefix(f"{PROGRAM}: error: ") if errors else f"exit code {process.returncode}"
        raise InputError(f"the run failed: {reason}")


def _kill_after(step: int, process: subprocess.Popen[bytes], run: Path) -> int | None:
    """Kill a run once it has logged a step; return its last logged step, or None if it ended before."""
    try:
        while process.poll() is None:
            rows = read_rows(run / "metrics.jsonl")
            if rows and rows[-1]["step"] >= step and "train_loss" in rows[-1]:
                break
            time.sleep(0.005)
    finally:
        was_running = _kill(process)
    if not was_running:
        _finish(process, run)
        return None
    return int(read_rows(run / "metrics.jsonl")[-1]["step"])


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process, then those that it has started; return False if it had ended."""
    if process.poll() is not None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    return process.wait() != 0
