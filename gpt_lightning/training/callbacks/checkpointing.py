"""Saving of checkpoints during a run: when, and with which description. `checkpoints/io.py` writes the files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from gpt_lightning.checkpoints.io import (
    discard_checkpoint,
    prepare_checkpoint,
    publish_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from gpt_lightning.checkpoints.loading import find_non_finite
from gpt_lightning.checkpoints.metadata import CheckpointInfo, ProgressInfo, TextInfo
from gpt_lightning.console import warn
from gpt_lightning.errors import DivergedError, InputError, Stopped
from gpt_lightning.evaluation.baselines import Baselines
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.exact_resume import text_changed
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.signals import StopOnSignal
from gpt_lightning.training.callbacks.step_end import StepEnd
from gpt_lightning.training.distributed import own_part, read_on_all_ranks
from gpt_lightning.training.module import GPTModule

TIME_BETWEEN_SAVES = 40  # in durations of a save; the last step of a run is always saved
FIRST_SAVE_SECONDS = 60


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically and verifies them when reading, by `checkpoints/io.py`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, replacing the file if it exists.

        Args:
            checkpoint: Tensors and plain data.
            path: The file to write.
            storage_options: {"previous": path} to move a replaced file there.
        """
        previous = None if storage_options is None else Path(storage_options["previous"])
        write_checkpoint(checkpoint, Path(path), previous)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return read_on_all_ranks(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


class BestWeights:
    """The weights with the lowest validation loss, in a temporary file until best.ckpt may be replaced.

    The lowest validation loss is seldom the last one: over many epochs a model memorizes its training text, so that
    the training loss keeps falling while the validation loss, on text that it is not trained on, starts to rise.

    Args:
        run: The run whose best.ckpt is written.

    Attributes:
        val_loss: The lowest validation loss; infinity before the first evaluation.
        step: Optimizer step of that loss; -1 before the first evaluation.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.val_loss = math.inf
        self.step = -1
        self._is_newer = False  # whether the temporary file has weights that best.ckpt does not have yet

    def keep(self, val_loss: float, content: dict[str, Any], strategy: Strategy) -> None:
        """Replace the best weights by those in a checkpoint's content, on rank 0 in the temporary file."""
        self.val_loss, self.step, self._is_newer = val_loss, content["global_step"], True
        if strategy.is_global_zero:
            prepare_checkpoint(content, self.run.best)

    def publish(self, strategy: Strategy) -> None:
        """Replace best.ckpt on rank 0 if weights have been kept since the last call."""
        if self._is_newer and strategy.is_global_zero:
            publish_checkpoint(self.run.best)
        self._is_newer = False

    def discard(self) -> None:
        """Forget weights that best.ckpt does not have, because last.ckpt will not have their step either."""
        if self._is_newer:
            discard_checkpoint(self.run.best)
        self._is_newer = False

    def check(self, hyper_parameters: dict[str, Any]) -> None:
        """Reset the best loss, with a warning, if best.ckpt is missing, damaged or from another run.

        Args:
            hyper_parameters: Settings of the model that best.ckpt must have.
        """
        problem = None
        path = f"{self.run.display_path}/checkpoints/{self.run.best.name}"
        try:
            content = read_checkpoint(self.run.best)
            # A kill between the two files leaves a best.ckpt that is newer than last.ckpt.
            if content["global_step"] < self.step or content["hyper_parameters"] != hyper_parameters:
                problem = f"{path}: is outdated or from another run"
        except InputError as error:
            problem = str(error).replace(str(self.run.best), path)
        if problem is not None:
            warn(f"{problem}; the weights of the next evaluation will replace it")
            self.val_loss, self.step = math.inf, -1


class Checkpointing(StepEnd, Checkpoint):
    """Saves `best.ckpt` (weights only), `last.ckpt` (everything) and its predecessor `prev.ckpt`.

    Saves at the end of an optimizer step, after its evaluation. `best.ckpt` is written just before `last.ckpt`, so that
    it has the best weights evaluated so far. This callback must come after those whose output belongs to the step
    (samples, final metrics): if the run is killed right after its last save, nothing is missing.

    Args:
        run: The run folder; checkpoints are written there.
        progress: Counter of tokens.
        stop: Signals received.
        save_every: Optimizer steps between saves.
        save_minutes: Minutes between saves. If both are None, saving takes about 1/40 of the time. The last step before
            the run ends or stops is always saved.
        resume_settings: Settings outside `model` and `data` that a resumed run must keep.
        baselines: Losses to store beside the model's; None on ranks other than 0.

    Attributes:
        best: The weights with the lowest validation loss.
        saved_step: Optimizer step of the newest last.ckpt; -1 if there is none.
        saving_seconds: Seconds spent on saving.

    Raises:
        Stopped: A signal requested a stop; the last step is saved.
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
        baselines: Baselines | None,
    ) -> None:
        self.run = run
        self.progress = progress
        self.stop = stop
        self.save_every = save_every
        self.save_minutes = save_minutes
        self.resume_settings = resume_settings
        self.baselines = baselines
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
        self.saved_step = checkpoint["global_step"] or -1  # 0: the temporary file of a LearningRateFinder
        if text_changed(trainer, checkpoint):
            checkpoint["callbacks"].pop(self.state_key, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best.step >= 0:  # restored from a checkpoint
            if trainer.is_global_zero:
                self.best.check(dict(pl_module.hparams))
            self.best.val_loss, self.best.step = trainer.strategy.broadcast((self.best.val_loss, self.best.step))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.best.discard()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            val_loss = pl_module.evaluated["val_loss"]
            if val_loss < self.best.val_loss:
                start = time.monotonic()
                self.best.keep(val_loss, self._snapshot(trainer, pl_module), trainer.strategy)
                self.saving_seconds += time.monotonic() - start
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
        states = [list(values.values()) for one in trainer.optimizers for values in one.state.values()]
        values = [value for state in states for value in state if isinstance(value, Tensor)]
        parts = [own_part(value) for value in (*trainer.lightning_module.parameters(), *values)]
        is_finite = find_non_finite(parts, "") is None
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):  # ranks may hold parts
            raise DivergedError(f"non-finite weights or optimizer state after step {trainer.global_step}")
        self.best.publish(trainer.strategy)
        trainer.save_checkpoint(self.run.last, storage_options={"previous": self.run.previous})
        self.saved_step = trainer.global_step
        seconds = time.monotonic() - start
        self.saving_seconds += seconds
        self._save_at = self._next_save(TIME_BETWEEN_SAVES * seconds)

    def _next_save(self, automatic: float) -> float:
        """Return the time of the next save on the monotonic clock; infinity if saves are counted in steps only.

        Args:
            automatic: Seconds until the next save if both save_minutes and save_every are None.
        """
        if self.save_minutes is not None:
            return time.monotonic() + 60 * self.save_minutes
        return time.monotonic() + automatic if self.save_every is None else math.inf

    def _snapshot(self, trainer: Trainer, module: GPTModule) -> dict[str, Any]:
        """Return the evaluated weights, with the settings that `predict` and `validate` need."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        content = {"state_dict": trainer.strategy.lightning_module_state_dict()}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):  # evaluation is over: the module no longer has the averages
                callback.on_save_checkpoint(trainer, module, content)
        return {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "state_dict": {key: tensor.detach().cpu() for key, tensor in content["state_dict"].items()},
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
            baselines=None if self.baselines is None else asdict(self.baselines),
        )
