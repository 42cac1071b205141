"""environment.json in the run folder: config, text, machine, versions, time and memory of a run.

Each process that trains the run adds an entry to `sessions` when training starts, and completes it when training ends,
with the error if one ended it. Of many, the first and the last 99 are kept. The `minutes` of a session are all from the
start of `fit` to the end of training; the `minutes` of summary.json are those of optimizer steps only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Trainer

from gpt_lightning.checkpoints.metadata import installed_versions
from gpt_lightning.console import warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError, MachineError, Stopped, Terminated, describe_expected, memory_bytes
from gpt_lightning.files import replace_bytes
from gpt_lightning.runs.folder import ENVIRONMENT, Run
from gpt_lightning.runs.records import read_facts
from gpt_lightning.training import summary
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.resume import RunPlan
from gpt_lightning.training.steps import Steps

MOST_OF_AN_ERROR = 200  # characters
LAST_SESSIONS = 99  # kept beside the first one; the file must stay below records.MAX_BYTES
SECRETS = re.compile(r"(?<=://)[^\s/]*@|\?\S+")  # names and passwords, and queries of URLs, which may hold keys


@contextlib.contextmanager
def recorded(
    trainer: Trainer,
    data: TextDataModule,
    config: RunConfig,
    steps: Steps,
    run: Run,
    plan: RunPlan,
    defaults: dict[str, Any],
    start: float,
) -> Iterator[None]:
    """Write environment.json before and after the training in the body, also if that is interrupted.

    Args:
        trainer: The run's Trainer.
        data: Data module, set up.
        config: The settings of the run.
        steps: Batches and optimizer steps of the run.
        run: The run folder.
        plan: Whether the run is new or resumed.
        defaults: The default of each setting.
        start: Value of `time.monotonic` when the process started to work on the run.
    """
    if not trainer.is_global_zero:
        yield
        return
    path = run.path / ENVIRONMENT
    described = {
        "config": f"{plan.name}.yaml",
        **summary.describe_data(data, steps, trainer.world_size),
        "model": config.model.description,
    }
    session: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": 0 if plan.content is None else plan.content["global_step"],
        "device": summary.describe_device(trainer, config.accelerator, config.precision_reason),
        "processor": processor_name(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **installed_versions()},
    }
    sessions = [*previous_sessions(path), session]
    sessions = [*sessions[:1], *sessions[1:][-LAST_SESSIONS:]]
    facts = {**described, "defaults": defaults, "sessions": sessions}
    _write(path, facts)
    try:
        yield
    except BaseException as error:
        session["error"] = describe_error(error)
        raise
    finally:
        # 0 if the run failed before it restored its checkpoint
        session["to_step"] = max(session["from_step"], trainer.global_step)
        session["minutes"] = round((time.monotonic() - start) / 60, 2)
        session["peak_memory_bytes"] = peak_memory_bytes(trainer.strategy.root_device)
        try:
            _write(path, facts)
        except (InputError, MachineError) as error:  # the folder was deleted, the disk is full
            warn(f"{error}; the time and memory of the run are not recorded")


def describe_error(error: BaseException) -> str:
    """Describe in one short line what ended a training early, without secrets: the report shows it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, (Stopped, Terminated)):
        return str(error)
    known = describe_expected(error)
    if known is None:
        return f"internal error: {type(error).__name__}"
    return " ".join(SECRETS.sub("", known[0]).split())[:MOST_OF_AN_ERROR]


def previous_sessions(path: Path) -> list[dict[str, Any]]:
    """Return the sessions in environment.json; none if the file is missing or damaged."""
    try:
        return list(read_facts(path).get("sessions") or [])
    except InputError as error:
        warn(f"{error}; it is written again")
        return []


def _write(path: Path, facts: dict[str, Any]) -> None:
    replace_bytes(path, (json.dumps(facts, indent=1) + "\n").encode())


def processor_name(device: torch.device) -> str:
    """Return the name of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that this process has used: of the GPU under CUDA, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(int(memory.rss), peak if sys.platform == "darwin" else 1024 * peak)
