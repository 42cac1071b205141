"""Stopping a run from outside without losing a step: Ctrl-C, SIGTERM, SLURM's preemption.

A signal only sets a flag. The optimizer step that is under way is finished, with the evaluation and the
samples that are due after it; then `Checkpointing` saves and raises `errors.Stopped`. What goes
on from there is the run that nobody stopped, to the bit. A second Ctrl-C (or SIGTERM) does not wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt_lightning.console import warn

SLURM_JOB = "SLURM_JOB_ID"


class StopOnSignal(Callback):
    """Remembers that the run was asked to stop, and tells all ranks.

    Attributes:
        signal_number: What asked for it; 0 if nothing has.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def _take_over(self) -> None:
        """Takes the signals over from Lightning, which has just done so itself."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if SLURM_JOB in os.environ:
            signals.append(signal.SIGUSR1)  # sbatch --signal=USR1@90: the job will be preempted
        for one in signals:
            self._before[one] = signal.signal(one, self._remember)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        self.signal_number = number

    def is_asked(self, trainer: Trainer) -> bool:
        """Whether any rank was asked to stop; all ranks have to call it at the same step."""
        if trainer.world_size == 1:
            return self.signal_number != 0
        asked = trainer.strategy.reduce_boolean_decision(self.signal_number != 0, all=False)
        if asked and not self.signal_number:
            self.signal_number = int(signal.SIGTERM)
        return asked  # what all ranks know; a signal of this moment waits for the next step


def requeue() -> None:
    """Asks SLURM to start this job again; warns where it will not."""
    job = os.environ[SLURM_JOB]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warn(f"SLURM does not start job {job} again ({' '.join(reason.split())})")
