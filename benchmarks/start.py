"""Measure how long commands take to start, as ratios to `python -c "import torch"`.

    python benchmarks/start.py [--rounds 5]

The commands take turns. Times are those of the whole command, except that of `fit`, which is the time until its first
optimizer step is in metrics.jsonl. Before that, GPT-2 small with random weights is saved by a run of one step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "gpt_lightning"]
QUIET = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
BASE = "import torch"


def seconds_of(command: list[str]) -> float:
    """Return the seconds of a whole command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, **QUIET)
    return time.perf_counter() - start


def seconds_to_first_step(command: list[str], run: Path) -> float:
    """Return the seconds until the first step of a training is recorded, and stop it."""
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--run_dir", str(run)], **QUIET)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and '"train_loss"' in metrics.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended before its first step")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("A text of some thousand tokens, the same sentence again and again.\n" * 200)
        fit = [*PROGRAM, "fit", "--trainer.precision", "32-true", "--data.text", str(text), "--config"]
        run = f"{folder}/gpt2"
        limits = ["--trainer.max_steps", "1", "--run_dir", run]
        subprocess.run([*fit, "configs/verdict.yaml", *limits], check=True, **QUIET)
        checkpoint = f"{run}/checkpoints/best.ckpt"
        predict = [*PROGRAM, "predict", "--ckpt_path", checkpoint, "--prompt", "A", "--sampling.max_new_tokens", "1"]
        seconds: dict[str, list[float]] = {}
        for number in range(options.rounds):
            seconds.setdefault(BASE, []).append(seconds_of([sys.executable, "-c", BASE]))
            seconds.setdefault("--help", []).append(seconds_of([*PROGRAM, "--help"]))
            seconds.setdefault("fit --help", []).append(seconds_of([*PROGRAM, "fit", "--help"]))
            seconds.setdefault("predict, GPT-2 small, one token", []).append(seconds_of(predict))
            debug = seconds_to_first_step([*fit, "configs/debug.yaml"], Path(folder) / f"run{number}")
            seconds.setdefault("fit, debug.yaml, first step", []).append(debug)
    for name, rounds in seconds.items():
        ratio = median(one / base for one, base in zip(rounds, seconds[BASE], strict=True))
        shown = ", ".join(f"{one:.2f}" for one in rounds)
        print(f"{name:<34}{median(rounds):8.2f} s  {ratio:6.2f} times  ({shown})")


if __name__ == "__main__":
    main()
