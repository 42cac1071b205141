"""What the program says about a run, before and after."""

from __future__ import annotations

import shlex

import torch
from lightning.pytorch import Trainer

from gpt_lightning.console import PROGRAM, format_bytes
from gpt_lightning.data.corpus import Corpus
from gpt_lightning.data.datamodule import Split, TextDataModule
from gpt_lightning.data.sources import short_name
from gpt_lightning.models.config import BYTES_PER_WEIGHT
from gpt_lightning.runs.folder import Run
from gpt_lightning.training.callbacks.checkpointing import RunCheckpoints
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.module import GPTModule

STATES_PER_WEIGHT = 3  # a full checkpoint holds the weight and AdamW's two moments


def farewell(
    run: Run,
    progress: Progress,
    checkpoints: RunCheckpoints,
    seconds: float,
    flops: tuple[float, float | None],
    prompt: str,
) -> list[str]:
    """How it went, and the command that samples from the result.

    Args:
        run: The folder.
        progress: What was trained on.
        checkpoints: What was saved.
        seconds: That it took.
        flops: Floating-point operations of a device for a token of the batch, and the most per second that
            it is made for, None where unknown.
        prompt: For the command.
    """
    speed = progress.session_tokens / max(progress.session_seconds, 1e-9)
    per_token, peak = flops
    utilization = "n/a" if peak is None else f"{100 * speed * per_token / peak:.1f} %"
    return [
        f"Training completed in {seconds / 60:.2f} minutes.",
        f"{progress.tokens_seen:,} tokens seen, {speed:,.0f} tokens per second in the training steps "
        f"(utilization of the peak rate {utilization}), "
        f"{100 * checkpoints.saving_seconds / seconds:.1f} % of the time spent on saving.",
        f"best.ckpt is of step {checkpoints.best_step} (Val loss {checkpoints.best_val_loss:.3f}), "
        f"last.ckpt of step {checkpoints.saved_step}. To sample:",
        "  " + predict_command(f"{run.shown}/checkpoints/best.ckpt", prompt),
    ]


def checkpoint_bytes(parameters: int) -> tuple[int, int]:
    """Size of a run's checkpoints when it is done and, at most, while it runs."""
    best = BYTES_PER_WEIGHT * parameters
    last = STATES_PER_WEIGHT * best
    return best + 2 * last, best + 3 * last  # last, prev, and the one being written


def describe_data(data: TextDataModule, train_batches: int, val_batches: int, steps: int) -> list[str]:
    """The text, its parts and their windows.

    Args:
        data: Set up.
        train_batches: Batches per epoch on each rank.
        val_batches: Batches of an evaluation.
        steps: Optimizer steps of the first epoch.
    """
    assert data.source is not None
    source = data.source
    documents = f" in {source.documents:,} documents of {source.files:,} files" if isinstance(source, Corpus) else ""
    train, val = data.splits["training"], data.splits["validation"]
    batch_size, context_length = data.hparams["batch_size"], data.hparams["context_length"]
    return [
        f"text        {short_name(source.path)}: {source.characters:,} characters, {data.total_tokens:,} tokens"
        f"{documents} ({data.tokenizer.name}, {data.tokenizer.vocab_size:,} in the vocabulary)",
        f"split       {train.characters:,} / {val.characters:,} characters, "
        f"{train.tokens:,} / {val.tokens:,} tokens for training / validation",
        f"windows     {len(train.windows)} + {len(val.windows)} of {context_length} tokens, stride {data.stride}; "
        f"no window predicts the last {train.windows.tail} + {val.windows.tail} tokens",
        f"batches     {train_batches} + {val_batches} of {batch_size} windows; "
        f"{steps} optimizer steps per epoch{_left_out(data, train, train_batches)}",
    ]


def _left_out(data: TextDataModule, train: Split, train_batches: int) -> str:
    world_size = data.trainer.world_size if data.trainer is not None else 1
    left_out = len(train.windows) - train_batches * data.hparams["batch_size"] * world_size
    reason = "that fill no batch" if train_batches == data.train_batches else "beyond trainer.limit_train_batches"
    return f", {left_out} windows {reason} left out of each" if left_out else ""


def describe_device(trainer: Trainer, asked: str, precision_reason: str) -> str:
    """The device and the precision, and why these."""
    device = trainer.strategy.root_device.type
    if asked not in ("auto", "gpu"):
        reason = "as trainer.accelerator says"
    elif device == "cpu":
        reason = "no CUDA or MPS device found"
    else:
        reason = "found on this machine"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    line = f"device      {count}{device} ({reason}), precision {trainer.precision} ({precision_reason}){threads}"
    if device == "mps":
        line += "; training on MPS had issues where this comes from: --trainer.accelerator cpu trains on the CPU"
    return line


def describe_model(module: GPTModule, parameters: int) -> str:
    """Size and shape of the network."""
    h = module.hparams
    tied = "tied" if h["tie_weights"] else "untied"
    return (
        f"model       {parameters:,} parameters: {h['n_layers']} layers, {h['n_heads']} heads, width {h['emb_dim']}, "
        f"context {h['context_length']}, {tied} head"
    )


def describe_start(module: GPTModule) -> list[str]:
    """Where the weights of a new run come from, where they are not random."""
    if module.starts_from is None:
        return []
    name = module.starts_from[0]
    return [f"weights     {name}, its first {module.hparams['context_length']} positions; the optimizer starts anew"]


def describe_folder(shown: str, parameters: int) -> str:
    """The run folder and what will be written to it."""
    done, running = checkpoint_bytes(parameters)
    return (
        f"run folder  {shown}; checkpoints take {format_bytes(done)} when done, "
        f"up to {format_bytes(running)} while it runs"
    )


def resume_command(arguments: list[str]) -> str:
    """The command that goes on with a run, for a shell.

    Args:
        arguments: What was typed after `fit`.
    """
    typed = arguments if "--resume" in arguments else [*arguments, "--resume"]
    return f"python -m {PROGRAM} fit {shlex.join(typed)}"


def describe_evaluation(name: str, loss: float, perplexity: float, tokens: int, part: Split) -> str:
    """One line with the loss of a split.

    Args:
        name: Of the split.
        loss: In nats per token.
        perplexity: exp of it.
        tokens: Over how many tokens the loss is the mean.
        part: The split.
    """
    windows = tokens // part.windows.context_length
    left_out = len(part.windows) - windows
    rest = f"no window predicts the last {part.windows.tail}"
    return (
        f"{name}: loss {loss:.6f} nats per token, perplexity {perplexity:.4f}, "
        f"over {tokens:,} tokens in {windows} windows of {part.windows.context_length}; "
        + (f"{left_out} windows left out by a limit" if left_out else rest)
    )


def predict_command(checkpoint: str, prompt: str) -> str:
    """The command that samples from a checkpoint, to be pasted into a shell."""
    quoted = shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'
    return f"python -m {PROGRAM} predict --ckpt_path {shlex.quote(checkpoint)} --prompt {quoted}"
