"""`check`: estimate the cost of a run from its config and three discarded optimizer steps.

    python -m gpt_lightning check --config FILE [settings of fit]

Reads the text, evaluates the untrained model once and trains three steps, which are discarded. Prints the number of
windows, batches, steps and parameters, the beginning of the text, estimates of memory, disk and time, and settings that
cause problems or have no effect. Writes no file.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder

from gpt_lightning.console import format_bytes, labeled, say
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import DivergedError, InputError, memory_bytes
from gpt_lightning.training import summary
from gpt_lightning.training.callbacks.evaluation import require_finite_losses
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.distributed import FullyShardedStrategy
from gpt_lightning.training.failures import DIVERGENCE_ADVICE, naming_batch
from gpt_lightning.training.hardware import keep_freed_memory
from gpt_lightning.training.memory import describe_memory, memory_per_device
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.preparation import measure_split_baselines, prepare
from gpt_lightning.training.steps import Steps

PROBED_STEPS = 3  # the first, the slowest, is not used for the estimate
SHOWN_CHARACTERS = 200
SHOWN_TOKENS = 8
# Compute-optimal number of tokens per parameter (Hoffmann et al. 2022).
OPTIMAL_TOKENS = 20
FEW_TOKENS = 0.1
DEFAULT_RATIO = 0.9  # of data.train_ratio
NEAR = 0.6  # nats between an untrained loss and ln V; up to 0.3 for the models of the reference notes


class Probe(Callback):
    """Measures one evaluation and a few optimizer steps, then ends the run.

    Attributes:
        evaluation_seconds: Duration of the evaluation.
        losses: Losses of the evaluation, by name.
        step_seconds: Duration of each optimizer step.
        train_loss: Training loss of the last optimizer step; NaN before the first.

    Raises:
        DivergedError: A loss is infinite or NaN.
    """

    def __init__(self) -> None:
        self.evaluation_seconds = math.nan
        self.losses: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self.train_loss = math.nan
        self._start = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        self.evaluation_seconds = time.perf_counter() - self._start
        self.losses = dict(pl_module.evaluated)
        require_finite_losses(self.losses, trainer.global_step)
        trainer.limit_val_batches = 0  # evaluate only once

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.val_check_batch = sys.maxsize
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            loss = outputs["train_loss"].item()  # waits for the device
            if not math.isfinite(loss):
                raise DivergedError(f"non-finite training loss ({loss}) at step {trainer.global_step}")
            self.train_loss = loss
            self.step_seconds.append(time.perf_counter() - self._start)
            trainer.should_stop = len(self.step_seconds) >= PROBED_STEPS


def check(trainer: Trainer, data: TextDataModule, config: RunConfig, devices: int | None, strategy: str) -> None:
    """Print the size, the estimated cost and the problems of a run.

    Args:
        trainer: A Trainer as for `fit`; it cannot be used again.
        data: Data module that has not been set up.
        config: The settings of the run.
        devices: Number of devices to estimate the memory of; None for no such estimate.
        strategy: How they work together, ddp or fsdp.

    Raises:
        InputError: `fit` would refuse the settings, or the run has no end.
        MachineError: `fit` would not have enough memory.
        DivergedError: A loss or a gradient is not finite.
    """
    data.setup("fit")
    module, steps = prepare(trainer, data, config, is_resumed=False)
    if math.isinf(steps.total):
        raise InputError("check needs a run of known length; set trainer.max_epochs or trainer.max_steps")
    baselines = measure_split_baselines(trainer, data, config.model.vocab_size, steps)
    for line in (
        *summary.describe_start(trainer, data, config, steps, baselines, config.init_from),
        *describe_text(data),
    ):
        say(line)
    probe = run_probe(trainer, data, module, config)
    peak = peak_bytes(trainer)
    for line in describe_cost(trainer, data, config, steps, probe, peak):
        say(line)
    if devices is not None:
        memory = memory_per_device(config.model, config.optimizer, strategy, devices)
        say(labeled("devices", f"{devices} with {strategy}: {describe_memory(memory)}"))
    for problem in problems(data, config, steps, probe.losses, peak):
        say(labeled("problem", problem))
    for effect in ineffective_settings(data, config, steps, trainer.gradient_clip_val):
        say(labeled("no effect", effect))


def run_probe(trainer: Trainer, data: TextDataModule, module: GPTModule, config: RunConfig) -> Probe:
    """Evaluate once, train a few optimizer steps, and return the measurements.

    Raises:
        DivergedError: A loss or a gradient is not finite; advice is given if an optimizer step has changed the weights.
    """
    probe = Probe()
    others = [one for one in trainer.callbacks if not isinstance(one, LearningRateFinder)]  # type: ignore[attr-defined]
    trainer.callbacks = [*others, probe]  # type: ignore[attr-defined]
    trainer.loggers = []
    keep_freed_memory()
    seed_everything(config.training.seed_everything, workers=True, verbose=False)
    try:
        with naming_batch(data):
            trainer.fit(module, data)
    except DivergedError as error:
        advice = ""
        if probe.step_seconds:  # else the learning rate has had no effect yet
            rate = f"model.learning_rate {module.peak_learning_rate:g}"
            advice = f"; the training loss was {probe.train_loss:.3f} before, with {rate}; {DIVERGENCE_ADVICE}"
        raise DivergedError(f"{error}; expect fit to fail, too{advice}") from None
    return probe


def describe_text(data: TextDataModule) -> Iterator[str]:
    """Show the beginning of the text, and the inputs and targets of the first window."""
    windows, decode = data.splits["training"].windows, data.tokenizer.decode
    start = decode([int(one) for one in windows.token_ids[:SHOWN_CHARACTERS]])[:SHOWN_CHARACTERS]
    yield labeled("begins", repr(start))
    inputs, targets = (ids.tolist() for ids in windows[0])
    for name, ids in (("inputs", inputs), ("targets", targets)):
        shown = ", ".join(repr(decode([one])) for one in ids[:SHOWN_TOKENS])
        more = f", ... ({len(ids)} tokens)" if len(ids) > SHOWN_TOKENS else ""
        yield labeled(name, f"{shown}{more}")


def describe_cost(
    trainer: Trainer, data: TextDataModule, config: RunConfig, steps: Steps, probe: Probe, peak: int
) -> Iterator[str]:
    """Describe the untrained loss and the run's memory, disk space, time and tokens.

    Args:
        trainer: The run's Trainer.
        data: Data module, set up.
        config: The settings of the run.
        steps: Batches and optimizer steps of the run.
        probe: The measurements.
        peak: Peak memory of the run, in bytes.
    """
    model = config.model
    yield labeled(
        "untrained" if config.init_from is None else "pretrained",
        f"Train loss {probe.losses['train_eval_loss']:.3f}, Val loss {probe.losses['val_loss']:.3f}; "
        f"uniform baseline: ln {model.vocab_size:,} = {math.log(model.vocab_size):.3f}",
    )
    strategy = "fsdp" if isinstance(trainer.strategy, FullyShardedStrategy) else "ddp"
    own = memory_per_device(model, config.optimizer, strategy, trainer.world_size)
    rest = format_bytes(peak - own.weights - own.gradients - own.moments)
    per_process = " per process" if trainer.world_size > 1 else ""
    yield labeled(
        "memory",
        f"{format_bytes(peak)}{per_process}: {format_bytes(own.weights)} each for weights and gradients, "
        f"{format_bytes(own.moments)} for the optimizer's moments, {rest} for activations, copies and the program",
    )
    done, running = summary.checkpoint_bytes(config)
    yield labeled(
        "disk", f"checkpoints take {format_bytes(done)} when done, up to {format_bytes(running)} while it runs"
    )
    seconds = min(probe.step_seconds[1:] or probe.step_seconds)
    evaluations = steps.total // config.training.evaluate_every + 1
    minutes = (steps.total * seconds + evaluations * probe.evaluation_seconds) / 60
    yield labeled(
        "run",
        f"{steps.total:,} optimizer steps of {seconds:.2f} s, {evaluations:,} evaluations of "
        f"{probe.evaluation_seconds:.2f} s: {minutes:,.1f} minutes, plus sampling and saving",
    )
    per_epoch = steps.train_batches * data.hparams["batch_size"] * model.context_length * trainer.world_size
    tokens = round(steps.total / steps.per_epoch * per_epoch)
    yield labeled(
        "tokens",
        f"{tokens:,} to train on in the whole run, {tokens / model.num_parameters:.3g} per parameter; "
        f"the training split has {data.splits['training'].tokens / model.num_parameters:.3g} per parameter",
    )


def peak_bytes(trainer: Trainer) -> int:
    """Return the estimated peak memory of the run in bytes."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()  # freed memory is kept, see `keep_freed_memory`
    return int(getattr(memory, "peak_wset", memory.rss))


def problems(
    data: TextDataModule, config: RunConfig, steps: Steps, losses: dict[str, float], peak: int
) -> Iterator[str]:
    """Yield each expected problem of the run with a remedy.

    Args:
        data: Data module, set up.
        config: The settings of the run.
        steps: Batches and optimizer steps of the run.
        losses: Losses of the untrained model.
        peak: Peak memory of the run, in bytes.
    """
    vocab_size, parameters = config.model.vocab_size, config.model.num_parameters
    away = max(abs(losses[name] - math.log(vocab_size)) for name in ("train_eval_loss", "val_loss"))
    if away > NEAR and config.init_from is None:
        yield (
            f"the untrained loss is {away:.2f} nats from the uniform baseline; try model.init gpt2, "
            "and model.vocab_size null, which leaves no token id unused"
        )
    different = data.splits["training"].tokens / parameters
    if different < FEW_TOKENS:
        yield (
            f"{different:.2g} tokens per parameter (about {OPTIMAL_TOKENS} is compute-optimal): expect memorization; "
            "use more text or a smaller model (model.n_layers, model.emb_dim)"
        )
    memory = memory_bytes()
    if peak > 0.9 * memory and not torch.cuda.is_available():
        yield (
            f"the run needs {format_bytes(peak)} of this machine's {format_bytes(memory)} of memory; "
            "lower data.batch_size and raise trainer.accumulate_grad_batches, or set model.activation_checkpointing"
        )
    free, needed = shutil.disk_usage(Path.cwd()).free, summary.checkpoint_bytes(config)[1]
    if needed > free:
        yield (
            f"the checkpoints need {format_bytes(needed)}, but the disk has {format_bytes(free)} free; "
            "choose a folder on another disk with --run_dir"
        )
    if steps.total < config.training.evaluate_every:
        yield (
            f"evaluate_every ({config.training.evaluate_every}) is more than the run's {steps.total} steps, "
            "so the run is evaluated only at its start and end"
        )


def ineffective_settings(
    data: TextDataModule, config: RunConfig, steps: Steps, gradient_clip_val: float | None
) -> Iterator[str]:
    """Yield the settings that have no effect because of other settings."""
    sampling, optimizer, training = config.sampling, config.optimizer, config.training
    if data.hparams["val_text"] is not None and data.hparams["train_ratio"] != DEFAULT_RATIO:
        yield "data.train_ratio: the validation split is data.val_text"
    if sampling.temperature == 0 and sampling.top_k not in (None, 1):
        yield "sampling.top_k: sampling.temperature 0 always takes the most likely token"
    if optimizer.decay_matrices_only and optimizer.weight_decay == 0:
        yield "model.decay_matrices_only: model.weight_decay is 0"
    if optimizer.min_learning_rate == optimizer.learning_rate:
        yield "model.min_learning_rate: it equals model.learning_rate"
    samples, vocab_size = optimizer.sampled_softmax, config.model.vocab_size
    if samples is not None and samples >= vocab_size:
        yield f"model.sampled_softmax ({samples}): the vocabulary has {vocab_size:,} tokens"
    if gradient_clip_val == 0:
        yield "trainer.gradient_clip_val: 0 turns clipping off, as null does"
    for name in ("sample_every", "save_every"):
        every = getattr(training, name)
        if every is not None and every > steps.total:
            yield f"{name} ({every}): the run has only {steps.total} steps"
    evaluations = steps.total // training.evaluate_every
    patience = training.early_stopping_patience
    if patience is not None and patience >= evaluations:
        yield f"early_stopping_patience ({patience}): the run has only {evaluations} evaluations"
