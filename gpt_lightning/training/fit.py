"""`fit`: check the settings, create the run folder, train, and report the result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.console import labeled, say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError, MachineError, Stopped
from gpt_lightning.evaluation.baselines import Baselines, measure_baselines
from gpt_lightning.evaluation.memorization import Memorization
from gpt_lightning.files import read_rows, replace_bytes
from gpt_lightning.runs.figures import FORMATS, loss_figure, read_curve, save_figure
from gpt_lightning.runs.folder import BEST, LAST, PREVIOUS, RUN_DIR_ENV, RUNS, Run, new_run_folder
from gpt_lightning.runs.html_report import write_report
from gpt_lightning.runs.records import read_run
from gpt_lightning.training import summary
from gpt_lightning.training.callbacks.checkpointing import Checkpointing
from gpt_lightning.training.callbacks.early_stopping import EarlyStop
from gpt_lightning.training.callbacks.evaluation import Evaluation
from gpt_lightning.training.callbacks.exact_resume import ExactResume
from gpt_lightning.training.callbacks.learning_rate import FoundRate
from gpt_lightning.training.callbacks.metrics import Metrics, Summary
from gpt_lightning.training.callbacks.progress import Progress, StepBar
from gpt_lightning.training.callbacks.samples import Samples
from gpt_lightning.training.callbacks.signals import StopOnSignal, requeue
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.environment import recorded
from gpt_lightning.training.failures import explained
from gpt_lightning.training.hardware import allow_tf32, keep_freed_memory, peak_flops
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import RunPlan
from gpt_lightning.training.steps import Steps, count_steps

# Metrics that callbacks from YAML can monitor.
MONITORED = ("val_loss", "val_perplexity", "train_eval_loss", "train_eval_perplexity", "train_loss", "train_perplexity")


def fit(
    trainer: Trainer,
    data: TextDataModule,
    config: RunConfig,
    plan: RunPlan,
    resolved_config: str,
    defaults: dict[str, Any],
    resume_command: str,
) -> Path:
    """Train a new run or resume one, and print a summary.

    Args:
        trainer: A Trainer without `max_steps`, which `Evaluation` applies.
        data: Data module that has not been set up.
        config: The settings of the run.
        plan: Whether the run is new or resumed.
        resolved_config: YAML with every setting, written to the run folder.
        defaults: The default of each setting, by its full name.
        resume_command: Shell command that resumes the run.

    Returns:
        The run folder.

    Raises:
        InputError: Settings, text, checkpoint and machine are incompatible; nothing was written.
        MachineError: Memory, disk or network failed.
        DivergedError: A loss, a gradient or a weight is not finite.
        Stopped: A signal stopped the run; its last optimizer step is saved.
    """
    start = time.monotonic()
    data.setup("fit")
    plan.check_text(data)
    if plan.is_finished(config.max_epochs, config.max_steps, config.training.early_stopping_patience):
        return report_finished(trainer, data, config, plan)
    module, steps = prepare(trainer, data, config, is_resumed=plan.content is not None)
    with open_run(trainer, plan, config, resolved_config) as run:
        baselines = None
        if trainer.is_global_zero:
            baselines = measure_split_baselines(trainer, data, config.model.vocab_size, steps)
            run.write_baselines(asdict(baselines))
        callbacks = build_callbacks(trainer, run, data, module, config, plan, baselines)
        add_loggers(trainer, run, logged_settings(module, data), config.has_tensorboard)
        if baselines is not None:
            announce(trainer, data, config, plan, steps, run, baselines)
        with recorded(trainer, data, config, steps, run, plan, defaults, start):
            train(trainer, data, module, config, plan, run, callbacks, resume_command)
        if callbacks.progress.session_tokens == 0:
            check_why_nothing_was_trained(plan, data)
            if trainer.is_global_zero:
                judge_run(trainer, data, config, run)  # `restore_files` has removed the verdict and the report
                draw_report(run)
        elif trainer.is_global_zero:
            report_result(trainer, data, module, config, run, callbacks, time.monotonic() - start, resume_command)
        return run.path


# ---- before the run folder is created


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


def measure_split_baselines(trainer: Trainer, data: TextDataModule, vocab_size: int, steps: Steps) -> Baselines:
    """Measure the baselines on the validation windows that the run evaluates."""
    train, val = data.splits["training"].windows, data.splits["validation"].windows
    windows = max(1, steps.val_batches * data.hparams["batch_size"] * trainer.world_size)
    weights = val.times_predicted(windows)
    return measure_baselines(
        np.asarray(train.token_ids), np.asarray(val.token_ids[: len(weights)]), weights, vocab_size
    )


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


def report_finished(trainer: Trainer, data: TextDataModule, config: RunConfig, plan: RunPlan) -> Path:
    """Report that the run to resume has reached its limits, and write its figure, verdict and report if missing.

    Raises:
        InputError: The run's best.ckpt is missing or damaged.
    """
    folder = Path(str(plan.folder))
    if trainer.is_global_zero:
        try:
            read_checkpoint(folder / "checkpoints" / BEST)
        except InputError as error:
            raise InputError(f"{folder}: finished, but {error}; its {LAST} is intact") from None
        if not all((folder / f"loss.{one}").exists() for one in FORMATS):
            try:
                save_figure(loss_figure([read_curve(folder)]), folder / "loss")
            except InputError as error:
                warn(f"{error}, so the loss figure is not drawn")
        limits = "trainer.max_epochs, trainer.max_steps and early_stopping_patience"
        run = Run(folder)
        verdict = [] if run.summary_file.exists() else judge_run(trainer, data, config, run)
        report = [] if run.report_file.exists() else draw_report(run)
        for line in (*verdict, *report):
            say(line)
        say(f"{folder}: finished; nothing is left to do within {limits}")
    return folder.absolute()


@contextlib.contextmanager
def open_run(trainer: Trainer, plan: RunPlan, config: RunConfig, resolved_config: str) -> Iterator[Run]:
    """Create and lock the run folder on rank 0, which passes its path to the other ranks."""
    if not trainer.is_global_zero:
        yield Run(Path(os.environ.get(RUN_DIR_ENV) or plan.folder or RUNS))
        return
    is_new = plan.folder is None or not plan.folder.exists()
    run = Run(plan.folder or new_run_folder(plan.name))
    try:
        run.open()
        run.check_space(summary.checkpoint_bytes(config.model)[1])
        restore_files(run, plan)
        replace_bytes(run.path / f"{plan.name}.yaml", resolved_config.encode())
        if run.is_numbered:
            run.link_latest()
        os.environ[RUN_DIR_ENV] = str(run.path)
        yield run
    except BaseException:
        if is_new and run.is_open and not read_rows(run.metrics_file):  # no evaluation to keep
            run.discard()
        raise
    finally:
        os.environ.pop(RUN_DIR_ENV, None)
        run.close()


def restore_files(run: Run, plan: RunPlan) -> None:
    """Cut the logs of a run folder back to its checkpoint, or to nothing without one, and set unusable files aside."""
    if plan.content is None:
        if run.best.exists():
            kept = run.best.with_suffix(".kept")
            os.replace(run.best, kept)
            warn(
                f"{run.display_path} has no last.ckpt to resume from and restarts; its best.ckpt is kept as {kept.name}"
            )
        run.cut_logs(-1, -1)
        return
    progress = plan.content["gpt_lightning"]["progress"]
    run.cut_logs(progress["steps"], progress["tokens_seen"])
    if plan.checkpoint is not None and plan.checkpoint.name == PREVIOUS and run.last.exists():
        os.replace(run.last, run.last.with_suffix(".damaged"))  # else the next save would keep it as prev.ckpt


# ---- the run


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
    memorization = Memorization(data.splits["training"].windows.token_ids, data.tokenizer)
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
        Samples(run, memorization, training.prompt, config.sampling, training.sample_every),
        stop,
        ExactResume(),  # restores random states after all callbacks that may draw numbers when training starts
        checkpoints,  # saves the state of all others
    ]
    return RunCallbacks(progress, stop, checkpoints, users)


def peak_rate(trainer: Trainer, config: RunConfig) -> float | None:
    """Return the peak FLOP/s of one device, or None if it is unknown."""
    return config.training.peak_flops or peak_flops(trainer.strategy.root_device, str(trainer.precision))


def logged_settings(module: GPTModule, data: TextDataModule) -> dict[str, Any]:
    """Return the settings of model and data for loggers, in file names with escapes for what is not UTF-8."""
    settings = {**module.hparams, **data.hparams}
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in settings.items()
    }


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


def announce(
    trainer: Trainer,
    data: TextDataModule,
    config: RunConfig,
    plan: RunPlan,
    steps: Steps,
    run: Run,
    baselines: Baselines,
) -> None:
    """Print the text, baselines, model, device and run folder before training."""
    init_from = config.init_from if plan.content is None else None
    for line in (
        *summary.describe_start(trainer, data, config, steps, baselines, init_from),
        summary.describe_folder(run.display_path, config.model),
    ):
        say(line)
    if plan.content is not None:
        say(labeled("resumed", f"after step {plan.content['global_step']}"))


def train(
    trainer: Trainer,
    data: TextDataModule,
    module: GPTModule,
    config: RunConfig,
    plan: RunPlan,
    run: Run,
    callbacks: RunCallbacks,
    resume_command: str,
) -> None:
    """Run Lightning's training loop, with errors translated by `explained`.

    Raises:
        Stopped: A signal stopped the run; the command that resumes it has been printed.
    """
    if plan.content is not None:
        trainer.num_sanity_val_steps = 0  # the evaluation before the first optimizer step
    # A LearningRateFinder saves its initial weights there; the only public name is an argument of Trainer.
    trainer._default_root_dir = str(run.path)  # type: ignore[attr-defined]
    allow_tf32(trainer.strategy.root_device)
    keep_freed_memory()
    seed_everything(config.training.seed_everything, workers=True, verbose=False)
    progress, checkpoints = callbacks.progress, callbacks.checkpoints
    try:
        with explained(trainer, data, run, callbacks.users, plan.checkpoint, progress, checkpoints):
            trainer.fit(module, data, ckpt_path=plan.checkpoint, weights_only=True)
    except Stopped:
        if trainer.is_global_zero:
            say(f"Stopped after step {checkpoints.saved_step}, which is saved. To resume:")
            say(f"  {resume_command}")
            if callbacks.stop.is_preempted:
                requeue()
        raise


def check_why_nothing_was_trained(plan: RunPlan, data: TextDataModule) -> None:
    """Report that a resumed run had nothing left to do; raise `InputError` for a new run."""
    if plan.content is not None:
        say(f"{plan.folder}: finished; nothing to do: trainer.max_time or a callback stops it at once")
        return
    raise InputError(
        "nothing was trained, because trainer.max_time or a callback ended the run before its first step "
        f"(data.batch_size is {data.hparams['batch_size']} for {len(data.splits['training'].windows)} training windows)"
    )


def report_result(
    trainer: Trainer,
    data: TextDataModule,
    module: GPTModule,
    config: RunConfig,
    run: Run,
    callbacks: RunCallbacks,
    seconds: float,
    resume_command: str,
) -> None:
    """Summarize the run, after checking that its checkpoints can be read, as exit code 0 promises.

    Raises:
        MachineError: A checkpoint cannot be read.
    """
    for path in (run.best, run.last):
        try:
            read_checkpoint(path)
        except InputError as error:
            raise MachineError(f"{error}, although it was just written") from None
    checkpoints = callbacks.checkpoints
    left = [one.time_remaining() for one in callbacks.users if isinstance(one, Timer)]
    if trainer.global_step < module.total_steps and any(one is not None and one <= 0 for one in left):
        say(f"Stopped by trainer.max_time after step {checkpoints.saved_step}. To resume with more time:")
        say(f"  {resume_command}")
    prompt = config.training.prompt[0] if config.training.prompt else "Every effort moves you"
    flops = config.model.flops_per_token / trainer.world_size, peak_rate(trainer, config)
    verdict = [*judge_run(trainer, data, config, run), *draw_report(run)]
    for line in summary.summarize_run(run, callbacks.progress, checkpoints, seconds, flops, verdict, prompt):
        say(line)


def judge_run(trainer: Trainer, data: TextDataModule, config: RunConfig, run: Run) -> list[str]:
    """Write summary.json and return the lines to print; warn if it fails, because the run is complete and saved."""
    try:
        return summary.write_verdict(run, trainer, data, config)
    except Exception as error:  # also a bug
        warn(f"the verdict is not written: {_reason(error)}; the run is complete, `fit --resume` tries again")
        return []


def draw_report(run: Run) -> list[str]:
    """Write report.html and return the line to print; warn if it fails, because the training is complete and saved."""
    try:
        write_report([read_run(run.path)], run.report_file)
    except Exception as error:  # also a bug, which `report` then shows
        warn(
            f"the report is not written: {_reason(error)}; the run is complete, `report {run.display_path}` tries again"
        )
        return []
    return [labeled("report", f"{run.display_path}/{run.report_file.name}")]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) if isinstance(error, (InputError, MachineError)) else repr(error)
