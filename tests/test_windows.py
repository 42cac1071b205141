"""A run, and a sample from it, in a process without what Windows does not have.

No Windows machine was at hand. Signals, masks, forks, links and modules of POSIX are removed, after the libraries that
use them are imported; the console is cp1252, and a file that this package opens without an encoding is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STORY

PRELUDE = """
import os, signal, sys, warnings
import filelock, lightning.pytorch, matplotlib.pyplot, psutil, tensorboard.summary, torch.utils.tensorboard
from lightning.pytorch.cli import LightningCLI

for module, names in {
    signal: "SIGHUP SIGXCPU SIGUSR2 SIG_BLOCK SIG_SETMASK SIG_UNBLOCK pthread_sigmask",
    os: "register_at_fork sysconf killpg fork getuid",
}.items():
    for name in names.split():
        delattr(module, name)
for name in ("fcntl", "resource"):
    sys.modules[name] = None

def refuse(*_, **__):
    raise OSError(1314, "A required privilege is not held by the client")

def open_no_folder(path, *arguments, opened=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *arguments, **options)

warnings.filterwarnings("error", category=EncodingWarning, module="gpt_lightning")
os.symlink = refuse
os.open = open_no_folder
from gpt_lightning.cli.main import main
main()
"""


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", PRELUDE, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=100)


@pytest.mark.slow
def test_a_run_without_what_windows_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "Übung und Maß"
    while len(str(folder)) < 240:
        folder /= "x" * 60
    folder.mkdir(parents=True)
    (folder / "Erzählung.txt").write_text("“日本” é. " + STORY.read_text(), encoding="utf-8")
    options = ["--trainer.max_steps=4", "--model.warmup_steps=0", "--data.num_workers=0"]
    fit = ["fit", "--config", "debug", "--data.text", "Erzählung.txt", "--prompt", "Der Anfang “", *options]

    first = program(folder, *fit)
    resumed = program(folder, *fit[:-3], "--trainer.max_steps=6", *fit[-2:], "--resume")
    sample = program(folder, "predict", "--ckpt_path", "runs/debug/latest/best.ckpt", "--prompt", "Der “Maß”")

    for done in (first, resumed, sample):
        assert done.returncode == 0, done.stderr
    assert "Erzählung.txt: ".encode("cp1252") in first.stdout
    assert b"resumed     after step 4" in resumed.stdout
    assert not (folder / "runs/debug/latest").exists()
    assert sample.stdout.startswith("Der “Maß”".encode("cp1252"))
