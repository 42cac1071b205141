"""benchmarks/chaos.py, which kills and stops runs, with few runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("what", "runs"), [("kills", 2), ("signals", 4)])
def test_killed_and_stopped_runs_end_identically(what: str, runs: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), what, "--runs", str(runs)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"\b{runs} (runs )?identical", done.stdout), done.stdout
