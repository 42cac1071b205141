"""Stopping a run by a signal without losing a step: Ctrl-C, SIGTERM, SLURM's preemption.

A signal only sets a flag. The current optimizer step is finished, with the evaluation and the samples that are due
after it; then `Checkpointing` saves and raises `errors.Stopped`. The resumed run equals an uninterrupted one, bit for
bit. A second Ctrl-C or SIGTERM stops at once.
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
    """Records a signal that asks the run to stop, and shares it with all ranks.

    Attributes:
        signal_number: The signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._replaced: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()

    def _install(self) -> None:
        """Replace Lightning's signal handlers, which it has just installed."""
        if self._replaced or threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if SLURM_JOB in os.environ:
            signals.append(signal.SIGUSR1)  # sbatch --signal=USR1@90: the job will be preempted
        for number in signals:
            self._replaced[number] = signal.signal(number, self._record)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        self.signal_number = number

    def stop_requested(self, trainer: Trainer) -> bool:
        """Return whether any rank was asked to stop; all ranks have to call it at the same step."""
        if trainer.world_size == 1:
            return self.signal_number != 0
        requested = trainer.strategy.reduce_boolean_decision(self.signal_number != 0, all=False)
        if requested and not self.signal_number:
            self.signal_number = int(signal.SIGTERM)
        return requested  # the same on all ranks; a signal that has just arrived waits for the next step


def requeue() -> None:
    """Ask SLURM to start this job again; warn if it refuses."""
    job = os.environ[SLURM_JOB]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warn(f"SLURM does not start job {job} again ({' '.join(reason.split())})")
