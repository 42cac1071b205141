"""The table of commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpt_lightning.cli.main import COMMANDS, LIGHTNING


@pytest.mark.parametrize("module", sorted({module for _, module in COMMANDS.values()} - {LIGHTNING}))
def test_these_commands_do_not_import_lightning(module: str) -> None:
    code = f"import sys, gpt_lightning.cli.{module} as module; module.run; print('lightning' in sys.modules)"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "False\n"
