"""Translate exceptions of `trainer.fit` into errors that name a setting, a callback or a checkpoint of the run."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import DivergedError, InputError, MachineError, Stopped, describe_expected, why_out_of_memory
from gpt_lightning.files import with_filename
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.checkpointing import Checkpointing
from gpt_lightning.training.callbacks.exact_resume import set_rng_states
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.distributed import is_lost_process

RESTORES_RANDOMNESS = set_rng_states.__code__
DIVERGENCE_ADVICE = "try a lower model.learning_rate, more model.warmup_steps or trainer.gradient_clip_val"


@contextlib.contextmanager
def explained(
    trainer: Trainer,
    data: TextDataModule,
    run: Run,
    users_callbacks: list[Callback],
    checkpoint: Path | None,
    progress: Progress,
    checkpoints: Checkpointing,
) -> Iterator[None]:
    """Re-raise errors inside the block as errors that name what the user can change.

    Args:
        trainer: The run's Trainer.
        data: The run's data module.
        run: The run folder, named if an `OSError` names no file.
        users_callbacks: Callbacks from YAML.
        checkpoint: Checkpoint that the run resumes from; None for a new run.
        progress: Its `started` tells errors of restoring from errors of training.
        checkpoints: The saved checkpoints.
    """
    try:
        with naming_batch(data):
            yield
    except Stopped:
        raise
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
            raise KeyboardInterrupt from None
        raise
    except DivergedError as error:
        step = checkpoints.saved_step
        saved = f"last.ckpt is of step {step}" if step >= 0 else "no checkpoint was saved"
        # Before the first optimizer step, the learning rate has had no effect.
        advice = f"; {DIVERGENCE_ADVICE}" if trainer.global_step > 0 else ""
        raise DivergedError(f"{error}; {saved}{advice}") from None
    except Exception as error:
        if run.is_open and not run.path.exists():
            lost = f"what was trained after step {checkpoints.saved_step} is lost"
            raise MachineError(f"{run.display_path}: the run folder was deleted or moved; {lost}") from None
        if isinstance(error, OSError):
            with with_filename(run.path):  # errors of a logger may name no file
                raise
        if is_lost_process(error):
            raise
        raise blame(error, users_callbacks, None if progress.started else checkpoint) from error


@contextlib.contextmanager
def naming_batch(data: TextDataModule) -> Iterator[None]:
    """Re-raise an out-of-memory error inside the block as a `MachineError` that names the batch size."""
    try:
        yield
    except Exception as error:
        reason = why_out_of_memory(error)
        if reason is None:
            raise
        raise MachineError(
            f"out of memory ({reason}): lower data.batch_size ({data.hparams['batch_size']}), model.context_length "
            f"({data.hparams['context_length']}) or the model, or set model.activation_checkpointing"
        ) from error


def blame(error: Exception, users_callbacks: list[Callback], checkpoint: Path | None) -> Exception:
    """Return an `InputError` if a user's callback or restoring caused an unexpected error, else the error itself.

    Args:
        error: The error that was raised.
        users_callbacks: Callbacks from YAML.
        checkpoint: Checkpoint that was being restored; None after training has started.
    """
    if describe_expected(error) is not None:
        return error
    reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[-1].strip()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for callback in users_callbacks:
            if frame.f_locals.get("self") is callback:
                return InputError(f"trainer.callbacks: {type(callback).__name__} does not work here: {reason}")
        # Lightning's checkpoint_connector.py restores everything except the random states.
        restores = frame.f_code.co_filename.endswith("checkpoint_connector.py") or frame.f_code is RESTORES_RANDOMNESS
        if checkpoint is not None and restores:
            return InputError(f"{checkpoint}: a run cannot be resumed from it ({reason})")
    return error
