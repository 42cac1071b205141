"""Measure how much longer `fit` takes on a busy machine, with several ways for its threads to wait.

    python benchmarks/busy.py [--configs debug classroom] [--loops 0 2] [--rounds 3]

Runs the command `fit` of each config alone and beside processes that compute without end, in turns, and prints the
seconds of the whole command: medians, and all rounds. The ways to wait are environment variables:

    shipped     none: what `fit` chooses
    spinning    what OpenMP does by default: a thread without work checks for new work some 300,000 times, then sleeps
    passive     OMP_WAIT_POLICY=passive: it sleeps at once
    one thread  OMP_NUM_THREADS=1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "shipped": {},
    "spinning": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())},
    "passive": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(os.cpu_count())},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds_of(config: str, environment: dict[str, str], arguments: list[str]) -> float:
    """Return the seconds of the command `fit` with a config that comes with the package."""
    command = [sys.executable, "-m", "gpt_lightning", "fit", "--config", str(ROOT / "configs" / f"{config}.yaml")]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [*command, "--trainer.precision", "32-true", "--run_dir", f"{folder}/run", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["debug", "classroom"])
    parser.add_argument("--loops", nargs="+", type=int, default=[0, 2], help="numbers of busy processes")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    options, arguments = parser.parse_known_args()
    for config in options.configs:
        for count in options.loops:
            seconds: dict[str, list[float]] = {way: [] for way in options.ways}
            for _ in range(options.rounds):
                for way in options.ways:
                    with busy_loops(count):
                        seconds[way].append(seconds_of(config, WAYS[way], arguments))
            for way, rounds in seconds.items():
                row = {"config": config, "loops": count, "way": way, "median": median(rounds), "rounds": rounds}
                shown = ", ".join(f"{one:.1f}" for one in rounds)
                text = f"{config:<12}{count} loops  {way:<12}{row['median']:8.1f} s  ({shown})"
                print(json.dumps(row) if options.json else text, flush=True)


if __name__ == "__main__":
    main()
