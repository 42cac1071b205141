"""Checkpoints of a run: when they are saved, and what they say about it. Their files: `checkpoints/io.py`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.strategies import Strategy

from gpt_lightning.checkpoints.io import read_checkpoint, write_checkpoint
from gpt_lightning.checkpoints.loading import find_non_finite
from gpt_lightning.checkpoints.metadata import CheckpointInfo, ProgressInfo, TextInfo
from gpt_lightning.console import warn
from gpt_lightning.errors import DivergedError, InputError, Stopped
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.exact_resume import text_changed
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.signals import StopOnSignal
from gpt_lightning.training.callbacks.step_end import StepEnd
from gpt_lightning.training.module import GPTModule

TIME_BETWEEN_SAVES = 40  # times as long as a save takes; the run's last step is saved besides
FIRST_SAVE_SECONDS = 60


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads checkpoints through `checkpoints/io.py`: atomically, and verified."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Tensors and plain data.
            path: The file; it is replaced if it exists.
            storage_options: {"previous": path} to keep the replaced file there.
        """
        previous = None if storage_options is None else Path(storage_options["previous"])
        write_checkpoint(checkpoint, Path(path), previous)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return read_checkpoint(path, mmap=False)  # the optimizer keeps its tensors

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


class BestWeights:
    """The weights with the lowest validation loss, held in memory until they are written.

    The lowest validation loss, not the last: a model that sees the same text again and again memorizes it. Its
    training loss keeps falling, but the validation loss, on text that it is never trained on, turns and rises.

    Args:
        run: The run whose best.ckpt is written.

    Attributes:
        val_loss: The lowest validation loss; infinite before the first evaluation.
        step: Its optimizer step; -1 before the first evaluation.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.val_loss = math.inf
        self.step = -1
        self._content: dict[str, Any] | None = None  # not yet written

    def keep(self, val_loss: float, content: dict[str, Any]) -> None:
        """Keep a checkpoint's content in place of the best so far."""
        self.val_loss, self.step, self._content = val_loss, content["global_step"], content

    def write(self, strategy: Strategy) -> None:
        """Write best.ckpt if there are better weights than it has; only rank 0 does."""
        if self._content is not None and strategy.is_global_zero:
            strategy.checkpoint_io.save_checkpoint(self._content, self.run.best)
        self._content = None

    def check(self, hyper_parameters: dict[str, Any]) -> None:
        """Forget the best loss, with a warning, if best.ckpt is missing, damaged or of another run."""
        problem = None
        path = f"{self.run.display_path}/checkpoints/{self.run.best.name}"
        try:
            content = read_checkpoint(self.run.best)
            # A kill between the two files leaves a best.ckpt that is newer than last.ckpt.
            if content["global_step"] < self.step or content["hyper_parameters"] != hyper_parameters:
                problem = f"{path}: is not the best.ckpt of this run"
        except InputError as error:
            problem = str(error).replace(str(self.run.best), path)
        if problem is not None:
            warn(f"{problem}; the next evaluation's weights replace it")
            self.val_loss, self.step = math.inf, -1


class Checkpointing(StepEnd, Checkpoint):
    """Saves `best.ckpt` (weights only), `last.ckpt` (everything) and the one before it, `prev.ckpt`.

    Saves at the end of an optimizer step, after its evaluation. The best weights are written just before
    `last.ckpt`, so that `best.ckpt` is the best of what the run had evaluated by then. It has to come after the
    callbacks whose results belong to the step (samples, final metrics): a run that is killed after its last
    save is finished.

    Args:
        run: Where the checkpoints are.
        progress: Counts the tokens.
        stop: Knows whether the run was asked to stop.
        save_every: Optimizer steps between saves.
        save_minutes: Minutes between saves. If both are None, saves take 1/40 of the time. The last step of
            the run, or before it stops, is always saved.
        resume_settings: The settings outside `model` and `data` that a resumed run keeps.

    Attributes:
        best: The weights with the lowest validation loss.
        saved_step: Optimizer step of the newest last.ckpt; -1 if there is none.
        saving_seconds: Time spent on saving.

    Raises:
        Stopped: A signal asked the run to stop; the last step is saved.
        DivergedError: Weights or optimizer state are not finite; they are not saved.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        stop: StopOnSignal,
        save_every: int | None,
        save_minutes: float | None,
        resume_settings: dict[str, Any],
    ) -> None:
        self.run = run
        self.progress = progress
        self.stop = stop
        self.save_every = save_every
        self.save_minutes = save_minutes
        self.resume_settings = resume_settings
        self.best = BestWeights(run)
        self.saved_step = -1
        self.saving_seconds = 0.0
        self._save_at = self._next_save(FIRST_SAVE_SECONDS)

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best.val_loss, "best_step": self.best.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.val_loss, self.best.step = float(state_dict["best_val_loss"]), int(state_dict["best_step"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["gpt_lightning"] = self._describe(trainer, pl_module).to_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved_step = checkpoint["global_step"] or -1  # 0: of a LearningRateFinder, which has removed it
        if text_changed(trainer, checkpoint):
            checkpoint["callbacks"].pop(self.state_key, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best.step >= 0:  # of a resumed run
            if trainer.is_global_zero:
                self.best.check(dict(pl_module.hparams))
            self.best.val_loss, self.best.step = trainer.strategy.broadcast((self.best.val_loss, self.best.step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            val_loss = pl_module.evaluated["val_loss"]
            if val_loss < self.best.val_loss:
                self.best.keep(val_loss, self._snapshot(trainer, pl_module))
        super().on_validation_end(trainer, pl_module)

    def after_step(self, trainer: Trainer, module: LightningModule, *, epoch_ended: bool, run_ends: bool) -> None:
        by_steps = self.save_every is not None and trainer.global_step % self.save_every == 0
        by_time = time.monotonic() >= self._save_at
        stops = self.stop.stop_requested(trainer)
        if stops or trainer.strategy.broadcast(by_steps or by_time or run_ends):
            self._save(trainer)
        if stops and not run_ends:
            raise Stopped(self.stop.signal_number)

    def _save(self, trainer: Trainer) -> None:
        start = time.monotonic()
        values = [*trainer.lightning_module.parameters(), *(list(one.state.values()) for one in trainer.optimizers)]
        is_finite = find_non_finite(values, "") is None
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):  # a rank may hold a part of them
            raise DivergedError(f"non-finite weights or optimizer state after step {trainer.global_step}, not saved")
        self.best.write(trainer.strategy)
        trainer.save_checkpoint(self.run.last, storage_options={"previous": self.run.previous})
        self.saved_step = trainer.global_step
        seconds = time.monotonic() - start
        self.saving_seconds += seconds
        self._save_at = self._next_save(TIME_BETWEEN_SAVES * seconds)

    def _next_save(self, automatic: float) -> float:
        """Return when the next save is due by time.

        Args:
            automatic: Seconds until then if there is neither a save_minutes nor a save_every.
        """
        if self.save_minutes is not None:
            return time.monotonic() + 60 * self.save_minutes
        return time.monotonic() + automatic if self.save_every is None else math.inf

    def _snapshot(self, trainer: Trainer, module: GPTModule) -> dict[str, Any]:
        """Return a copy of the weights that were evaluated, with everything that `predict` and `validate` need."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        content = {"state_dict": trainer.strategy.lightning_module_state_dict()}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):  # has taken its averages out of the module again
                callback.on_save_checkpoint(trainer, module, content)
        return {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": {key: tensor.detach().to("cpu", copy=True) for key, tensor in content["state_dict"].items()},
            module.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams),
            data.CHECKPOINT_HYPER_PARAMS_KEY: dict(data.hparams),
            "gpt_lightning": self._describe(trainer, module).to_dict(),
        }

    def _describe(self, trainer: Trainer, module: LightningModule) -> CheckpointInfo:
        data, source = trainer.datamodule, trainer.datamodule.source  # type: ignore[attr-defined]
        assert isinstance(module, GPTModule)
        return CheckpointInfo(
            text=TextInfo(source.name, source.sha256, source.characters, data.total_tokens, data.val_sha256),
            progress=ProgressInfo(data.position[0], trainer.global_step, self.progress.tokens_seen),
            evaluated=module.evaluated,
            fit=self.resume_settings,
        )
