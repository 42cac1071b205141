"""How many batches and optimizer steps a run has."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from gpt_lightning.errors import InputError
from gpt_lightning.training.module import GPTModule


def steps_of_epoch(trainer: Trainer, batches: int, epoch: int) -> int:
    """Optimizer steps of an epoch with so many batches; the last may have fewer batches than the others."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return math.ceil(batches / callback.get_accumulate_grad_batches(epoch))
    return math.ceil(batches / trainer.accumulate_grad_batches)


def count_steps(trainer: Trainer, module: GPTModule, batches: int, max_steps: int) -> float:
    """Optimizer steps of the whole run; infinite without a limit.

    Raises:
        InputError: The schedule of the learning rate does not fit.
    """
    steps = math.inf if max_steps == -1 else max_steps
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        steps = min(steps, sum(steps_of_epoch(trainer, batches, epoch) for epoch in range(trainer.max_epochs)))
    warmup_steps = module.hparams["warmup_steps"]
    if warmup_steps >= steps:
        raise InputError(f"model.warmup_steps ({warmup_steps}) must be below the run's {steps} steps; 0 is none")
    if module.hparams["min_learning_rate"] is not None and math.isinf(steps):
        raise InputError("model.min_learning_rate needs an end: set trainer.max_epochs or trainer.max_steps")
    return steps


def limited(name: str, limit: float, batches: int) -> int:
    """How many of the batches a limit of Lightning (a number, or a share as a float) lets through.

    Raises:
        InputError: None.
    """
    count = min(limit, batches) if isinstance(limit, int) else int(batches * limit)
    if count < 1:
        raise InputError(f"trainer.{name} ({limit}) leaves none of the {batches} batches")
    return int(count)
