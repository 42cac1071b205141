"""Checkpoints of runs: what is in them, when they are written, exact when resumed. The file: `checkpoints/io.py`.

A checkpoint describes itself. Beside what Lightning keeps, it has the key "gpt_lightning":

    format     1; a program that does not know the number refuses the file
    versions   of this package, torch and lightning
    text       name, sha256, characters and tokens of the training text; sha256 of a data.val_text
    progress   finished epochs, updates, tokens seen
    evaluated  the losses of the last evaluation
    fit        the settings outside model.* and data.* that a resumed run keeps

`hyper_parameters` holds the settings `model.*`, `datamodule_hyper_parameters` the settings `data.*`.
Only tensors and plain data: everything loads with `weights_only=True`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, GradientAccumulationScheduler, WeightAveraging

import gpt_lightning
from gpt_lightning.checkpoints.io import read_checkpoint, write_checkpoint
from gpt_lightning.checkpoints.loading import find_non_finite
from gpt_lightning.checkpoints.metadata import FORMAT
from gpt_lightning.console import warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.sources import short_name
from gpt_lightning.errors import DivergedError, InputError, Stopped
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.early_stopping import has_ended, watch_anew
from gpt_lightning.training.callbacks.exact_resume import get_rng_states, set_rng_states
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.signals import StopOnSignal
from gpt_lightning.training.callbacks.step_end import at_step_boundary, evaluation_is_due, run_ends
from gpt_lightning.training.module import GPTModule

TIME_BETWEEN_SAVES = 40  # times as long as a save takes; the run's last step is saved besides
FIRST_SAVE_SECONDS = 60


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file in the same folder, syncs, then renames: a kill leaves the old file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Writes one file.

        Args:
            checkpoint: Tensors and plain data.
            path: Where to.
            storage_options: {"previous": path} keeps what `path` held before under that name.
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


class RunCheckpoints(Checkpoint):
    """Keeps `best.ckpt` (weights, of the lowest validation loss), `last.ckpt` (everything) and the one before.

    Saves at the end of an optimizer step only, after its evaluation, at most once per optimizer step.
    The lowest and not the last, because of overfitting: a model that sees the same text again and again
    learns what the text says word for word. Its training loss goes on falling, but what it learns then holds
    for that text alone, and the validation loss, on text that it is never trained on, turns and rises.

    The best weights are kept in memory and written just before `last.ckpt`: of what the run had seen by
    then, `best.ckpt` is the best.

    Args:
        run: Where to.
        progress: Counts what a checkpoint says of the run.
        stop: Knows whether the run was asked to stop.
        save_every: Optimizer steps between saves.
        save_minutes: Minutes between saves. Where both are None, saves take 1/40 of the time. The last step
            of the run, or before it is stopped, is saved in any case.
        kept_settings: The settings outside `model` and `data` that a resumed run keeps.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        stop: StopOnSignal,
        save_every: int | None,
        save_minutes: float | None,
        kept_settings: dict[str, Any],
    ) -> None:
        self.run = run
        self.progress = progress
        self.stop = stop
        self.save_every = save_every
        self.save_minutes = save_minutes
        self.kept_settings = kept_settings
        self.best_val_loss = float("inf")
        self.best_step = -1
        self.saving_seconds = 0.0
        self._best: dict[str, Any] | None = None  # not yet written
        self.saved_step = -1
        self._save_at = self._next_save(FIRST_SAVE_SECONDS)
        self._rng_states: dict[str, Any] | None = None
        self._has_new_text = False

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best_val_loss, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss = float(state_dict["best_val_loss"])
        self.best_step = int(state_dict["best_step"])

    def _check_best(self, hyper_parameters: dict[str, Any]) -> None:
        """Forgets the best loss, with a warning, where `best.ckpt` is not what the run left there."""
        problem = None
        shown = f"{self.run.shown}/checkpoints/{self.run.best.name}"
        try:
            content = read_checkpoint(self.run.best)
            # A kill between the two files leaves one that is newer than `last.ckpt`.
            if content["global_step"] < self.best_step or content["hyper_parameters"] != hyper_parameters:
                problem = f"{shown}: is not the best.ckpt of this run"
        except InputError as error:
            problem = str(error).replace(str(self.run.best), shown)
        if problem is not None:
            warn(f"{problem}; the next evaluation's weights replace it")
            self.best_val_loss, self.best_step = float("inf"), -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["gpt_lightning"] = self._describe(trainer, pl_module)
        checkpoint["rng_states"] = get_rng_states()
        # Lightning counts the step, for its monitors' axes, after the hooks that most saves are made in; a run that
        # goes on counts it where the batch was not completed.
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]["total"]
        if batches["completed"] == batches["processed"]:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._rng_states = checkpoint["rng_states"]
        self.saved_step = checkpoint["global_step"] or -1  # 0: of a LearningRateFinder, which has removed it
        text, now = checkpoint["gpt_lightning"]["text"], self._describe(trainer, pl_module)["text"]
        self._has_new_text = any(text[name] != now[name] for name in ("sha256", "val_sha256"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience  # as now given

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rng_states is None:
            return
        if self._has_new_text:  # losses of another text say nothing about this one
            self.best_val_loss, self.best_step = float("inf"), -1
        if self.best_step >= 0:
            if trainer.is_global_zero:
                self._check_best(dict(pl_module.hparams))
            best = (self.best_val_loss, self.best_step)
            self.best_val_loss, self.best_step = trainer.strategy.broadcast(best)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)  # which Lightning leaves out inside of an epoch
            elif isinstance(callback, EarlyStopping) and self._has_new_text:
                watch_anew(callback)
            elif isinstance(callback, EarlyStopping) and has_ended(callback):
                trainer.should_stop = True  # as it was when the run was saved
        set_rng_states(self._rng_states)
        self._rng_states = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if at_step_boundary(trainer) and not evaluation_is_due(trainer) and not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        val_loss = pl_module.evaluated["val_loss"]
        if val_loss < self.best_val_loss:
            self.best_val_loss = val_loss
            self.best_step = trainer.global_step
            self._best = self._snapshot(trainer, pl_module)
        if not trainer.is_last_batch:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        """Saves after the optimizer step that just ended, where that is due; ends a run that was stopped."""
        step = trainer.global_step
        if step != self.saved_step:
            by_steps = self.save_every is not None and step % self.save_every == 0
            by_time = time.monotonic() >= self._save_at
            asked = self.stop.is_asked(trainer)
            if asked or trainer.strategy.broadcast(by_steps or by_time or run_ends(trainer)):
                self._save(trainer)
            if asked and not run_ends(trainer):
                raise Stopped(self.stop.signal_number)

    def _save(self, trainer: Trainer) -> None:
        start = time.monotonic()
        values = [*trainer.lightning_module.parameters(), *(list(one.state.values()) for one in trainer.optimizers)]
        is_finite = find_non_finite(values, "") is None
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):  # a rank may hold a part of them
            raise DivergedError(f"non-finite weights or optimizer state after step {trainer.global_step}, not saved")
        if self._best is not None:
            if trainer.is_global_zero:
                trainer.strategy.checkpoint_io.save_checkpoint(self._best, self.run.best)
            self._best = None
        trainer.save_checkpoint(self.run.last, storage_options={"previous": self.run.previous})
        self.saved_step = trainer.global_step
        seconds = time.monotonic() - start
        self.saving_seconds += seconds
        self._save_at = self._next_save(TIME_BETWEEN_SAVES * seconds)

    def _next_save(self, automatic: float) -> float:
        """When time asks for the next save: after `save_minutes`, or by itself where no setting is given."""
        if self.save_minutes is not None:
            return time.monotonic() + 60 * self.save_minutes
        return time.monotonic() + automatic if self.save_every is None else math.inf

    def _snapshot(self, trainer: Trainer, module: GPTModule) -> dict[str, Any]:
        """The weights that were evaluated, copied, with everything that `predict` and `validate` need."""
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
            "gpt_lightning": self._describe(trainer, module),
        }

    def _describe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextDataModule)
        assert isinstance(module, GPTModule)
        assert data.source is not None
        return {
            "format": FORMAT,
            "versions": {
                "gpt_lightning": gpt_lightning.__version__,
                "torch": str(torch.__version__),
                "lightning": lightning.__version__,
            },
            "text": {
                "name": short_name(data.source.path),
                "sha256": data.source.sha256,
                "characters": data.source.characters,
                "tokens": data.total_tokens,
                "val_sha256": data.val_sha256,
            },
            "progress": {
                "epochs": data.position[0],
                "steps": trainer.global_step,
                "tokens_seen": self.progress.tokens_seen,
            },
            "evaluated": dict(module.evaluated),
            "fit": self.kept_settings,
        }
