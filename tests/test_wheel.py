"""A wheel contains every module, the configs and the bundled story, and works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

STORY = "the-lamp-at-low-water.txt"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with only its `site` on the import path besides the installed packages."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the sources, because a build writes to them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "gpt_lightning", folder / "gpt_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "data").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", f"data/{STORY}"):
        shutil.copy(ROOT / name, folder / name)
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "-q")
    built = run(folder, sys.executable, "-m", "pip", "wheel", *options, "-w", "dist", ".")
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").glob("gpt_lightning-*.whl")
    return path


def test_a_wheel_contains_every_module_and_config(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gpt_lightning").rglob("*.py")}
    configs = {f"gpt_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*")}
    others = {"gpt_lightning/py.typed", "gpt_lightning/runs/report.html", f"gpt_lightning/texts/{STORY}"}

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert packed == modules | configs | others


@pytest.mark.slow
def test_an_installed_wheel_trains_and_completes(wheel: Path, tmp_path: Path) -> None:
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q")
    installed = run(tmp_path, sys.executable, "-m", "pip", "install", *options, "--target", "site", str(wheel))
    assert installed.returncode == 0, installed.stderr

    def program(*arguments: str) -> str:
        done = run(tmp_path, sys.executable, "-m", "gpt_lightning", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = run(tmp_path, sys.executable, "-c", "import gpt_lightning; print(gpt_lightning.__file__)").stdout.strip()
    assert Path(place) == tmp_path / "site" / "gpt_lightning" / "__init__.py"
    assert program("--version").startswith("gpt_lightning ")
    assert program("explain", "windows")
    limits = ("--trainer.max_steps=2", "--model.warmup_steps=0")
    assert "\nverdict " in program("configs")
    program("configs", "--copy", "debug")
    assert "Step 000002" in program("fit", "--config", "debug", *limits)
    assert "Step 000002" in program("fit", "--config", "debug.yaml", *limits)
    completed = program("predict", "--ckpt_path", "runs/debug/latest/best.ckpt", "--prompt=The")
    assert completed.startswith("The")
    assert run(tmp_path, "site/bin/gpt_lightning", "--version").stdout == program("--version")
    lazy = "import sys, gpt_lightning; print('torch' in sys.modules); gpt_lightning.load; print('torch' in sys.modules)"
    assert run(tmp_path, sys.executable, "-c", lazy).stdout == "False\nTrue\n"
