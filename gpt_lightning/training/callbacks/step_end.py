"""Where an optimizer step ends, and what is due there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

NEVER = sys.maxsize


def at_step_boundary(trainer: Trainer) -> bool:
    """Whether the batch that just ended completed an optimizer step (Lightning steps on an epoch's last)."""
    batches = trainer.fit_loop.batch_idx + 1
    return batches % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def run_ends(trainer: Trainer) -> bool:
    """Whether the optimizer step that just ended is the run's last; `Evaluation` sets `should_stop`."""
    max_epochs = trainer.max_epochs
    last_epoch = max_epochs is not None and max_epochs != -1 and trainer.current_epoch + 1 >= max_epochs
    return trainer.should_stop or (trainer.is_last_batch and last_epoch)


def evaluation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning will evaluate after the current batch; `Evaluation` decides it."""
    return trainer.val_check_batch == 1 or trainer.should_stop


@contextlib.contextmanager
def averages_in(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Has the averages of a WeightAveraging, which are what is evaluated and saved, be the module's weights."""
    averaging = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
