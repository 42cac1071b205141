"""Shared fixtures: tiny settings, a trained run, the command line in this process, and The Verdict if available."""

from __future__ import annotations

import os
import signal

# One thread for each of two pytest workers; must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

from gpt_lightning.cli.main import main

# The same examples in every run, and no deadlines, because the machine may be shared.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).parent.parent
STORY = ROOT / "data" / "the-lamp-at-low-water.txt"


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TEST_BF16 say whether this machine's matrix products are "faster" in bf16 or "slower"; default: measure."""
    if speed := os.environ.get("TEST_BF16"):
        speedup = {"faster": 9.0, "slower": 0.1}[speed]
        monkeypatch.setattr("gpt_lightning.training.hardware.bf16_speedup", lambda: speedup)


@pytest.fixture(autouse=True)
def _sighup() -> Iterator[None]:
    """Let SIGHUP end processes, also where the tests run under nohup, which a run respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL) if hasattr(signal, "SIGHUP") else None
    yield
    if before is not None:
        signal.signal(signal.SIGHUP, before)


@dataclass
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only error line, without its prefix."""
        lines = [line for line in self.err.splitlines() if line.startswith("gpt_lightning: error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("gpt_lightning: error: ")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs `python -m gpt_lightning ARGUMENTS` in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory, without GPT_LIGHTNING_DATA in the environment, and return it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT_LIGHTNING_DATA", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip loss figures and reports, half of the time of a tiny run; `trained` and subprocesses do draw them."""
    monkeypatch.setattr("gpt_lightning.training.results.draw_figure", lambda *_: None)
    monkeypatch.setattr("gpt_lightning.training.results.draw_report", lambda *_: [])
    monkeypatch.setattr("gpt_lightning.training.callbacks.metrics.draw_losses", lambda *_: None)


def tiny_settings() -> dict[str, Any]:
    """Return settings of a run of about a second: 3 epochs of 5 optimizer steps, bytes, 1 layer, with dropout."""
    return {
        "seed_everything": 123,
        "data": {"text": str(STORY), "tokenizer": "bytes", "train_ratio": 0.9, "batch_size": 56},
        "model": {"context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "learning_rate": 0.01},
        "prompt": ["Every effort"],
        "sampling": {"max_new_tokens": 8},
        "evaluate_every": 2,
        "trainer": {"accelerator": "cpu", "precision": "32-true", "max_epochs": 3},
    }


@pytest.fixture
def config(in_tmp: Path) -> Path:
    """Write `tiny_settings` to tiny.yaml in the current directory."""
    path = in_tmp / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with `tiny_settings` once per session and return the run folder."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    main(["fit", "--config", str(path), "--run_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="session")
def verdict() -> Path:
    """Return the path of The Verdict, or skip the test if it is not available."""
    folders = [os.environ.get("GPT_LIGHTNING_DATA") or ROOT / "data", ROOT / "data"]
    for folder in folders:
        path = Path(folder) / "the-verdict.txt"
        if path.is_file():
            return path
    pytest.skip("needs the-verdict.txt in data/ or in the folder GPT_LIGHTNING_DATA")
