"""The settings of a run as dataclasses, which check their values when they are created."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.runs.records import EXPECTED_LOSSES
from gpt_lightning.training.optimizers import OptimizerConfig
from gpt_lightning.validation import require, require_integer, require_number


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of evaluation, samples, checkpoints and early stopping.

    Args:
        seed_everything: Seed of all random number generators.
        prompt: Text to complete after each epoch; may be repeated.
        evaluate_every: Optimizer steps between evaluations.
        evaluate_batches: Training batches in each evaluation.
        sample_every: Optimizer steps between samples; null: after each epoch only.
        early_stopping_patience: Evaluations without improvement before the run stops; null: never.
        save_every: Optimizer steps between checkpoints.
        save_minutes: Minutes between checkpoints. If save_every is null, too, saving takes about 2.5 % of the time.
        process_timeout: Minutes to wait for another process before failing.
        peak_flops: Peak FLOP/s of one device; mfu is the share of it that is reached. null: the vendor's figure.

    Raises:
        InputError: A value is out of range.
    """

    seed_everything: int = 123
    prompt: list[str] = field(default_factory=list)
    evaluate_every: int = 5
    evaluate_batches: int = 5
    sample_every: int | None = None
    early_stopping_patience: int | None = None
    save_every: int | None = None
    save_minutes: float | None = None
    process_timeout: float = 30.0
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        require_integer("seed_everything", self.seed_everything, 0, 2**32 - 1)
        for name in ("evaluate_every", "evaluate_batches"):
            require_integer(name, getattr(self, name), 1)
        for name in ("sample_every", "save_every", "early_stopping_patience"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        must = "be above 0 and at most 100,000"
        require_number("process_timeout", self.process_timeout, must, lambda minutes: 0 < minutes <= 100_000)
        for name in ("peak_flops", "save_minutes"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), "be above 0", lambda number: number > 0)


@dataclass(frozen=True)
class ExpectedConfig:
    """The ranges in which a config expects the losses of its run on its own text.

    They are compared only with a run of these sizes, and the command line drops them with any setting that changes
    losses (`cli.arguments.changes_losses`).

    Args:
        sha256: Checksum of the text; null: nothing is expected.
        steps: Optimizer steps of the run.
        parameters: Parameters of the model.
        untrained_val_loss: Lowest and highest validation loss before training.
        best_val_loss: Lowest and highest best validation loss.
        last_train_eval_loss: Lowest and highest training loss (in evaluation mode) at the end.

    Raises:
        InputError: A value is out of range.
    """

    sha256: str | None = None
    steps: int | None = None
    parameters: int | None = None
    untrained_val_loss: list[float] | None = None
    best_val_loss: list[float] | None = None
    last_train_eval_loss: list[float] | None = None

    def __post_init__(self) -> None:
        if self.sha256 is None:
            return
        is_checksum = re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None
        require(is_checksum, "expected.sha256", "be 64 hexadecimal digits", self.sha256)
        for name in ("steps", "parameters"):
            require_integer(f"expected.{name}", getattr(self, name), 1)
        for name, limits in self.ranges.items():
            is_range = len(limits) == 2 and limits[0] <= limits[1]  # False for NaN
            require(is_range, f"expected.{name}", "be the lowest and the highest value", limits)

    @property
    def ranges(self) -> dict[str, list[float]]:
        """The ranges that are set, by name."""
        return {name: getattr(self, name) for name in EXPECTED_LOSSES if getattr(self, name) is not None}

    def applies_to(self, sha256: str, steps: int, parameters: int) -> bool:
        """Return whether the ranges are those of a run on this text and of this size."""
        return self.sha256 is not None and (self.sha256, self.steps, self.parameters) == (sha256, steps, parameters)


@dataclass(frozen=True)
class RunConfig:
    """The settings of `fit`, except those of the data and of Lightning's Trainer.

    Attributes:
        model: The architecture of the network.
        optimizer: The optimizer and its learning-rate schedule.
        training: Evaluation, samples, checkpoints and early stopping.
        sampling: How the tokens of a sample are chosen.
        expected: The ranges of the losses that the config expects.
        compile: See `GPTModule`.
        activation_checkpointing: See `GPTModule`.
        init_from: Checkpoint with the initial weights of a new run; None for random weights.
        max_epochs: Epochs of the whole run; None or -1 for no limit.
        max_steps: Optimizer steps of the whole run; -1 for no limit.
        accelerator: The value of `trainer.accelerator`.
        precision_reason: Why the Trainer's precision was chosen; printed with it.
        has_progress_bar: Whether the run shows a progress bar.
        has_tensorboard: Whether the run logs to TensorBoard.
        resume_settings: Settings outside `model` and `data` that a resumed run must keep, by full name.
    """

    model: GPTConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig
    expected: ExpectedConfig
    compile: bool
    activation_checkpointing: bool
    init_from: str | None
    max_epochs: int | None
    max_steps: int
    accelerator: str
    precision_reason: str
    has_progress_bar: bool
    has_tensorboard: bool
    resume_settings: dict[str, Any]
