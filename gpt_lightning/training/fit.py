"""`fit`: the order of a run, from its settings to its result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything

from gpt_lightning.console import labeled, say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import Stopped
from gpt_lightning.evaluation.baselines import Baselines
from gpt_lightning.files import read_rows, replace_bytes
from gpt_lightning.runs.folder import PREVIOUS, RUN_DIR_ENV, RUNS, Run, new_run_folder
from gpt_lightning.runs.tables import cut_logs
from gpt_lightning.training import summary
from gpt_lightning.training.assembly import RunCallbacks, add_loggers, build_callbacks, logged_settings
from gpt_lightning.training.callbacks.signals import requeue
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.distributed import FullyShardedStrategy, failing_together, in_turns, require_same
from gpt_lightning.training.environment import recorded
from gpt_lightning.training.failures import explained
from gpt_lightning.training.hardware import allow_tf32, keep_freed_memory, return_freed_memory
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.preparation import measure_split_baselines, prepare
from gpt_lightning.training.results import report_finished, report_nothing_trained, report_result
from gpt_lightning.training.resume import RunPlan
from gpt_lightning.training.steps import Steps


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
    in_turns(lambda: data.setup("fit"))
    assert data.source is not None
    require_same({"a text with sha256": data.source.sha256, "a validation text with sha256": data.val_sha256})
    plan.check_text(data)
    plan.check_batches(data, trainer.world_size)
    if plan.is_finished(config.max_epochs, config.max_steps, config.training.early_stopping_patience):
        return report_finished(trainer, data, config, plan)
    with contextlib.ExitStack() as stack:
        with failing_together():
            module, steps = prepare(trainer, data, config, is_resumed=plan.content is not None)
            run = stack.enter_context(open_run(trainer, plan, config, resolved_config))
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
            report_nothing_trained(trainer, data, config, plan, run)
        elif trainer.is_global_zero:
            report_result(trainer, data, module, config, run, callbacks, time.monotonic() - start, resume_command)
        return run.path


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
        run.check_space(summary.checkpoint_bytes(config)[1])
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
        cut_logs(run, -1, -1)
        return
    progress = plan.content["gpt_lightning"]["progress"]
    cut_logs(run, progress["steps"], progress["tokens_seen"])
    if plan.checkpoint is not None and plan.checkpoint.name == PREVIOUS and run.last.exists():
        os.replace(run.last, run.last.with_suffix(".damaged"))  # else the next save would keep it as prev.ckpt


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
        summary.describe_folder(run.display_path, config),
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
    if isinstance(trainer.strategy, FullyShardedStrategy):
        return_freed_memory()
    else:
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
