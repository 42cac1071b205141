"""Stopping on a signal without losing a step: Ctrl-C, SIGTERM, SIGHUP, SIGXCPU, SLURM's preemption.

A signal only sets a flag. The current optimizer step is completed, with the evaluation and the samples due after it;
then `Checkpointing` saves and raises `errors.Stopped`. The resumed run equals an uninterrupted one bit for bit. A
second Ctrl-C or SIGTERM stops immediately.
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
from gpt_lightning.errors import STOP_SIGNALS

SLURM_JOB = "SLURM_JOB_ID"
PREEMPTING = "SIGUSR1"  # under SLURM: sbatch --signal=USR1@90


class StopOnSignal(Callback):
    """Records a signal that asks the run to stop, and shares the request with all ranks.

    Attributes:
        signal_number: Number of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._replaced: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()

    def _install(self) -> None:
        """Install our signal handlers; called after Lightning has installed its own."""
        if self._replaced or threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, *STOP_SIGNALS]
        if SLURM_JOB in os.environ:
            signals.append(getattr(signal, PREEMPTING))
        for number in signals:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                self._replaced[number] = signal.signal(number, self._record)

    @property
    def is_preempted(self) -> bool:
        """Whether SLURM asked for the stop, to start the job again later."""
        return self.signal_number == getattr(signal, PREEMPTING, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        urgent = number in (signal.SIGINT, signal.SIGTERM)
        # SIGHUP and SIGTERM may come as one: both mean that the session ends.
        if urgent and self.signal_number and self.signal_number not in STOP_SIGNALS[1:]:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        if urgent or not self.signal_number:
            self.signal_number = number

    def stop_requested(self, trainer: Trainer) -> bool:
        """Return whether any rank was asked to stop; all ranks must call it at the same step."""
        if trainer.world_size == 1:
            return self.signal_number != 0
        requested = trainer.strategy.reduce_boolean_decision(self.signal_number != 0, all=False)
        if requested and not self.signal_number:
            self.signal_number = int(signal.SIGTERM)
        return requested  # not signal_number: a signal may have arrived on this rank only


def requeue() -> None:
    """Requeue this SLURM job; warn if SLURM refuses."""
    job = os.environ[SLURM_JOB]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warn(f"SLURM did not requeue job {job} ({' '.join(reason.split())})")
