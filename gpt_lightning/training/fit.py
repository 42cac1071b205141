"""`fit`: checks, run folder, callbacks, training, and the result."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX
from gpt_lightning.console import say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import DivergedError, InputError, MachineError, Stopped, describe_expected, why_out_of_memory
from gpt_lightning.files import naming, read_rows, replace_bytes
from gpt_lightning.runs.figures import FORMATS, loss_figure, read_curve, save_figure
from gpt_lightning.runs.folder import BEST, LAST, PREVIOUS, RUN_DIR_VARIABLE, RUNS, Run, new_run_folder
from gpt_lightning.training import summary
from gpt_lightning.training.callbacks.checkpointing import RunCheckpoints, load_weights
from gpt_lightning.training.callbacks.early_stopping import EarlyStop
from gpt_lightning.training.callbacks.evaluation import Evaluation
from gpt_lightning.training.callbacks.learning_rate import FoundRate
from gpt_lightning.training.callbacks.metrics import Metrics, Summary
from gpt_lightning.training.callbacks.progress import Progress, StepBar
from gpt_lightning.training.callbacks.samples import Samples
from gpt_lightning.training.callbacks.signals import StopOnSignal, requeue
from gpt_lightning.training.hardware import allow_tf32, peak_flops
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import KEPT_SETTINGS, RunChoice, check_epoch_end, check_same_text, limits_reached
from gpt_lightning.training.steps import count_steps, limited, steps_of_epoch
from gpt_lightning.training.summary import farewell

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# What callbacks from YAML can watch.
MONITORED = ("val_loss", "val_perplexity", "train_eval_loss", "train_eval_perplexity", "train_loss", "train_perplexity")


def train(
    trainer: Trainer,
    module: GPTModule,
    data: TextDataModule,
    settings: Any,
    choice: RunChoice,
    resolved_config: str,
    arguments: list[str],
    precision_reason: str,
) -> Path:
    """Checks everything, makes the folder, trains, and says how to sample from the result.

    Args:
        trainer: Without limits on steps; see `training.callbacks.evaluation.Evaluation`.
        module: Not yet built.
        data: Not yet set up.
        settings: All settings of the command.
        choice: Where the run goes.
        resolved_config: YAML to keep with the run.
        arguments: What was typed, for the command that goes on with a run that is stopped.
        precision_reason: Why it trains in the precision of `trainer`.

    Returns:
        The run folder.

    Raises:
        Stopped: A signal asked for it; the last step is saved.
    """
    start = time.monotonic()
    max_steps = settings["trainer"]["max_steps"]
    data.trainer = trainer
    data.is_compared = choice.content is not None and not settings["allow_data_change"]
    data.setup("fit")
    if choice.content is not None:
        if settings["allow_data_change"]:
            check_epoch_end(choice.content, str(choice.checkpoint))
        else:
            hint = "; --allow_data_change trains it on this one"
            check_same_text(data, choice.content, str(choice.checkpoint), hint)
        if limits_reached(choice.content, settings):
            folder = Path(str(choice.folder))
            if trainer.is_global_zero:
                check_finished(folder)
                limits = "trainer.max_epochs, trainer.max_steps and early_stopping_patience"
                say(f"{folder}: finished; nothing is left to do within {limits}")
            return folder.absolute()
    train_batches, val_batches = check_fit(trainer, module, data, settings)
    resumed_step = None if choice.content is None else choice.content["global_step"]
    with open_run(choice, resolved_config, module, trainer.is_global_zero) as run:
        # Where a LearningRateFinder keeps the weights that it starts from; a public name is only Trainer's argument.
        trainer._default_root_dir = str(run.path)  # type: ignore[attr-defined]
        progress = Progress()
        show_bar = settings["trainer"]["enable_progress_bar"] is not False and not trainer.progress_bar_callback
        kept = {name: settings[name] for name in KEPT_SETTINGS}
        stop = StopOnSignal()
        checkpoints = RunCheckpoints(run, progress, stop, settings["save_every"], settings["save_minutes"], kept)
        allow_tf32(trainer.strategy.root_device)
        peak = settings["peak_flops"] or peak_flops(trainer.strategy.root_device, str(trainer.precision))
        hparams = {**module.hparams, **data.hparams}
        patience = settings["early_stopping_patience"]
        early_stop = [] if patience is None else [EarlyStop(patience)]
        users_callbacks = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if choice.content is None or not isinstance(callback, LearningRateFinder)  # the run has its rate
        ]
        trainer.callbacks = [  # type: ignore[attr-defined]
            progress,
            Metrics(run, progress, peak),
            *([StepBar(module.total_steps)] if show_bar else []),
            *users_callbacks,
            FoundRate(),
            *early_stop,
            Evaluation(run, progress, settings["evaluate_every"], max_steps),
            Summary(run, hparams),
            Samples(run, data.tokenizer, settings["prompt"], settings["sampling"], settings["sample_every"]),
            stop,
            checkpoints,
        ]
        for users_logger in trainer.loggers:
            users_logger.log_hyperparams(hparams)
        if settings["trainer"]["logger"] is not False:
            logger = TensorBoardLogger(str(run.path), name="", version="", default_hp_metric=False)
            trainer.loggers = [logger, *trainer.loggers]
        if trainer.is_global_zero:
            parameters = module.count_parameters()
            for line in (
                *summary.describe_data(data, train_batches, val_batches, steps_of_epoch(trainer, train_batches, 0)),
                summary.describe_model(module, parameters),
                *summary.describe_start(module),
                summary.describe_device(trainer, settings["trainer"]["accelerator"], precision_reason),
                summary.describe_folder(run.shown, parameters),
            ):
                say(line)
        if resumed_step is not None:
            trainer.num_sanity_val_steps = 0  # what Lightning calls the evaluation before the first update
            if trainer.is_global_zero:
                say(f"going on    after step {resumed_step}")
        keep_freed_memory()
        seed_everything(settings["seed_everything"], workers=True, verbose=False)
        try:
            with naming_batch(data):
                trainer.fit(module, data, ckpt_path=choice.checkpoint, weights_only=True)
        except Stopped:
            if trainer.is_global_zero:
                say(f"Stopped after step {checkpoints.saved_step}, which is saved. To go on:")
                say(f"  {summary.resume_command(arguments)}")
                if stop.signal_number == signal.SIGUSR1:
                    requeue()
            raise
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
                raise KeyboardInterrupt from None
            raise
        except DivergedError as error:
            step = checkpoints.saved_step
            saved = f"last.ckpt is of step {step}" if step >= 0 else "none was saved"
            advice = "try a lower model.learning_rate, a warm-up or trainer.gradient_clip_val"
            raise DivergedError(f"{error}, {saved}; {advice}") from None
        except OSError:
            with naming(run.path):  # a logger's has no name
                raise
        except Exception as error:
            raise explain_error(error, users_callbacks, None if progress.started else choice.checkpoint) from error
        if progress.session_tokens == 0 and resumed_step is not None:
            say(f"{choice.folder}: finished; trainer.max_time or a callback ends it before its next step")
            return run.path
        if progress.session_tokens == 0:
            batch_size = data.hparams["batch_size"]
            raise InputError(
                "nothing was trained: trainer.max_time or a callback ended the run before its first step "
                f"(data.batch_size is {batch_size} for {len(data.splits['training'].windows)} training windows)"
            )
        if trainer.is_global_zero:
            for path in (run.best, run.last):
                check_saved(path)
            prompt = settings["prompt"][0] if settings["prompt"] else "Every effort moves you"
            flops = module.flops_per_token / trainer.world_size, peak
            left = [one.time_remaining() for one in users_callbacks if isinstance(one, Timer)]
            if trainer.global_step < module.total_steps and any(one is not None and one <= 0 for one in left):
                say(f"Stopped by trainer.max_time after step {checkpoints.saved_step}. With more of it, this goes on:")
                say(f"  {summary.resume_command(arguments)}")
            for line in farewell(run, progress, checkpoints, time.monotonic() - start, flops, prompt):
                say(line)
        return run.path


def check_fit(trainer: Trainer, module: GPTModule, data: TextDataModule, settings: Any) -> tuple[int, int]:
    """Checks what needs the text, and gives the module the vocabulary, the number of steps and initial weights.

    Returns:
        Batches per epoch on each rank, and batches of an evaluation.

    Raises:
        InputError: Settings do not fit the text, the vocabulary or one another.
        MachineError: There is not enough memory for the weights alone.
    """
    module.set_vocabulary(data.tokenizer.vocab_size)
    module.check_memory()
    train_batches = limited("limit_train_batches", trainer.limit_train_batches, data.train_batches)
    val_batches = limited("limit_val_batches", trainer.limit_val_batches, data.val_batches)
    module.total_steps = count_steps(trainer, module, train_batches, settings["trainer"]["max_steps"])
    settings["sampling"].check_vocabulary(module.hparams["vocab_size"])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in MONITORED:
            known = ", ".join(MONITORED)
            raise InputError(f"trainer.callbacks: {type(callback).__name__} cannot monitor {monitor!r}, only {known}")
        epoch = getattr(callback, "update_starting_at_epoch", None)
        if epoch is not None:
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__}'s update_starting_at_epoch ({epoch}) averages after "
                "the evaluation at the end of an epoch, so that other weights would be saved; give "
                "update_starting_at_step"
            )
    if module.starts_from is not None:
        start_from(module, *module.starts_from)
    return train_batches, val_batches


def start_from(module: GPTModule, name: str, checkpoint: dict[str, Any]) -> None:
    """Puts a checkpoint's weights into a new run's network, of its positions the first context_length.

    Args:
        module: Not yet built.
        name: Of the checkpoint.
        checkpoint: Its content, with at least as many positions.

    Raises:
        InputError: They do not fit, see `training.callbacks.checkpointing.load_weights`.
    """
    state, key = dict(checkpoint["state_dict"]), f"{WEIGHTS_PREFIX}pos_emb.weight"
    if key in state and state[key].dim() > 0:
        state[key] = state[key][: module.hparams["context_length"]]
    own = {key: tensor.clone() for key, tensor in state.items()}  # which training may write to
    load_weights(module, {**checkpoint, "state_dict": own}, name)
    module.starts_from = (name, {})  # gives the file back


def check_saved(path: Path) -> None:
    """Raises `MachineError` unless a checkpoint of this run can be read back: exit code 0 says that it can."""
    try:
        read_checkpoint(path)
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None


def check_finished(folder: Path) -> None:
    """Draws the figures of a finished run where it was killed before that.

    Raises:
        InputError: Its best.ckpt is missing or damaged.
    """
    try:
        read_checkpoint(folder / "checkpoints" / BEST)
    except InputError as error:
        raise InputError(f"{folder}: finished, but {error}; its {LAST} is whole") from None
    if not all((folder / f"loss.{one}").exists() for one in FORMATS):
        try:
            save_figure(loss_figure([read_curve(folder)]), folder / "loss")
        except InputError as error:
            warn(f"{error}, so the loss figure is not drawn")


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next tensor; where there is another C library, does nothing.

    By default it gives a large tensor back to the system when it is freed, and each step maps the same
    hundreds of megabytes anew, which the system zeroes page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def naming_batch(data: TextDataModule) -> Iterator[None]:
    """Makes a `MachineError` that names the batch's size where it is too large for the memory."""
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


def explain_error(error: Exception, callbacks: list[Callback], checkpoint: Path | None) -> Exception:
    """An error of the training, or an `InputError` where the user's callback or checkpoint is the cause.

    Args:
        error: What was raised.
        callbacks: The user's.
        checkpoint: The file that was being restored; None where the training had begun.
    """
    if describe_expected(error) is not None:
        return error
    reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[-1].strip()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for callback in callbacks:
            if frame.f_locals.get("self") is callback:
                return InputError(f"trainer.callbacks: {type(callback).__name__} does not work here: {reason}")
        code = frame.f_code
        restoring = "checkpoint_connector" in code.co_filename or code.co_name == "set_rng_states"
        if checkpoint is not None and restoring:
            return InputError(f"{checkpoint}: a run cannot go on from it ({reason})")
    return error


@contextlib.contextmanager
def open_run(choice: RunChoice, resolved_config: str, module: GPTModule, is_global_zero: bool) -> Iterator[Run]:
    """The run folder, made and locked by rank 0, which tells the ranks that it starts."""
    if not is_global_zero:
        yield Run(Path(os.environ.get(RUN_DIR_VARIABLE) or choice.folder or RUNS))
        return
    is_new = choice.folder is None or not choice.folder.exists()
    run = Run(choice.folder or new_run_folder(choice.name))
    try:
        run.open()
        if choice.content is None and run.best.exists():
            kept = run.best.with_suffix(".kept")
            os.replace(run.best, kept)
            warn(f"{run.shown} has no last.ckpt to go on from and starts anew; its best.ckpt is kept as {kept.name}")
        run.check_space(summary.checkpoint_bytes(module.count_parameters())[1])
        progress = (
            {"steps": -1, "tokens_seen": -1} if choice.content is None else choice.content["gpt_lightning"]["progress"]
        )
        run.cut_logs(progress["steps"], progress["tokens_seen"])
        if choice.checkpoint is not None and choice.checkpoint.name == PREVIOUS and run.last.exists():
            os.replace(run.last, run.last.with_suffix(".damaged"))  # so that it does not become the one before
        replace_bytes(run.path / f"{choice.name}.yaml", resolved_config.encode())
        if run.is_numbered:
            run.link_latest()
        os.environ[RUN_DIR_VARIABLE] = str(run.path)
        yield run
    except BaseException:
        if is_new and run.is_open and not read_rows(run.metrics_file):  # it has not even been evaluated
            run.discard()
        raise
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)
        run.close()
