"""Early stopping that can be resumed."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from gpt_lightning.console import say


class EarlyStop(EarlyStopping):
    """Ends the run after a number of evaluations without a new lowest validation loss.

    Args:
        patience: Number of evaluations to wait.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val_loss", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            say(f"Stopping early: the validation loss has not fallen for {self.wait_count} evaluations.")


def has_triggered(callback: EarlyStopping) -> bool:
    """Return whether early stopping has triggered: by a threshold, or by its current patience."""
    by_threshold = callback.stopping_reason not in (
        EarlyStoppingReason.NOT_STOPPED,
        EarlyStoppingReason.PATIENCE_EXHAUSTED,
    )
    return by_threshold or callback.wait_count >= callback.patience
