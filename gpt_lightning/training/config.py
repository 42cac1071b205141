"""The settings of a run as dataclasses, which check their values when they are created."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.training.optimizers import OptimizerConfig
from gpt_lightning.validation import require_integer, require_number


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
        peak_flops: Peak FLOP/s of one device, used to log its utilization; null: the vendor's figure, if known.

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
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        require_integer("seed_everything", self.seed_everything, 0, 2**32 - 1)
        for name in ("evaluate_every", "evaluate_batches"):
            require_integer(name, getattr(self, name), 1)
        for name in ("sample_every", "save_every", "early_stopping_patience"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        for name in ("peak_flops", "save_minutes"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), "be above 0", lambda number: number > 0)


@dataclass(frozen=True)
class RunConfig:
    """The settings of `fit`, except those of the data and of Lightning's Trainer.

    Attributes:
        model: The architecture of the network.
        optimizer: AdamW and its learning-rate schedule.
        training: Evaluation, samples, checkpoints and early stopping.
        sampling: How the tokens of a sample are chosen.
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
