"""The decision whether `fit` starts a new run or resumes one, and from which checkpoint."""

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
from gpt_lightning.evaluation.training_text import check_fingerprint, check_val_fingerprint
from gpt_lightning.files import read_rows
from gpt_lightning.runs.folder import LAST, PREVIOUS, RUN_DIR_ENV, RUNS, Run, check_empty, numbered_runs

RESUME_SCHEMA = {
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": {"fit_loop": dict},
    "callbacks": {"Progress": dict, "Checkpointing": dict},
    "rng_states": list,
    "TextDataModule": {"epoch": int, "windows": int, "windows_per_batch": int},
}


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest valid checkpoint of a run and its content without tensors, or None if the run has none.

    Args:
        run: The run folder.

    Raises:
        InputError: The run has checkpoints, but none is valid.
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
            warn(f"{problem}; resuming from the previous checkpoint, {path.name}")
        return path, without_tensors(content)
    if problem is not None and any(path.exists() for path in paths):
        raise InputError(f"{problem}; no other checkpoint of the run is valid, remove it to train from the start")
    return None


def check_complete(checkpoint: dict[str, Any], name: str) -> None:
    """Raise `InputError` unless a run can be resumed from this checkpoint.

    Args:
        checkpoint: The content, with tensors.
        name: File name, for messages.
    """
    if "optimizer_states" not in checkpoint:
        raise InputError(f"{name}: has weights but no optimizer state; resume from a run's last.ckpt")
    check_schema(checkpoint, RESUME_SCHEMA, name)
    for key, state in checkpoint["callbacks"].items():
        if not isinstance(key, str) or not isinstance(state, dict):
            raise InputError(f"{name}: callbacks.{key} must be a name and a state")
    for part in ("state_dict", "optimizer_states"):
        if (key := find_non_finite(checkpoint[part], part)) is not None:
            raise InputError(f"{name}: {key} is not finite, so a run cannot be resumed from it")


def check_same_text(data: TextDataModule, checkpoint: dict[str, Any], name: str, hint: str = "") -> None:
    """Raise `InputError` if the text differs from the one that a checkpoint was trained on.

    Args:
        data: Data module, set up.
        checkpoint: The content.
        name: File name, for messages.
        hint: Text to append to the message.
    """
    assert data.source is not None
    check_fingerprint(data.source, checkpoint, name, hint)
    check_val_fingerprint(data.hparams["val_text"], data.val_sha256, checkpoint, name, hint)


def check_epoch_end(checkpoint: dict[str, Any], name: str) -> None:
    """Raise `InputError` if a checkpoint was saved within an epoch; its position does not apply to another text."""
    windows = checkpoint["TextDataModule"]["windows"]
    if windows:
        raise InputError(
            f"{name}: was saved {windows} windows into an epoch; --allow_data_change needs one from the end of an epoch"
        )


# Settings outside model.* and data.* that a resumed run keeps.
RESUME_SETTINGS = (
    "seed_everything",
    "init_from",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)


@dataclass(frozen=True)
class RunPlan:
    """Whether `fit` starts a new run or resumes one.

    Attributes:
        name: Name of the run: the stem of its first config file.
        folder: The run folder; None for the next number in `runs/<name>`.
        checkpoint: File to resume from; None for a new run.
        content: Content of that file without tensors; None for a new run.
        allow_data_change: Whether the text may differ from the checkpoint's.
    """

    name: str
    folder: Path | None = None
    checkpoint: Path | None = None
    content: dict[str, Any] | None = None
    allow_data_change: bool = False

    def check_text(self, data: TextDataModule) -> None:
        """Raise `InputError` if the run cannot be resumed with this text."""
        if self.content is None:
            return
        if self.allow_data_change:
            check_epoch_end(self.content, str(self.checkpoint))
        else:
            check_same_text(
                data, self.content, str(self.checkpoint), "; to continue with this text, give --allow_data_change"
            )

    def check_batches(self, data: TextDataModule, processes: int) -> None:
        """Raise `InputError` if the number of processes would change the windows of the run's optimizer steps."""
        if self.content is None or data.hparams["global_batch_size"] is not None:
            return
        before, now = self.content["TextDataModule"]["windows_per_batch"], data.hparams["batch_size"] * processes
        if before != now:
            raise InputError(
                f"{self.checkpoint}: its batches had {before} windows on all processes together, now {now}; resume it "
                f"with as many processes as before (a run that sets data.global_batch_size may change their number)"
            )

    def is_finished(self, max_epochs: int | None, max_steps: int, patience: int | None) -> bool:
        """Return whether the run to resume has already reached one of its limits.

        Args:
            max_epochs: Limit on epochs; None or -1 for none.
            max_steps: Limit on optimizer steps; -1 for none.
            patience: Patience of early stopping; None if it is off.
        """
        if self.content is None:
            return False
        if patience is not None and not self.allow_data_change:  # another text resets the count
            states = [state for name, state in self.content["callbacks"].items() if name.startswith("EarlyStop{")]
            waited = states[0].get("wait_count") if states else None
            if isinstance(waited, int) and waited >= patience:
                return True
        progress = self.content["gpt_lightning"]["progress"]
        by_epochs = max_epochs is not None and max_epochs != -1 and progress["epochs"] >= max_epochs
        return by_epochs or (max_steps != -1 and progress["steps"] >= max_steps)


def plan_run(name: str, run_dir: str | None, resume: bool, allow_data_change: bool) -> RunPlan:
    """Decide whether to start a new run or to resume one, without writing anything.

    Args:
        name: Name of the run.
        run_dir: The run folder; None for `runs/<name>/<number>`: the highest number with `resume`, else the next one.
        resume: Whether to resume the run; if there is none, a new one starts.
        allow_data_change: See `RunPlan`.

    Raises:
        InputError: `run_dir` already contains a run.
    """
    if run_dir is not None:
        if not run_dir:
            raise InputError("--run_dir is empty; give a folder")
        folder: Path | None = Path(run_dir)
        if not resume and RUN_DIR_ENV not in os.environ:  # else rank 0 has created it
            check_empty(Path(run_dir))
    else:
        folder = next(reversed(numbered_runs(RUNS / name)), None)
    if not resume or folder is None:
        return RunPlan(name, folder if run_dir is not None else None)
    found = newest_checkpoint(folder)
    if found is not None:
        return RunPlan(name, folder, *found, allow_data_change)
    steps = max((row["step"] for row in read_rows(Run(folder).metrics_file)), default=0)
    if steps > 0:
        warn(f"{folder}: has no checkpoint to resume from; restarting from step 0 ({steps} steps are lost)")
    return RunPlan(name, folder)
