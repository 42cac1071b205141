"""Whether `fit` starts a new run or resumes one, and from which checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import find_non_finite, without_tensors
from gpt_lightning.checkpoints.metadata import check_schema
from gpt_lightning.console import warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError
from gpt_lightning.files import read_rows
from gpt_lightning.runs.folder import LAST, PREVIOUS, RUN_DIR_VARIABLE, Run, check_empty, numbered_runs
from gpt_lightning.training.distributed import is_first_process, launched_by_others

RESUME_SCHEMA = {
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": {"fit_loop": dict},
    "callbacks": {"Progress": dict, "RunCheckpoints": dict},
    "rng_states": dict,
    "TextDataModule": {"epoch": int, "batches": int},
}


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole, and its content but the tensors; None where there never was one.

    Args:
        run: The run folder.

    Raises:
        InputError: There are some, and none is whole.
    """
    problem = None
    paths = [run / "checkpoints" / name for name in (LAST, PREVIOUS)]
    for path in paths:
        try:
            content = read_checkpoint(path)
            check_complete(content, str(path))
        except InputError as error:
            problem = problem or error
            continue
        if problem is not None:
            warn(f"{problem}; going on from {path.name}, the one before")
        return path, without_tensors(content)
    if problem is not None and any(path.exists() for path in paths):
        raise problem
    return None


def check_complete(checkpoint: dict[str, Any], name: str) -> None:
    """Raises `InputError` for a checkpoint that holds less than a run needs to go on."""
    if "optimizer_states" not in checkpoint:
        raise InputError(f"{name}: has weights but no optimizer state; a run goes on from its last.ckpt")
    check_schema(checkpoint, RESUME_SCHEMA, name)
    for key, state in checkpoint["callbacks"].items():
        if not isinstance(key, str) or not isinstance(state, dict):
            raise InputError(f"{name}: callbacks.{key} must be a name and a state")
    for part in ("state_dict", "optimizer_states"):
        if (key := find_non_finite(checkpoint[part], part)) is not None:
            raise InputError(f"{name}: {key} is not finite, so a run cannot go on from it")


def check_same_text(data: TextDataModule, checkpoint: dict[str, Any], name: str, hint: str = "") -> None:
    """Raises `InputError` where the text is not the one that a checkpoint was trained on.

    Args:
        data: Set up.
        checkpoint: The content.
        name: Of the file.
        hint: What to say besides.
    """
    assert data.source is not None
    seen = checkpoint["gpt_lightning"]["text"]
    if data.source.sha256 != seen["sha256"]:
        raise InputError(
            f"{data.source.path}: is not the text that {name} was trained on "
            f"({seen['name']}, sha256 {seen['sha256'][:12]}...){hint}"
        )
    if data.val_sha256 != seen["val_sha256"]:
        raise InputError(f"{data.hparams['val_text']}: is not the data.val_text that {name} was evaluated on{hint}")


def check_epoch_end(checkpoint: dict[str, Any], name: str) -> None:
    """Raises `InputError` for a checkpoint from inside an epoch: its position means nothing in another text."""
    batches = checkpoint["TextDataModule"]["batches"]
    if batches:
        raise InputError(
            f"{name}: is {batches} batches into an epoch; --allow_data_change goes on from the end of an epoch only"
        )


# Settings outside model.* and data.* that a resumed run keeps.
KEPT_SETTINGS = (
    "seed_everything",
    "init_from",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)


@dataclass(frozen=True)
class RunChoice:
    """Where a run goes.

    Attributes:
        name: Of the run and its config file.
        folder: Its folder; None for the next number of `runs/<name>`.
        checkpoint: File to go on from; None to start.
        content: What is in that file.
    """

    name: str
    folder: Path | None = None
    checkpoint: Path | None = None
    content: dict[str, Any] | None = None


def choose_run(name: str, settings: Any) -> RunChoice:
    """Decides between a new run and going on with one; writes nothing.

    Args:
        name: Of the run.
        settings: All settings of the command.

    Raises:
        InputError: `run_dir` already holds a run, or is missing where other programs start the
            processes.
    """
    run_dir, resume = settings["run_dir"], settings["resume"]
    if run_dir is not None:
        if not run_dir:
            raise InputError("--run_dir is empty; name a folder")
        folder = Path(run_dir)
        if resume:
            found = newest_checkpoint(folder)
            return _begin_again(name, folder) if found is None else RunChoice(name, folder, *found)
        if RUN_DIR_VARIABLE not in os.environ and is_first_process():  # else rank 0 may have just made it
            check_empty(folder)
        return RunChoice(name, folder)
    if launched_by_others():
        raise InputError("--run_dir DIR is needed under torchrun and SLURM, so that all processes share it")
    for folder in reversed(numbered_runs(name)) if resume else ():
        found = newest_checkpoint(folder)
        if found is None:
            return _begin_again(name, folder)
        if not limits_reached(found[1], settings):
            return RunChoice(name, folder, *found)
    return RunChoice(name)


def _begin_again(name: str, folder: Path) -> RunChoice:
    """A run that has no checkpoint: it was stopped before its first, or somebody took them away."""
    steps = max((row["step"] for row in read_rows(Run(folder).metrics_file)), default=0)
    if steps > 0 and is_first_process():
        warn(f"{folder}: has no checkpoint to go on from; the {steps} steps that it had trained begin again")
    return RunChoice(name, folder)


def limits_reached(checkpoint: dict[str, Any], settings: Any) -> bool:
    """Whether a run has come as far as its limits (-1 or None: none) let it."""
    max_epochs, max_steps = settings["trainer"]["max_epochs"], settings["trainer"]["max_steps"]
    patience = settings["early_stopping_patience"]
    if patience is not None and not settings["allow_data_change"]:  # on another text it waits anew
        states = [state for name, state in checkpoint["callbacks"].items() if name.startswith("EarlyStop{")]
        waited = states[0].get("wait_count") if states else None
        if isinstance(waited, int) and waited >= patience:
            return True
    progress = checkpoint["gpt_lightning"]["progress"]
    by_epochs = max_epochs is not None and max_epochs != -1 and progress["epochs"] >= max_epochs
    return by_epochs or (max_steps != -1 and progress["steps"] >= max_steps)
