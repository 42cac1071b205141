"""The end of a run: what `fit` writes and prints when training has ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.console import labeled, say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import replace_bytes
from gpt_lightning.runs.figures import FORMATS, curve_of, loss_figure, save_figure
from gpt_lightning.runs.folder import BEST, LAST, Run
from gpt_lightning.runs.html_report import write_report
from gpt_lightning.runs.records import RunRecord, read_run
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
    flops = config.optimizer.flops_per_token(config.model) / trainer.world_size, peak_rate(trainer, config)
    written = write_results(trainer, data, config, run)
    for line in summary.summarize_run(run, callbacks.progress, checkpoints, seconds, flops, written, prompt):
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
        write_results(trainer, data, config, run)  # resuming has removed the verdict and the report


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
        limits = "trainer.max_epochs, trainer.max_steps and early_stopping_patience"
        for line in write_results(trainer, data, config, Run(folder)):
            say(line)
        say(f"{folder}: finished; nothing is left to do within {limits}")
    return folder.absolute()


def write_results(trainer: Trainer, data: TextDataModule, config: RunConfig, run: Run) -> list[str]:
    """Write the loss figure, the verdict and the report of a complete run, those that are missing.

    They follow from one record of the run, so that its files are read, and their damaged lines warned about, once.

    Returns:
        The lines to print about the verdict and the report.
    """
    has_figure = all((run.path / f"loss.{one}").exists() for one in FORMATS)
    present = {"loss figure": has_figure, "verdict": run.summary_file.exists(), "report": run.report_file.exists()}
    missing = [name for name, is_present in present.items() if not is_present]
    lines: list[str] = []
    if not missing:
        return lines
    with tolerated(missing):
        record = read_run(run.path)
        if "loss figure" in missing:
            with tolerated(["loss figure"]):
                draw_figure(record, run)
        if "verdict" in missing:
            with tolerated(["verdict"]):
                verdict = summary.judge_run(record, trainer, data, config)
                if verdict is not None:
                    record = replace(record, summary=verdict.to_dict())
                    replace_bytes(run.summary_file, (json.dumps(record.summary, indent=1) + "\n").encode())
                    lines += summary.describe_verdict(verdict)
        if "report" in missing:
            with tolerated(["report"], f"report {run.display_path}"):
                lines += draw_report(record, run)
    return lines


@contextlib.contextmanager
def tolerated(results: list[str], command: str = "fit --resume") -> Iterator[None]:
    """Warn if results cannot be written, also because of a bug: the run is complete and saved.

    Args:
        results: What the body writes.
        command: The command that tries again.
    """
    try:
        yield
    except Exception as error:
        what = f"the {' and the '.join(results)} {'is' if len(results) == 1 else 'are'} not written"
        reason = " ".join(str(error).split()) if isinstance(error, (InputError, MachineError)) else repr(error)
        warn(f"{what}: {reason}; the run is complete, `{command}` tries again")


def draw_figure(record: RunRecord, run: Run) -> None:
    """Draw the loss figure of a run.

    Raises:
        InputError: The run has no evaluation to draw.
    """
    curve = curve_of(record)
    if curve is None:
        raise InputError(f"{run.display_path}: has no evaluation after the first optimizer step")
    save_figure(loss_figure([curve]), Path(run.display_path, "loss"))


def draw_report(record: RunRecord, run: Run) -> list[str]:
    """Write report.html and return the line to print."""
    write_report([record], Path(run.display_path, run.report_file.name))
    return [labeled("report", f"{run.display_path}/{run.report_file.name}")]
