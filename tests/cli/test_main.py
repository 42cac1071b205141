"""The table of commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import STORY, Result

from gpt_lightning.cli.main import COMMANDS, LIGHTNING


@pytest.mark.parametrize("module", sorted({module for _, module in COMMANDS.values()} - {LIGHTNING}))
def test_these_commands_do_not_import_lightning(module: str) -> None:
    code = f"import sys, gpt_lightning.cli.{module} as module; module.run; print('lightning' in sys.modules)"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "False\n"


def test_control_characters_in_the_name_of_a_file_do_not_reach_the_terminal(
    command: Callable[..., Result], config: Path
) -> None:
    name, shown = "a\x1b[31m\x9b\nb.txt", r"a\x1b[31m\x9b\nb.txt"
    Path(name).write_text("\ufeff" + STORY.read_text())

    checked = command("check", "--config", config, f"--data.text={name}")
    missing = command("info", "no\x1b[31m.ckpt")

    assert f"gpt_lightning: warning: {shown}: starts with a byte order mark, which is removed\n" in checked.err
    assert checked.out.startswith(f"text        {shown}: 20,459 characters")
    assert missing.error == r"no\x1b[31m.ckpt: no such file"


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that its value is restored
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert command("configs").code == 0

    assert os.environ.get("GOMP_SPINCOUNT") == count
