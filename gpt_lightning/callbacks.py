"""What a run shows and writes: when it evaluates, its lines, samples, metrics and progress bar.

What is shown and written is so at the end of an optimizer step. Nothing here touches the global random state, the
training mode or the order of the data: a run's weights are the same with and without them.
"""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ProgressBar, WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from tqdm import tqdm

from gpt_lightning.console import say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.data.windows import Batch
from gpt_lightning.errors import DivergedError, InputError
from gpt_lightning.files import append_row, read_rows
from gpt_lightning.inference.completion import complete_all
from gpt_lightning.inference.sampling import Sampling
from gpt_lightning.models.loss import perplexity
from gpt_lightning.module import GPTModule
from gpt_lightning.runs.figures import loss_figure, read_curve, save_figure
from gpt_lightning.runs.folder import Run
from gpt_lightning.runs.metrics import BY_TOKENS

NEVER = sys.maxsize
ROWS_SHOWN = 200  # of samples in TensorBoard


def at_step_boundary(trainer: Trainer) -> bool:
    """Whether the batch that just ended completed an optimizer step (Lightning steps on an epoch's last)."""
    batches = trainer.fit_loop.batch_idx + 1
    return batches % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def run_ends(trainer: Trainer) -> bool:
    """Whether the optimizer step that just ended is the run's last; `Evaluation` sets `should_stop`."""
    max_epochs = trainer.max_epochs
    last_epoch = max_epochs is not None and max_epochs != -1 and trainer.current_epoch + 1 >= max_epochs
    return trainer.should_stop or (trainer.is_last_batch and last_epoch)


def evaluation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning will evaluate after the current batch; `Evaluation` decides it."""
    return trainer.val_check_batch == 1 or trainer.should_stop


@contextlib.contextmanager
def averages_in(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Has the averages of a WeightAveraging, which are what is evaluated and saved, be the module's weights."""
    averaging = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)


class Progress(Callback):
    """Counts tokens and time, and tells the data module how far the epoch has come.

    Attributes:
        tokens_seen: Of the whole run, all ranks together.
        epochs: How far the run has come, in epochs; 1.5 is half-way through the second.
        started: Whether a batch was trained on; before, a checkpoint is being restored.
        tokens_per_second: Of the last optimizer step, evaluation and saving left out.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.epochs = 0.0
        self.started = False
        self.tokens_per_second = math.nan
        self.session_tokens = 0
        self.session_seconds = 0.0  # in training steps
        self._step_tokens = 0
        self._step_seconds = 0.0
        self._batch_start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens_seen = int(state_dict["tokens_seen"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_tokens, self._step_seconds = 0, 0.0
        self._batch_start = time.perf_counter()
        self.started = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        tokens = batch[0].numel() * trainer.world_size
        seconds = time.perf_counter() - self._batch_start
        self.tokens_seen += tokens
        self.session_tokens += tokens
        self.session_seconds += seconds
        self._step_tokens += tokens
        self._step_seconds += seconds
        self.tokens_per_second = self._step_tokens / self._step_seconds
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextDataModule)
        epoch = trainer.current_epoch
        data.position = (epoch + 1, 0) if trainer.is_last_batch else (epoch, batch_idx + 1)
        self.epochs = epoch + (batch_idx + 1) / trainer.num_training_batches


class Evaluation(Callback):
    """Evaluates before the first update, every N optimizer steps and after the last; prints the line.

    Lightning counts batches between validations; here its counter is set so that it validates after
    this batch, or not at all. It also ends the run: at max_steps, and where a stop was asked for (by
    max_time, say) at the end of the optimizer step. So it has to come after the callbacks that ask.

    Args:
        run: Where the metrics go.
        progress: Counts tokens.
        every: Optimizer steps between evaluations.
        max_steps: Optimizer steps of the whole run; -1 for no limit. (Lightning's own limit, when a
            run is resumed at the end of an epoch, takes that epoch for unfinished.)

    Raises:
        DivergedError: A loss is infinite or not a number.
    """

    def __init__(self, run: Run, progress: Progress, every: int, max_steps: int) -> None:
        self.run = run
        self.progress = progress
        self.every = every
        self.max_steps = max_steps
        self._stop_requested = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        boundary = at_step_boundary(trainer)
        self._stop_requested |= trainer.should_stop or -1 < self.max_steps <= trainer.global_step
        trainer.should_stop = self._stop_requested and boundary
        due = boundary and (trainer.global_step % self.every == 0 or run_ends(trainer))
        trainer.val_check_batch = 1 if due else NEVER

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        if trainer.state.fn != "fit":
            return
        losses = pl_module.evaluated
        train_loss, val_loss = losses["train_eval_loss"], losses["val_loss"]
        if not math.isfinite(train_loss + val_loss):
            raise DivergedError(
                f"non-finite loss in the evaluation at step {trainer.global_step} "
                f"(Train loss {train_loss:.3f}, Val loss {val_loss:.3f})"
            )
        if not trainer.is_global_zero:
            return
        if trainer.sanity_checking:
            vocab_size = pl_module.model.vocab_size
            guess = f"; a blind guess, ln {vocab_size:,} = {math.log(vocab_size):.3f}"
            word, rest = ("Untrained", guess) if pl_module.starts_from is None else ("At first", "")
            say(f"{word} (Step 000000): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}{rest}")
        else:
            say(
                f"Ep {trainer.current_epoch + 1} (Step {trainer.global_step:06d}): "
                f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
            )
        log(trainer, self.run, self.progress, {name: losses[name] for name in sorted(losses)})


def log(trainer: Trainer, run: Run, progress: Progress, values: dict[str, float]) -> None:
    """Writes one event, at the current optimizer step, to the metrics table and to every logger.

    TensorBoard shows losses against tokens seen as well.
    """
    step, tokens_seen = trainer.global_step, progress.tokens_seen
    append_row(run.metrics_file, {"step": step, "epoch": progress.epochs, "tokens_seen": tokens_seen, **values})
    for logger in trainer.loggers:
        logger.log_metrics(values, step)
        if isinstance(logger, TensorBoardLogger):
            losses = {BY_TOKENS + name: value for name, value in values.items() if name.endswith("loss")}
            logger.log_metrics(losses, tokens_seen)


class Metrics(Callback):
    """Logs loss, perplexity, learning rate, gradient norm, tokens and speed of each optimizer step.

    Args:
        run: Where the metrics go.
        progress: Counts tokens.
        peak_flops: The most floating-point operations per second of one device, to log the share of them that
            the model's come to; None where unknown.
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
                values["flops_utilization"] = flops / (self.peak_flops * trainer.world_size)
            log(trainer, self.run, self.progress, values)
            for logger in trainer.loggers:
                logger.log_metrics({"tokens_seen": self.progress.tokens_seen}, trainer.global_step)


class Samples(Callback):
    """Prints what the model makes of each prompt, after each epoch and every N optimizer steps.

    Newlines are printed as spaces. It is the text that `predict` writes from a checkpoint of that step: it has to
    come after the callbacks that average weights and before the one that saves them.

    Args:
        run: Where samples.jsonl is.
        tokenizer: Of the run.
        prompts: Texts to continue.
        sampling: How.
        every: Optimizer steps between samples; None for after each epoch only.
    """

    def __init__(
        self, run: Run, tokenizer: Tokenizer, prompts: Sequence[str], sampling: Sampling, every: int | None
    ) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.sampling = sampling
        self.every = every
        self._sampled_step = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.every is not None and at_step_boundary(trainer) and trainer.global_step % self.every == 0:
            self._sample(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop:  # a run that ends inside of an epoch is saved before the epoch's end
            self._sample(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sample(trainer, pl_module)

    def _sample(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._sampled_step:
            return
        self._sampled_step = step
        assert isinstance(module, GPTModule)
        epoch = trainer.current_epoch + 1
        with averages_in(trainer, module):
            completed = list(complete_all(module.model, self.tokenizer, self.prompts, self.sampling))
        for one in completed:
            say(" ".join(one.text.splitlines()))
            row = {"step": step, "epoch": epoch, "prompt": one.prompt, "completion": one.completion}
            append_row(self.run.samples_file, row)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self.prompts:
                rows = read_rows(self.run.samples_file)[-ROWS_SHOWN:]
                logger.experiment.add_text("samples", samples_table(rows), step)


def samples_table(rows: list[dict[str, Any]]) -> str:
    """Rows of samples.jsonl as a table in Markdown."""

    def cell(text: object) -> str:
        return html.escape(" ".join(str(text).split())).replace("|", "&#124;")

    lines = ["| epoch | step | prompt | completion |", "|---|---|---|---|"]
    lines += [
        f"| {' | '.join(cell(row[name]) for name in ('epoch', 'step', 'prompt', 'completion'))} |" for row in rows
    ]
    return "\n".join(lines)


class Summary(Callback):
    """At the end of a run: its settings beside its last losses, before the last save, and the loss figure.

    Args:
        run: Where the figure goes.
        settings: Of the model and the data.
    """

    def __init__(self, run: Run, settings: dict[str, Any]) -> None:
        self.run = run
        self.settings = settings
        self._logged_step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_at_the_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_at_the_end(trainer, pl_module)

    def _log_at_the_end(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if not run_ends(trainer) or not trainer.is_global_zero or step == self._logged_step:
            return
        self._logged_step = step
        rows = self._evaluations()
        if not rows:  # a callback may end a run before its first evaluation
            return
        final = {
            "final/train_eval_loss": rows[-1]["train_eval_loss"],
            "final/val_loss": rows[-1]["val_loss"],
            "final/best_val_loss": min(row["val_loss"] for row in rows),
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                found = {"learning_rate": module.hparams["learning_rate"]}  # perhaps by a LearningRateFinder
                logger.log_hyperparams(self.settings | found, final, step)
                logger.save()
            else:
                logger.log_metrics(final, step)

    def _evaluations(self) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.run.metrics_file) if "val_loss" in row and row["step"] > 0]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._evaluations():
            draw_losses(self.run, trainer)


def draw_losses(run: Run, trainer: Trainer) -> None:
    """The loss figure of a run, in its folder and in TensorBoard."""
    figure = loss_figure([read_curve(run.path)])
    save_figure(figure, run.path / "loss")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure("loss", figure, trainer.global_step, close=False)


class EarlyStop(EarlyStopping):
    """Ends the run after an evaluation when the validation loss has not fallen for too long.

    Args:
        patience: Evaluations without a new lowest validation loss.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val_loss", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            say(f"Stopping early: the validation loss has not fallen for {self.wait_count} evaluations.")


def has_ended(callback: EarlyStopping) -> bool:
    """Whether it ended the run that its state is of: for its patience as now given, or for a threshold."""
    by_threshold = callback.stopping_reason not in (
        EarlyStoppingReason.NOT_STOPPED,
        EarlyStoppingReason.PATIENCE_EXHAUSTED,
    )
    return by_threshold or callback.wait_count >= callback.patience


def watch_anew(callback: EarlyStopping) -> None:
    """Has it forget what it saw."""
    callback.wait_count, callback.stopping_reason = 0, EarlyStoppingReason.NOT_STOPPED
    callback.best_score = torch.tensor(math.inf if callback.mode == "min" else -math.inf)


class FoundRate(Callback):
    """Says what a LearningRateFinder, which has to come before it, has found.

    Raises:
        InputError: It is below model.min_learning_rate, in which the schedule ends.
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


class StepBar(ProgressBar):
    """One progress bar for the whole run, in optimizer steps, on stderr.

    Args:
        total_steps: Optimizer steps of the whole run; may be infinite.
    """

    def __init__(self, total_steps: float) -> None:
        super().__init__()
        self.total_steps = total_steps
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._bar = tqdm(
            total=int(self.total_steps) if math.isfinite(self.total_steps) else None,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file needs no animation
            miniters=1,
            file=sys.stderr,
            disable=not self._enabled or not trainer.is_global_zero,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._bar is not None and at_step_boundary(trainer):
            self._bar.set_postfix(train_loss=f"{outputs['train_loss'].item():.3f}", refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
