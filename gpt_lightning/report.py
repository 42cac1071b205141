"""What the program says about a run, before and after."""

from __future__ import annotations

import os

import torch
from lightning.pytorch import Trainer

from gpt_lightning.data import Split, TextDataModule
from gpt_lightning.model import GPT
from gpt_lightning.module import ARCHITECTURE, GPTModule

BYTES_PER_WEIGHT = 4
STATES_PER_WEIGHT = 3  # a full checkpoint holds the weight and AdamW's two moments


def count_parameters(module: GPTModule) -> int:
    """Parameters of the network that the settings describe, without building it."""
    with torch.device("meta"):
        return GPT(**{name: module.hparams[name] for name in ARCHITECTURE}).count_parameters()


def checkpoint_bytes(parameters: int) -> tuple[int, int]:
    """Size of best.ckpt (weights) and of last.ckpt (weights and optimizer state)."""
    return BYTES_PER_WEIGHT * parameters, BYTES_PER_WEIGHT * STATES_PER_WEIGHT * parameters


def describe_data(data: TextDataModule, accumulate: int) -> list[str]:
    """The text, its parts and their windows."""
    assert data.source is not None
    train, val = data.splits["training"], data.splits["validation"]
    batch_size, context_length = data.hparams["batch_size"], data.hparams["context_length"]
    steps = -(-data.train_batches // accumulate)
    return [
        f"text        {data.source.path.name}: {len(data.source.content):,} characters, {data.total_tokens:,} tokens "
        f"({data.tokenizer.name}, {data.tokenizer.vocab_size:,} in the vocabulary)",
        f"split       {train.characters:,} / {val.characters:,} characters, "
        f"{train.tokens:,} / {val.tokens:,} tokens for training / validation",
        f"windows     {len(train.windows)} + {len(val.windows)} of {context_length} tokens, stride {data.stride}; "
        f"no window predicts the last {train.windows.tail} + {val.windows.tail} tokens",
        f"batches     {data.train_batches} + {data.val_batches} of {batch_size} windows; "
        f"{steps} optimizer steps per epoch{_left_out(data, train)}",
    ]


def _left_out(data: TextDataModule, train: Split) -> str:
    world_size = data.trainer.world_size if data.trainer is not None else 1
    left_out = len(train.windows) - data.train_batches * data.hparams["batch_size"] * world_size
    return f", {left_out} windows that fill no batch left out of each" if left_out else ""


def describe_device(trainer: Trainer, asked: str) -> str:
    """The device, and why this one."""
    device = trainer.strategy.root_device.type
    if asked not in ("auto", "gpu"):
        reason = "as trainer.accelerator says"
    elif device == "cpu":
        reason = "no CUDA or MPS device found"
    else:
        reason = "found on this machine"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"device      {count}{device} ({reason}), precision {trainer.precision}{threads}"


def describe_model(module: GPTModule, parameters: int) -> str:
    """Size and shape of the network."""
    h = module.hparams
    tied = "tied" if h["tie_weights"] else "untied"
    return (
        f"model       {parameters:,} parameters: {h['n_layers']} layers, {h['n_heads']} heads, width {h['emb_dim']}, "
        f"context {h['context_length']}, {tied} head"
    )


def describe_folder(shown: str, parameters: int) -> str:
    """The run folder and what will be written to it."""
    best, last = checkpoint_bytes(parameters)
    while_running = best + 3 * last  # last, prev, and the one being written
    return (
        f"run folder  {shown}; checkpoints take {format_bytes(best + last)} when done, "
        f"up to {format_bytes(while_running)} while it runs"
    )


def format_bytes(size: int) -> str:
    """A size in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def describe_evaluation(name: str, loss: float, perplexity: float, part: Split) -> str:
    """One line with the loss of a split."""
    windows = part.windows
    predicted = len(windows) * windows.context_length
    return (
        f"{name}: loss {loss:.6f} nats per token, perplexity {perplexity:.4f}, "
        f"over {predicted:,} tokens in {len(windows)} windows of {windows.context_length}; "
        f"no window predicts the last {windows.tail}"
    )


def predict_command(checkpoint: str, prompt: str) -> str:
    """The command that samples from a checkpoint."""
    quoted = "'" + prompt.replace("'", "'\\''") + "'" if set(prompt) & set('"$`\\!') else f'"{prompt}"'
    return f"python -m gpt_lightning predict --ckpt_path {os.fspath(checkpoint)} --prompt {quoted}"
