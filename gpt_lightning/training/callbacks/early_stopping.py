"""Early stopping that survives a resume."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from gpt_lightning.console import say


class EarlyStop(EarlyStopping):
    """Ends the run after an evaluation when the validation loss has not fallen for too long.

    Args:
        patience: Evaluations without a new lowest validation loss.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val_loss", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            say(f"Stopping early: the validation loss has not fallen for {self.wait_count} evaluations.")


def has_ended(callback: EarlyStopping) -> bool:
    """Whether it ended the run that its state is of: for its patience as now given, or for a threshold."""
    by_threshold = callback.stopping_reason not in (
        EarlyStoppingReason.NOT_STOPPED,
        EarlyStoppingReason.PATIENCE_EXHAUSTED,
    )
    return by_threshold or callback.wait_count >= callback.patience


def watch_anew(callback: EarlyStopping) -> None:
    """Has it forget what it saw."""
    callback.wait_count, callback.stopping_reason = 0, EarlyStoppingReason.NOT_STOPPED
    callback.best_score = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
