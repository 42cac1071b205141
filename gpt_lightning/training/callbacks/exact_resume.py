"""Exact resume: restore what Lightning does not, so that a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from torch import distributed

from gpt_lightning.checkpoints.metadata import CheckpointInfo
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.training.callbacks.early_stopping import has_triggered


class ExactResume(Callback):
    """Saves and restores random states, Lightning's step count, gradient accumulation and early stopping.

    It must come after all callbacks that may draw random numbers when training starts. All ranks begin with the same
    seed, because their weights must be equal; from the first step on, each draws dropout masks of its own.
    """

    def __init__(self) -> None:
        self._rng_states: list[dict[str, Any]] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng_states"] = gather_rng_states()
        # Lightning's monitors use this count as their x-axis. Most saves are made in hooks that run before it is
        # incremented; if the batch is not completed, a resumed run increments it.
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]["total"]
        if batches["completed"] == batches["processed"]:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._rng_states = checkpoint["rng_states"]
        data = trainer.datamodule  # type: ignore[attr-defined]
        before, now = checkpoint["TextDataModule"]["windows_per_batch"], data.windows_per_batch
        for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(counts, dict):  # with other numbers of processes and accumulated batches
                ready = counts["ready"]
                counts |= {name: ready * before // now - (ready - count) for name, count in counts.items()}
        states = checkpoint["callbacks"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in states:
                if text_changed(trainer, checkpoint):
                    del states[callback.state_key]
                else:
                    states[callback.state_key]["patience"] = callback.patience  # the current setting

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank, states = trainer.global_rank, self._rng_states or []
        if rank < len(states):
            set_rng_states(states[rank])
        if rank > 0 and (trainer.global_step == 0 or rank >= len(states)):  # new, or resumed with more processes
            torch.manual_seed(torch.initial_seed() + rank)
        if self._rng_states is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)  # Lightning does not call it within an epoch
            elif isinstance(callback, EarlyStopping) and has_triggered(callback):
                trainer.should_stop = True  # a checkpoint does not store it
        self._rng_states = None


def text_changed(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Return whether the text differs from the checkpoint's, so that their losses cannot be compared."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, TextDataModule)
    assert data.source is not None
    text = CheckpointInfo.parse(checkpoint).text
    return (text.sha256, text.val_sha256) != (data.source.sha256, data.val_sha256)


def gather_rng_states() -> list[dict[str, Any]]:
    """Return the states of all global random generators of each rank. Every rank must call it."""
    states = get_rng_states()
    if not distributed.is_initialized():
        return [states]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, states)
    return gathered


def get_rng_states() -> dict[str, Any]:
    """Return the states of this process's global random generators as tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # this process's device
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Restore the states that `get_rng_states` returned."""
    version, words, gauss = states["python"]
    name, keys, position, has_gauss, cached = states["numpy"]
    torch.set_rng_state(states["torch"])
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
