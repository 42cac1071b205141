"""Token and time counters, and the progress bar."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.windows import Batch
from gpt_lightning.training.callbacks.step_end import at_step_boundary


class Progress(Callback):
    """Counts tokens and seconds, and records the position in the epoch in the data module.

    It must come before the callbacks that log or save these numbers.

    Attributes:
        tokens_seen: Tokens trained on in the whole run, summed over all ranks.
        epochs: Epochs trained, with a fraction: 1.5 is halfway through the second.
        started: Whether the first batch has started; before that, a checkpoint may be restored.
        tokens_per_second: Speed of the last optimizer step, excluding evaluation and saving.
        session_tokens: Tokens trained on since this process started.
        session_seconds: Seconds spent in training steps since this process started.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.epochs = 0.0
        self.started = False
        self.tokens_per_second = math.nan
        self.session_tokens = 0
        self.session_seconds = 0.0
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
        data.record_batch(epoch, batch_idx + 1, epoch_ended=trainer.is_last_batch)
        self.epochs = epoch + (batch_idx + 1) / trainer.num_training_batches


class StepBar(ProgressBar):
    """Shows one progress bar for the whole run, in optimizer steps, on stderr.

    Args:
        total_steps: Optimizer steps of the whole run; infinity if the run has no limit.
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
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; a log file needs few lines
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
