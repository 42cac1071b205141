"""Before training, in `fit` and `check`: check the settings against the text, build the model, measure baselines."""

from __future__ import annotations

import numpy as np
from lightning.pytorch import Callback, Trainer

from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.baselines import Baselines, counted_tokens, measure_baselines
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.steps import Steps, accumulate_global_batch, count_steps

# Metrics that callbacks from YAML can monitor.
MONITORED = ("val_loss", "val_perplexity", "train_eval_loss", "train_eval_perplexity", "train_loss", "train_perplexity")


def prepare(trainer: Trainer, data: TextDataModule, config: RunConfig, *, is_resumed: bool) -> tuple[GPTModule, Steps]:
    """Check the settings that depend on the text, and build the LightningModule of a run.

    Args:
        trainer: The run's Trainer.
        data: Data module, set up.
        config: The settings of the run.
        is_resumed: Whether a checkpoint of the run will be restored; `init_from` is ignored then.

    Returns:
        The module, and the number of batches and optimizer steps.

    Raises:
        InputError: Settings are incompatible with the text, the vocabulary or each other.
        MachineError: The weights alone do not fit in memory.
    """
    config.model.check_memory()
    accumulate_global_batch(trainer, data)
    steps = count_steps(trainer, data, config.optimizer, config.max_steps)
    config.sampling.check_vocabulary(config.model.vocab_size)
    check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
    network = None
    if config.init_from is not None and not is_resumed:
        pretrained = open_checkpoint(config.init_from)
        network = pretrained.build_for_training(config.model, activation_checkpointing=config.activation_checkpointing)
    module = GPTModule(
        config.model,
        config.optimizer,
        compile=config.compile,
        activation_checkpointing=config.activation_checkpointing,
        total_steps=steps.total,
        network=network,
    )
    return module, steps


def check_callbacks(callbacks: list[Callback]) -> None:
    """Raise `InputError` if a callback from YAML monitors an unknown metric or averages weights by epochs."""
    for callback in callbacks:
        name = type(callback).__name__
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in MONITORED:
            raise InputError(f"trainer.callbacks: {name} cannot monitor {monitor!r}, only {', '.join(MONITORED)}")
        epoch = getattr(callback, "update_starting_at_epoch", None)
        if epoch is not None:
            raise InputError(
                f"trainer.callbacks: {name}'s update_starting_at_epoch ({epoch}) would change the weights between "
                "an epoch's last evaluation and its checkpoint; use update_starting_at_step"
            )


def measure_split_baselines(trainer: Trainer, data: TextDataModule, vocab_size: int, steps: Steps) -> Baselines:
    """Measure the baselines on the validation windows that the run evaluates."""
    train, val = data.splits["training"].windows, data.splits["validation"].windows
    windows = max(1, steps.val_batches * data.hparams["batch_size"] * trainer.world_size)
    weights = val.times_predicted(windows)
    return measure_baselines(
        np.asarray(train.token_ids[: counted_tokens(len(train.token_ids))]),
        np.asarray(val.token_ids[: len(weights)]),
        weights,
        vocab_size,
    )
