"""Reporting of the learning rate that a LearningRateFinder found."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder

from gpt_lightning.console import say, warn
from gpt_lightning.errors import InputError


class FoundRate(Callback):
    """Prints the learning rate that a LearningRateFinder found; must come after it.

    Raises:
        InputError: The rate is below model.min_learning_rate, where the schedule ends.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for finder in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(finder, LearningRateFinder) or finder.optimal_lr is None:
                continue
            found, least = finder.optimal_lr.suggestion(), pl_module.hparams["min_learning_rate"]
            if found is None and trainer.is_global_zero:
                warn("trainer.callbacks: LearningRateFinder had too few steps to find a learning rate")
            elif found is not None and least is not None and found < least:
                raise InputError(
                    f"trainer.callbacks: LearningRateFinder found {found:.3g}, below model.min_learning_rate ({least})"
                )
            elif trainer.is_global_zero:
                used = pl_module.hparams["learning_rate"]
                say(f"learning rate {found:.3g} found by LearningRateFinder; {used:.3g} is used")
