"""The number of batches and optimizer steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError
from gpt_lightning.training.optimizers import OptimizerConfig


@dataclass(frozen=True)
class Steps:
    """The batches and optimizer steps of a run.

    Attributes:
        train_batches: Batches per epoch on each rank.
        val_batches: Validation batches per evaluation and rank.
        per_epoch: Optimizer steps of the first epoch.
        total: Optimizer steps of the whole run; infinity if the run has no limit.
    """

    train_batches: int
    val_batches: int
    per_epoch: int
    total: float


def count_steps(trainer: Trainer, data: TextDataModule, optimizer: OptimizerConfig, max_steps: int) -> Steps:
    """Count the batches and optimizer steps of a run.

    Args:
        trainer: The run's Trainer, with all limits except `max_steps`.
        data: Data module, set up.
        optimizer: The learning-rate schedule, which must fit the number of steps.
        max_steps: Limit on the optimizer steps of the whole run; -1 for none.

    Raises:
        InputError: A limit leaves no batch, or the learning-rate schedule does not fit the number of steps.
    """
    train_batches = data.count_train_batches(trainer.world_size)
    train_batches = limited("limit_train_batches", trainer.limit_train_batches, train_batches)
    val_batches = data.count_val_batches(trainer.world_size)
    val_batches = limited("limit_val_batches", trainer.limit_val_batches, val_batches)
    total = math.inf if max_steps == -1 else max_steps
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        total = min(total, sum(steps_of_epoch(trainer, train_batches, epoch) for epoch in range(trainer.max_epochs)))
    if optimizer.warmup_steps >= total:
        raise InputError(
            f"model.warmup_steps ({optimizer.warmup_steps}) must be below the run's {total} steps; 0 turns warm-up off"
        )
    if optimizer.min_learning_rate is not None and math.isinf(total):
        raise InputError(
            "model.min_learning_rate needs a run of known length; set trainer.max_epochs or trainer.max_steps"
        )
    return Steps(train_batches, val_batches, steps_of_epoch(trainer, train_batches, 0), total)


def accumulate_global_batch(trainer: Trainer, data: TextDataModule) -> None:
    """Set the Trainer's accumulation for `data.global_batch_size`, and count its limits in batches of that size.

    Raises:
        InputError: The batches of all ranks do not divide it, or the Trainer accumulates as another setting says.
    """
    size, batch_size = data.hparams["global_batch_size"], data.hparams["batch_size"]
    if size is None:
        return
    scheduled = any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks)  # type: ignore[attr-defined]
    if trainer.accumulate_grad_batches != 1 or scheduled:
        name = "trainer.callbacks GradientAccumulationScheduler" if scheduled else "trainer.accumulate_grad_batches"
        raise InputError(f"data.global_batch_size ({size}) sets the number of accumulated batches; leave {name} out")
    if size % (batch_size * trainer.world_size):
        raise InputError(
            f"data.global_batch_size ({size}) must be a multiple of data.batch_size ({batch_size}) times the number of "
            f"processes ({trainer.world_size})"
        )
    trainer.accumulate_grad_batches = size // (batch_size * trainer.world_size)
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = getattr(trainer, name)
        if isinstance(limit, int):
            setattr(trainer, name, limit * trainer.accumulate_grad_batches)
        elif limit != 1:  # a share of the batches of each rank, rounded down, which depends on their number
            raise InputError(f"trainer.{name} ({limit}) must be an int if data.global_batch_size is set")


def steps_of_epoch(trainer: Trainer, batches: int, epoch: int) -> int:
    """Return the optimizer steps of an epoch, counting a last one that accumulates fewer batches."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return math.ceil(batches / callback.get_accumulate_grad_batches(epoch))
    return math.ceil(batches / trainer.accumulate_grad_batches)


def limited(name: str, limit: float, batches: int) -> int:
    """Return the number of batches within a limit of the Trainer.

    Args:
        name: Name of the limit, for the message.
        limit: Number of batches as an int, or their share as a float.
        batches: Number of batches without the limit.

    Raises:
        InputError: No batch is left.
    """
    count = min(limit, batches) if isinstance(limit, int) else int(batches * limit)
    if count < 1:
        raise InputError(f"trainer.{name} ({limit}) leaves none of the {batches} batches")
    return int(count)
