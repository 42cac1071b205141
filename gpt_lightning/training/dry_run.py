"""`check`: what a config comes to, before it is trained.

    python -m gpt_lightning check --config FILE [settings of fit]

Reads the text, evaluates the untrained model once and trains a few steps, which are thrown away: windows,
batches, steps, parameters, memory and minutes of the run, its text side by side with what the model has to
say about it, and what is wrong or has no effect. It writes nothing.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder

from gpt_lightning.console import format_bytes, say
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError, memory_bytes
from gpt_lightning.models.config import BYTES_PER_WEIGHT
from gpt_lightning.training import summary
from gpt_lightning.training.fit import check_fit, keep_freed_memory, naming_batch
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.steps import steps_of_epoch

PROBED_STEPS = 3  # the first is not measured
SHOWN_CHARACTERS = 200
SHOWN_TOKENS = 8
# A text this many tokens per parameter long makes the best of a training's arithmetic (Hoffmann et al. 2022).
ENOUGH_TOKENS = 20
FEW_TOKENS = 0.1
DEFAULT_RATIO = 0.9  # of data.train_ratio
NEAR = 0.6  # nats between an untrained loss and ln V: the documents' models are up to 0.3 away


class Probe(Callback):
    """Times the evaluation of the untrained model and a few optimizer steps, then ends the run.

    Attributes:
        evaluation_seconds: Of the one evaluation.
        losses: Its losses.
        step_seconds: Of each measured optimizer step.
    """

    def __init__(self) -> None:
        self.evaluation_seconds = math.nan
        self.losses: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self._start = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GPTModule)
        self.evaluation_seconds = time.perf_counter() - self._start
        self.losses = dict(pl_module.evaluated)
        trainer.limit_val_batches = 0  # once is enough

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.val_check_batch = sys.maxsize
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            outputs["train_loss"].item()  # waits for the device
            self.step_seconds.append(time.perf_counter() - self._start)
            trainer.should_stop = len(self.step_seconds) >= PROBED_STEPS


def check(trainer: Trainer, module: GPTModule, data: TextDataModule, settings: Any, precision_reason: str) -> None:
    """Prints everything that is known of a run before it is made.

    Args:
        trainer: As for `fit`; it is used up.
        module: Not yet built.
        data: Not yet set up.
        settings: All settings of the command.
        precision_reason: Why the precision is what it is.

    Raises:
        InputError: What `fit` would refuse.
        MachineError: Likewise.
    """
    data.trainer = trainer
    data.setup("fit")
    train_batches, val_batches = check_fit(trainer, module, data, settings)
    if math.isinf(module.total_steps):
        raise InputError("check needs an end to foretell: set trainer.max_epochs or trainer.max_steps")
    parameters = module.count_parameters()
    steps_per_epoch = steps_of_epoch(trainer, train_batches, 0)
    for line in (
        *summary.describe_data(data, train_batches, val_batches, steps_per_epoch),
        summary.describe_model(module, parameters),
        *summary.describe_start(module),
        summary.describe_device(trainer, settings["trainer"]["accelerator"], precision_reason),
        *_describe_text(data),
    ):
        say(line)

    probe = Probe()
    others = [one for one in trainer.callbacks if not isinstance(one, LearningRateFinder)]  # type: ignore[attr-defined]
    trainer.callbacks = [*others, probe]  # type: ignore[attr-defined]
    trainer.loggers = []
    keep_freed_memory()
    seed_everything(settings["seed_everything"], workers=True, verbose=False)
    with naming_batch(data):
        trainer.fit(module, data)

    vocab_size = module.hparams["vocab_size"]
    word = "untrained" if module.starts_from is None else "at first"
    say(
        f"{word:<12}Train loss {probe.losses['train_eval_loss']:.3f}, Val loss {probe.losses['val_loss']:.3f}; "
        f"a blind guess, ln {vocab_size:,} = {math.log(vocab_size):.3f}"
    )
    on_disk = summary.checkpoint_bytes(parameters)
    per_epoch = train_batches * data.hparams["batch_size"] * data.hparams["context_length"] * trainer.world_size
    tokens = round(module.total_steps / steps_per_epoch * per_epoch)
    seconds = min(probe.step_seconds[1:] or probe.step_seconds)
    evaluations = module.total_steps // settings["evaluate_every"] + 1
    minutes = (module.total_steps * seconds + evaluations * probe.evaluation_seconds) / 60
    peak = peak_bytes(trainer, module)
    for line in (
        _describe_memory(module, peak),
        f"disk        {format_bytes(on_disk[0])} of checkpoints when done, up to {format_bytes(on_disk[1])} before",
        f"run         {module.total_steps:,} optimizer steps of {seconds:.2f} s, {evaluations:,} evaluations of "
        f"{probe.evaluation_seconds:.2f} s: {minutes:,.1f} minutes besides sampling and saving",
        f"tokens      {tokens:,} to train on in all, {tokens / parameters:.3g} per parameter; "
        f"{data.splits['training'].tokens / parameters:.3g} different ones",
    ):
        say(line)
    for problem in find_problems(module, data, settings, probe.losses, peak, on_disk[1]):
        say(f"problem     {problem}")
    for effect in without_effect(module, data, settings):
        say(f"no effect   {effect}")


def _describe_text(data: TextDataModule) -> Iterator[str]:
    """How the text begins, and what its first window asks."""
    windows, decode = data.splits["training"].windows, data.tokenizer.decode
    start = decode([int(one) for one in windows.token_ids[:SHOWN_CHARACTERS]])[:SHOWN_CHARACTERS]
    yield f"begins      {start!r}"
    inputs, targets = (ids.tolist() for ids in windows[0])
    for name, ids in (("inputs", inputs), ("targets", targets)):
        shown = ", ".join(repr(decode([one])) for one in ids[:SHOWN_TOKENS])
        more = f", ... ({len(ids)} tokens)" if len(ids) > SHOWN_TOKENS else ""
        yield f"{name:<12}{shown}{more}"


def peak_bytes(trainer: Trainer, module: GPTModule) -> int:
    """The most memory that the run will take, of the device: what the probe took, and the best weights' copy."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    copy = BYTES_PER_WEIGHT * module.count_parameters()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + copy


def _describe_memory(module: GPTModule, peak: int) -> str:
    weights = BYTES_PER_WEIGHT * module.count_parameters()
    rest = peak - 4 * weights
    parts = f"{format_bytes(weights)} each for weights, gradients and AdamW's two means"
    return f"memory      {format_bytes(peak)}: {parts}, {format_bytes(rest)} for activations, copies and the program"


def find_problems(
    module: GPTModule, data: TextDataModule, settings: Any, losses: dict[str, float], peak: int, disk: int
) -> Iterator[str]:
    """What will go wrong, or not as one might hope, each with what to do about it."""
    vocab_size, parameters = module.hparams["vocab_size"], module.count_parameters()
    away = max(abs(losses[name] - math.log(vocab_size)) for name in ("train_eval_loss", "val_loss"))
    if away > NEAR and module.starts_from is None:
        yield (
            f"the untrained loss is {away:.2f} nats from a blind guess's; "
            "model.init gpt2 starts nearer to it, a model.vocab_size that is the tokenizer's has no unused ids"
        )
    different = data.splits["training"].tokens / parameters
    if different < FEW_TOKENS:
        yield (
            f"{different:.2g} tokens per parameter (about {ENOUGH_TOKENS} make the best of a training): it will learn "
            "the text by heart; take more text or a smaller model (model.n_layers, model.emb_dim)"
        )
    memory = memory_bytes()
    if peak > 0.9 * memory and not torch.cuda.is_available():
        yield (
            f"{format_bytes(peak)} of memory are close to the machine's {format_bytes(memory)}; lower data.batch_size "
            "and raise trainer.accumulate_grad_batches, or set model.activation_checkpointing"
        )
    free = shutil.disk_usage(Path.cwd()).free
    if disk > free:
        yield f"the disk has {format_bytes(free)} free for {format_bytes(disk)}; name another with --run_dir"
    if module.total_steps < settings["evaluate_every"]:
        yield (
            f"evaluate_every ({settings['evaluate_every']}) is more than the run's {module.total_steps} steps: "
            "it is evaluated at its start and end only"
        )


def without_effect(module: GPTModule, data: TextDataModule, settings: Any) -> Iterator[str]:
    """Settings that change nothing because of other settings."""
    sampling, h = settings["sampling"], module.hparams
    if data.hparams["val_text"] is not None and data.hparams["train_ratio"] != DEFAULT_RATIO:
        yield "data.train_ratio: data.val_text is the validation text"
    if sampling.temperature == 0 and sampling.top_k not in (None, 1):
        yield "sampling.top_k: with sampling.temperature 0 the most likely token is taken"
    if h["decay_matrices_only"] and h["weight_decay"] == 0:
        yield "model.decay_matrices_only: model.weight_decay is 0"
    if h["min_learning_rate"] == h["learning_rate"]:
        yield "model.min_learning_rate: it is model.learning_rate"
    if settings["trainer"]["gradient_clip_val"] == 0:
        yield "trainer.gradient_clip_val: 0 does not clip; null says so"
    for name in ("sample_every", "save_every"):
        if settings[name] is not None and settings[name] > module.total_steps:
            yield f"{name} ({settings[name]}): the run has {module.total_steps} steps"
    evaluations = module.total_steps // settings["evaluate_every"]
    patience = settings["early_stopping_patience"]
    if patience is not None and patience >= evaluations:
        yield f"early_stopping_patience ({patience}): the run has {evaluations} evaluations"
