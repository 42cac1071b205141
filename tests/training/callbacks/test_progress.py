from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import Result

Command = Callable[..., Result]


def test_the_progress_bar_can_be_turned_off(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.enable_progress_bar=false")

    assert result.err == ""
