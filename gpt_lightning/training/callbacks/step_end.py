"""The end of an optimizer step: detecting it, and a callback hook for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

NEVER = sys.maxsize


def at_step_boundary(trainer: Trainer) -> bool:
    """Return whether the batch that just ended completed an optimizer step, as an epoch's last batch always does."""
    batches = trainer.fit_loop.batch_idx + 1
    return batches % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def is_last_step(trainer: Trainer) -> bool:
    """Return whether the optimizer step that just ended is the run's last, given `Evaluation`'s `should_stop`."""
    max_epochs = trainer.max_epochs
    last_epoch = max_epochs is not None and max_epochs != -1 and trainer.current_epoch + 1 >= max_epochs
    return trainer.should_stop or (trainer.is_last_batch and last_epoch)


def evaluation_is_due(trainer: Trainer) -> bool:
    """Return whether Lightning will evaluate after the current batch, as set by `Evaluation`."""
    return trainer.val_check_batch == 1 or trainer.should_stop


class StepEnd(Callback):
    """Calls `after_step` once per optimizer step, after the step's evaluation if there is one.

    Lightning has no such hook. The last step of an epoch ends in `on_train_epoch_end`, a step with an evaluation in
    `on_validation_end`, and any other in `on_train_batch_end`.
    """

    def after_step(self, trainer: Trainer, module: LightningModule, *, epoch_ended: bool, run_ends: bool) -> None:
        """Do what is due at the end of an optimizer step.

        Args:
            trainer: The run's Trainer.
            module: The run's LightningModule.
            epoch_ended: Whether the step is the last of its epoch.
            run_ends: Whether the step is the last of the run.
        """
        raise NotImplementedError

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if at_step_boundary(trainer) and not evaluation_is_due(trainer) and not trainer.is_last_batch:
            self.after_step(trainer, pl_module, epoch_ended=False, run_ends=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self.after_step(trainer, pl_module, epoch_ended=False, run_ends=is_last_step(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:  # False if the run ended within the epoch
            self.after_step(trainer, pl_module, epoch_ended=True, run_ends=is_last_step(trainer))


@contextlib.contextmanager
def averages_in(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Swap the averaged weights of a WeightAveraging, if there is one, into the module inside the block."""
    averaging = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
