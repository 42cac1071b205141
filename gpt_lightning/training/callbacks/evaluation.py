"""Evaluation during a run, and the end of the run."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt_lightning.console import say
from gpt_lightning.errors import DivergedError
from gpt_lightning.evaluation.intervals import block_means
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.metrics import log
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.step_end import NEVER, at_step_boundary, is_last_step
from gpt_lightning.training.module import GPTModule


class Evaluation(Callback):
    """Evaluates before the first optimizer step, every N steps and after the last one, and prints the losses.

    Lightning counts batches between validations; this callback sets its interval after each batch so that Lightning
    validates now or not at all. It also ends the run at the end of an optimizer step: at `max_steps`, or if another
    callback, such as that of `max_time`, has requested it. It must come after these callbacks.

    The row in metrics.jsonl has the losses of groups of validation windows, too, as `val_blocks`; under several ranks
    those of rank 0's windows only. `val_windows`, their number, and `val_tokens`, that of all ranks' tokens, tell
    whether two evaluations had the same windows.

    Args:
        run: The run folder; metrics are written there.
        progress: Counter of tokens.
        every: Optimizer steps between evaluations.
        max_steps: Limit on the optimizer steps of the whole run; -1 for none. (A run resumed with Lightning's own limit
            treats a finished epoch as unfinished.)
        is_pretrained: Whether the run starts from pretrained weights.

    Raises:
        DivergedError: A loss is infinite or NaN.
    """

    def __init__(self, run: Run, progress: Progress, every: int, max_steps: int, is_pretrained: bool) -> None:
        self.run = run
        self.progress = progress
        self.every = every
        self.max_steps = max_steps
        self.is_pretrained = is_pretrained
        self._stop_requested = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        boundary = at_step_boundary(trainer)
        self._stop_requested |= trainer.should_stop or -1 < self.max_steps <= trainer.global_step
        trainer.should_stop = self._stop_requested and boundary
        due = boundary and (trainer.global_step % self.every == 0 or is_last_step(trainer))
        trainer.val_check_batch = 1 if due else NEVER

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        if trainer.state.fn != "fit":
            return
        losses = pl_module.evaluated
        train_loss, val_loss = losses["train_eval_loss"], losses["val_loss"]
        require_finite_losses(losses, trainer.global_step)
        if not trainer.is_global_zero:
            return
        if trainer.sanity_checking:
            vocab_size = pl_module.config.vocab_size
            baseline = f"; uniform baseline: ln {vocab_size:,} = {math.log(vocab_size):.3f}"
            word, rest = ("Pretrained", "") if self.is_pretrained else ("Untrained", baseline)
            say(f"{word} (Step 000000): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}{rest}")
        else:
            say(
                f"Ep {trainer.current_epoch + 1} (Step {trainer.global_step:06d}): "
                f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
            )
        blocks = block_means(pl_module.val_window_losses)
        counts = {"val_windows": len(pl_module.val_window_losses), "val_tokens": pl_module.evaluated_tokens.get("val")}
        recorded = {"val_blocks": blocks, **counts} if blocks else None
        log(trainer, self.run, self.progress, {name: losses[name] for name in sorted(losses)}, recorded)


def require_finite_losses(losses: dict[str, float], step: int) -> None:
    """Raise `DivergedError` if a loss of the evaluation at this step is infinite or NaN."""
    train_loss, val_loss = losses["train_eval_loss"], losses["val_loss"]
    if not math.isfinite(train_loss + val_loss):
        raise DivergedError(
            f"non-finite loss in the evaluation at step {step} (Train loss {train_loss:.3f}, Val loss {val_loss:.3f})"
        )
