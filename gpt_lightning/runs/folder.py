"""The folder of one training run: its number, lock and files.

    runs/<name>/<number>/
        <name>.yaml                  all settings, to repeat the run
        metrics.jsonl                one line per optimizer step and evaluation
        samples.jsonl                one line per sample
        baselines.json               validation losses of counting the training text
        checkpoints/                 best.ckpt, last.ckpt and its predecessor prev.ckpt
        loss.pdf, loss.png           the loss curves, drawn when the run ends
        summary.json                 the verdict, written when the run ends
        environment.json             config, text, machine, versions, time and memory, see training/environment.py
        report.html                  a page about the run, written when it ends, see html_report.py
        events.out.tfevents.*        logs for TensorBoard

When a run is resumed, rows and events after the checkpoint are removed from the logs.

`runs/<name>/latest` is a link to the checkpoints/ of the newest run. (With a link to the run itself,
TensorBoard would show the run twice.)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_lightning.console import format_bytes
from gpt_lightning.errors import InputError, MachineError, describe_os_error
from gpt_lightning.files import replace_bytes, with_filename

RUNS = Path("runs")
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "prev.ckpt"
BASELINES, ENVIRONMENT, SUMMARY, REPORT = "baselines.json", "environment.json", "summary.json", "report.html"
RUN_DIR_ENV = "GPT_LIGHTNING_RUN_DIR"  # set by rank 0 for the ranks that it starts


def display_path(path: Path) -> str:
    """Return an absolute path as messages show it: relative if it is below the current folder."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


class Run:
    """A run folder, which one process at a time can open.

    Args:
        path: The folder; `open` creates it if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / LAST
        self.previous = self.checkpoints / PREVIOUS
        self.best = self.checkpoints / BEST
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples_file = self.path / "samples.jsonl"
        self.summary_file = self.path / SUMMARY
        self.report_file = self.path / REPORT
        self._lock = FileLock(self.path / ".lock", fallback_to_soft=False)  # forked data workers do not keep it

    @property
    def display_path(self) -> str:
        """The path for messages: relative if it is below the current folder, absolute otherwise."""
        return display_path(self.path)

    def open(self) -> None:
        """Create and lock the folder, remove temporary files of killed processes, and check that it is writable.

        Raises:
            InputError: Another process has locked the folder.
            MachineError: The folder cannot be created, locked or written to.
        """
        folder = Path(self.display_path)  # errors show it
        checkpoints = folder / self.checkpoints.name
        try:
            checkpoints.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            for pattern in ("*.tmp-*", "checkpoints/*.tmp-*", ".lr_find_*.ckpt"):  # the last: LearningRateFinder's
                for left_over in folder.glob(pattern):
                    left_over.unlink()
            probe = checkpoints / f"write.tmp-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise MachineError(describe_os_error(error)[0]) from None

    def _take_lock(self) -> None:
        name = Path(self.display_path, ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            try:
                holder = f"process {int(name.read_text(encoding='ascii'))}"
            except (OSError, ValueError):  # Windows does not let others read a locked file
                holder = "another process"
            raise InputError(f"{self.display_path} is in use by {holder}") from None
        except (OSError, NotImplementedError) as error:  # a file system without locks
            reason = getattr(error, "strerror", None) or error
            raise MachineError(f"{name}: cannot be locked ({reason})") from None
        with contextlib.suppress(OSError):
            name.write_text(str(os.getpid()), encoding="ascii")

    @property
    def is_open(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock.is_locked

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def write_baselines(self, losses: dict[str, float]) -> None:
        """Write the baselines of the run's text to baselines.json."""
        replace_bytes(Path(self.display_path, BASELINES), json.dumps(losses).encode())

    def check_space(self, needed: int) -> None:
        """Raise `MachineError` if the checkpoints, `needed` bytes including existing ones, do not fit on the disk."""
        present = sum(path.stat().st_size for path in self.checkpoints.iterdir())
        free = shutil.disk_usage(self.path).free + present
        if free < needed:
            raise MachineError(
                f"{self.display_path}: the run needs up to {format_bytes(needed)} for its checkpoints, "
                f"but the disk has {format_bytes(free)} free"
            )

    @property
    def is_numbered(self) -> bool:
        """Whether the path has the form runs/<name>/<number>."""
        return self.path.parent.parent == RUNS.absolute() and self.path.name.isdigit()

    def discard(self) -> None:
        """Remove the folder of a run that did not start, and point `latest` to the previous run."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.is_numbered:
            (self.path.parent / "latest").unlink(missing_ok=True)
            for older in numbered_runs(self.path.parent)[-1:]:
                Run(older).link_latest()
            with contextlib.suppress(OSError):  # not empty
                self.path.parent.rmdir()
                RUNS.rmdir()

    def link_latest(self) -> None:
        """Atomically point runs/<name>/latest to this run's checkpoints."""
        temporary = self.path.parent / f".latest.tmp-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            temporary.symlink_to(Path(self.path.name) / "checkpoints")
        except OSError:  # Windows without the privilege, a file system without links: see `resolve_latest`
            return
        os.replace(temporary, self.path.parent / "latest")


def numbered_runs(folder: Path) -> list[Path]:
    """Return the numbered folders in runs/<name>, oldest first."""
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return [folder / str(number) for number in sorted(numbers)]


def resolve_latest(path: str) -> str:
    """Replace `latest` in a path by the checkpoints of the newest run, if there is no link of that name."""
    parts = Path(path).parts
    if "latest" not in parts or os.path.lexists(Path(*parts[: parts.index("latest") + 1])):
        return path
    place = parts.index("latest")
    runs = numbered_runs(Path(*parts[:place]))
    return str(Path(runs[-1], "checkpoints", *parts[place + 1 :])) if runs else path


def find_run(path: str) -> Path:
    """Return the absolute run folder that a path names: the folder, its checkpoints/, or runs/NAME/latest.

    Raises:
        InputError: The path does not exist, or is not a run folder.
    """
    folder = Path(resolve_latest(path))
    with with_filename(path):
        if not folder.exists():
            raise InputError(f"{path}: no such folder")
        folder = folder.resolve()
        if folder.name == "checkpoints" and folder.is_dir():
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{path}: is a file; name the folder of a run")
        if not any((folder / name).exists() for name in ("metrics.jsonl", "samples.jsonl", "checkpoints", SUMMARY)):
            raise InputError(f"{path}: is not the folder of a run; it has no metrics.jsonl and no checkpoints")
    return folder


def new_run_folder(name: str) -> Path:
    """Create runs/<name>/<next number> and return its path.

    Raises:
        MachineError: The folder cannot be created.
    """
    existing = numbered_runs(RUNS / name)
    number = int(existing[-1].name) + 1 if existing else 1
    while True:
        path = RUNS / name / str(number)
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # another process created it first
            number += 1
        except OSError as error:
            raise MachineError(describe_os_error(error)[0]) from None


def check_empty(path: Path) -> None:
    """Raise `InputError` if the path given by --run_dir contains a run or is not a folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"--run_dir {path}: is a file, not a folder")
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
        raise InputError(f"--run_dir {path} already contains a run; add --resume to resume it, or name another folder")
