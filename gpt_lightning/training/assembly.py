"""The callbacks and loggers of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.evaluation.baselines import Baselines
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.checkpointing import Checkpointing
from gpt_lightning.training.callbacks.early_stopping import EarlyStop
from gpt_lightning.training.callbacks.evaluation import Evaluation
from gpt_lightning.training.callbacks.exact_resume import ExactResume
from gpt_lightning.training.callbacks.learning_rate import FoundRate
from gpt_lightning.training.callbacks.metrics import Metrics, Summary
from gpt_lightning.training.callbacks.progress import Progress, StepBar
from gpt_lightning.training.callbacks.samples import Samples
from gpt_lightning.training.callbacks.signals import StopOnSignal
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.hardware import peak_flops
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import RunPlan


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks that `fit` reads results from.

    Attributes:
        progress: Tokens and seconds.
        stop: Signals received.
        checkpoints: Checkpoints saved.
        users: Callbacks from YAML.
    """

    progress: Progress
    stop: StopOnSignal
    checkpoints: Checkpointing
    users: list[Callback]


def build_callbacks(
    trainer: Trainer,
    run: Run,
    data: TextDataModule,
    module: GPTModule,
    config: RunConfig,
    plan: RunPlan,
    baselines: Baselines | None,
) -> RunCallbacks:
    """Set the Trainer's callbacks, in the order of their dependencies, and return those that `fit` reads."""
    training = config.training
    progress, stop = Progress(), StopOnSignal()
    checkpoints = Checkpointing(
        run, progress, stop, training.save_every, training.save_minutes, config.resume_settings, baselines
    )
    users = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if plan.content is None or not isinstance(callback, LearningRateFinder)  # a resumed run keeps its rate
    ]
    show_bar = config.has_progress_bar and not trainer.progress_bar_callback
    patience = training.early_stopping_patience
    token_ids = data.splits["training"].windows.token_ids
    trainer.callbacks = [  # type: ignore[attr-defined]
        progress,  # counts before others log
        Metrics(run, progress, peak_rate(trainer, config)),
        *([StepBar(module.total_steps)] if show_bar else []),
        *users,
        FoundRate(),  # after the LearningRateFinder
        *([] if patience is None else [EarlyStop(patience)]),
        # After all callbacks that may stop the run or average its weights.
        Evaluation(run, progress, training.evaluate_every, config.max_steps, config.init_from is not None),
        Summary(run, logged_settings(module, data)),
        Samples(run, token_ids, data.tokenizer, training.prompt, config.sampling, training.sample_every),
        stop,
        ExactResume(),  # restores random states after all callbacks that may draw numbers when training starts
        checkpoints,  # saves the state of all others
    ]
    return RunCallbacks(progress, stop, checkpoints, users)


def peak_rate(trainer: Trainer, config: RunConfig) -> float | None:
    """Return the peak FLOP/s of one device, or None if it is unknown."""
    return config.training.peak_flops or peak_flops(trainer.strategy.root_device, str(trainer.precision))


def add_loggers(trainer: Trainer, run: Run, hparams: dict[str, Any], has_tensorboard: bool) -> None:
    """Log the settings to the loggers from YAML, and add TensorBoard before them.

    Args:
        trainer: The run's Trainer.
        run: The run folder.
        hparams: Settings to log.
        has_tensorboard: Whether to add TensorBoard.
    """
    for logger in trainer.loggers:
        logger.log_hyperparams(hparams)
    if has_tensorboard:
        tensorboard = TensorBoardLogger(str(run.path), name="", version="", default_hp_metric=False)
        tensorboard.hparams.update(hparams)  # for its hparams.yaml
        trainer.loggers = [tensorboard, *trainer.loggers]


def logged_settings(module: GPTModule, data: TextDataModule) -> dict[str, Any]:
    """Return the settings of model and data for loggers, in file names with escapes for what is not UTF-8."""
    settings = {**module.hparams, **data.hparams}
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in settings.items()
    }
