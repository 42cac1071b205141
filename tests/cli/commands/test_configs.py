"""`configs`, and configs by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Result

from gpt_lightning.cli.config_files import find_config, read_config
from gpt_lightning.errors import InputError

Command = Callable[..., Result]


def test_all_configs_are_listed_with_what_they_train(command: Command) -> None:
    lines = command("configs").out.splitlines()

    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert "debug           A tiny GPT on bytes: a complete run with about ten seconds of training on a laptop" in lines
    assert max(map(len, lines)) < 160


def test_a_copy_is_the_config_and_is_not_overwritten(command: Command, in_tmp: Path) -> None:
    assert command("configs", "--copy", "debug").out == "debug.yaml\n"

    assert Path("debug.yaml").read_bytes() == (ROOT / "configs/debug.yaml").read_bytes()
    again = command("configs", "--copy", "debug")
    assert (again.code, again.error) == (2, "debug.yaml: already exists; remove it first, or edit it")
    unknown = command("configs", "--copy", "debg")
    assert unknown.error == "debg: no such file, and no packaged config has this name; did you mean debug?"


def test_a_name_without_suffix_or_folder_is_a_packaged_config(in_tmp: Path) -> None:
    assert find_config("verdict") == str(ROOT / "configs/verdict.yaml")
    assert read_config("verdict") == read_config(str(ROOT / "configs/verdict.yaml"))
    for path in ("verdict.yaml", "configs/verdict"):
        assert find_config(path) == path
    Path("verdict").write_text("seed_everything: 5")
    assert read_config("verdict")[0] == {"seed_everything": 5}
    with pytest.raises(InputError, match="mine: no such file, and no packaged config has this name"):
        find_config("mine")


def test_a_run_of_a_packaged_config_has_its_name(command: Command, in_tmp: Path) -> None:
    options = (
        "--trainer.max_steps=1",
        "--model.warmup_steps=0",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
    )

    result = command("fit", "--config", "debug", *options)

    assert result.code == 0, result.err
    assert Path("runs/debug/1/debug.yaml").exists()
