"""Logging of metrics to metrics.jsonl and the loggers, and the loss figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from gpt_lightning.data.windows import Batch
from gpt_lightning.errors import InputError
from gpt_lightning.files import append_row
from gpt_lightning.models.loss import perplexity
from gpt_lightning.runs.figures import Curve, curve_of, loss_figure, save_figure
from gpt_lightning.runs.folder import Run
from gpt_lightning.runs.metrics import BY_TOKENS, FINAL, tensorboard_tag
from gpt_lightning.runs.records import read_losses
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.step_end import StepEnd, at_step_boundary
from gpt_lightning.training.module import GPTModule


def log(
    trainer: Trainer,
    run: Run,
    progress: Progress,
    values: dict[str, float],
    recorded: Mapping[str, Any] | None = None,
) -> None:
    """Write values of the current optimizer step to metrics.jsonl and to every logger.

    TensorBoard gets them in groups, and each loss again with tokens_seen as its x-axis.

    Args:
        trainer: The run's Trainer.
        run: The run folder.
        progress: Counter of tokens and epochs.
        values: Value of each metric by name.
        recorded: Lists for metrics.jsonl only.
    """
    step, tokens_seen = trainer.global_step, progress.tokens_seen
    row = {"step": step, "epoch": progress.epochs, "tokens_seen": tokens_seen, **values, **(recorded or {})}
    append_row(run.metrics_file, row)
    log_to_loggers(trainer, values)
    losses = {BY_TOKENS + name: value for name, value in values.items() if name.endswith("loss")}
    for logger in tensorboards_of(trainer):
        logger.log_metrics(losses, tokens_seen)


def tensorboards_of(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers of a run, usually one or none."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_to_loggers(trainer: Trainer, values: dict[str, float]) -> None:
    """Write values of the current optimizer step to every logger, to TensorBoard in groups."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            grouped = {tensorboard_tag(name): value for name, value in values.items()}
            logger.log_metrics(grouped, trainer.global_step)
        else:
            logger.log_metrics(values, trainer.global_step)


class Metrics(Callback):
    """Logs loss, perplexity, learning rate, gradient norm, tokens and speed of each optimizer step.

    Args:
        run: The run folder; metrics are written there.
        progress: Counter of tokens.
        peak_flops: Peak FLOP/s of one device, to log the share of it that is used (`mfu`); None if unknown.
    """

    def __init__(self, run: Run, progress: Progress, peak_flops: float | None) -> None:
        self.run = run
        self.progress = progress
        self.peak_flops = peak_flops
        self._losses: list[Tensor] = []
        self._learning_rate = math.nan

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GPTModule)
        self._losses.append(outputs["train_loss"])
        if not at_step_boundary(trainer):
            return
        loss = trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean").item()
        self._losses = []
        if trainer.is_global_zero and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = {
                "train_loss": loss,
                "train_perplexity": perplexity(loss),
                "learning_rate": self._learning_rate,
                "gradient_norm": pl_module.gradient_norm,
                "tokens_per_second": self.progress.tokens_per_second,
            }
            if self.peak_flops is not None:
                flops = self.progress.tokens_per_second * pl_module.flops_per_token
                values["mfu"] = flops / (self.peak_flops * trainer.world_size)
            log(trainer, self.run, self.progress, values)
            log_to_loggers(trainer, {"tokens_seen": self.progress.tokens_seen})


class Summary(StepEnd):
    """Logs the settings and the final losses before the last save, and draws the loss figure after it.

    Args:
        run: The run folder; the figure is written there.
        settings: Settings of the model and the data.
    """

    def __init__(self, run: Run, settings: dict[str, Any]) -> None:
        self.run = run
        self.settings = settings
        self._curve: Curve | None = None

    def after_step(self, trainer: Trainer, module: LightningModule, *, epoch_ended: bool, run_ends: bool) -> None:
        if not run_ends or not trainer.is_global_zero:
            return
        self._curve = find_curve(self.run)
        if self._curve is None:
            return
        step = trainer.global_step
        final = {
            f"{FINAL}train_eval_loss": self._curve.train[-1],
            f"{FINAL}val_loss": self._curve.val[-1],
            f"{FINAL}best_val_loss": min(self._curve.val),
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                found = {"learning_rate": module.hparams["learning_rate"]}  # a LearningRateFinder may have changed it
                logger.log_hyperparams(self.settings | found, final, step)
                logger.save()
            else:
                logger.log_metrics(final, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            curve = self._curve or find_curve(self.run)  # None if a resumed run had no step left
            if curve is not None:
                draw_losses(self.run, trainer, curve)


def find_curve(run: Run) -> Curve | None:
    """Return the losses of a run's evaluations; None if it ended before the first one, or if a file is damaged."""
    try:
        return curve_of(read_losses(run.path))
    except InputError:  # `fit` says so where it writes the verdict
        return None


def draw_losses(run: Run, trainer: Trainer, curve: Curve) -> None:
    """Draw the loss figure of a run and save it in the run folder and in TensorBoard."""
    figure = loss_figure([curve])
    save_figure(figure, run.path / "loss")
    for logger in tensorboards_of(trainer):
        logger.experiment.add_figure("loss_figure", figure, trainer.global_step, close=False)
