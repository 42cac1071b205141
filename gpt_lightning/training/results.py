"""The end of a run: what `fit` writes and prints when training has ended."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.console import labeled, say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.runs.figures import FORMATS, loss_figure, read_curve, save_figure
from gpt_lightning.runs.folder import BEST, LAST, Run
from gpt_lightning.runs.html_report import write_report
from gpt_lightning.runs.records import read_run
from gpt_lightning.training import summary
from gpt_lightning.training.assembly import RunCallbacks, peak_rate
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import RunPlan


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


def report_nothing_trained(trainer: Trainer, data: TextDataModule, config: RunConfig, plan: RunPlan, run: Run) -> None:
    """Report that a resumed run ended before its first optimizer step, and write its verdict and report again.

    Raises:
        InputError: The run is new.
    """
    if plan.content is None:
        windows = len(data.splits["training"].windows)
        raise InputError(
            "nothing was trained, because trainer.max_time or a callback ended the run before its first step "
            f"(data.batch_size is {data.hparams['batch_size']} for {windows} training windows)"
        )
    if trainer.is_global_zero:
        say(f"{plan.folder}: finished; nothing to do: trainer.max_time or a callback stops it at once")
        judge_run(trainer, data, config, run)  # resuming has removed the verdict and the report
        draw_report(run)


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
