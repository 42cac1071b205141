"""Models to compare with: the book's model and loop, transformers' GPT-2, our network in a bare loop.

The book's model is reimplemented as chapters 3 to 5 describe it: separate projections for query, key and value,
unfused attention with an explicit mask, its own layer norm and GELU, and `torch.optim.AdamW` with its defaults.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT

VOCABULARY = 50_257
LEARNING_RATE, WEIGHT_DECAY = 4e-4, 0.1


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and its batches; the defaults are those of configs/verdict.yaml."""

    context_length: int = 256
    batch_size: int = 2
    accumulate: int = 1
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    drop_rate: float = 0.1

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.context_length * self.batch_size * self.accumulate

    @property
    def weights_multiplied(self) -> int:
        """Number of weights used in matrix products, with an untied head."""
        return 12 * self.n_layers * self.emb_dim**2 + VOCABULARY * self.emb_dim

    @property
    def flops(self) -> int:
        """Floating-point operations of all matrix products of an optimizer step, forward and backward."""
        attention = 12 * self.n_layers * self.context_length * self.emb_dim
        return self.tokens * (6 * self.weights_multiplied + attention)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        vectors = self.n_layers * 10 * self.emb_dim + 2 * self.emb_dim
        return self.weights_multiplied + (VOCABULARY + self.context_length) * self.emb_dim + vectors


class BookNorm(nn.Module):
    """Chapter 4: layer norm with scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class BookGELU(nn.Module):
    """Chapter 4: GELU's tanh approximation, not fused."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class BookAttention(nn.Module):
    """Chapter 3: `MultiHeadAttention`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.emb_dim
        self.n_heads = shape.n_heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(shape.drop_rate)
        ones = torch.ones(shape.context_length, shape.context_length)
        self.register_buffer("mask", torch.triu(ones, diagonal=1).bool())

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        queries, keys, values = (
            one(x).view(B, T, self.n_heads, D // self.n_heads).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        scores = queries @ keys.transpose(2, 3)
        scores.masked_fill_(self.mask[:T, :T], -torch.inf)
        weights = self.dropout(torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1))
        return self.out((weights @ values).transpose(1, 2).contiguous().view(B, T, D))


class BookBlock(nn.Module):
    """Chapter 4: `TransformerBlock`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.emb_dim
        self.attention = BookAttention(shape)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), BookGELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.dropout = BookNorm(width), BookNorm(width), nn.Dropout(shape.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class BookGPT(nn.Module):
    """Chapter 4: `GPTModel`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.emb_dim
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(shape.context_length, width)
        self.dropout = nn.Dropout(shape.drop_rate)
        self.blocks = nn.Sequential(*(BookBlock(shape) for _ in range(shape.n_layers)))
        self.norm, self.head = BookNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.tokens(token_ids) + self.positions(torch.arange(token_ids.shape[1]))
        return self.head(self.norm(self.blocks(self.dropout(x))))


def our_gpt(shape: Shape) -> GPT:
    """Return this project's network."""
    sizes = {name: getattr(shape, name) for name in ("context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")}
    return GPT(GPTConfig(VOCABULARY, **sizes))


def transformers_gpt(shape: Shape) -> Any:
    """Return transformers' GPT-2 with an untied head, like the other models."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=shape.context_length,
        n_embd=shape.emb_dim,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        resid_pdrop=shape.drop_rate,
        embd_pdrop=shape.drop_rate,
        attn_pdrop=shape.drop_rate,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def batches(shape: Shape) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a function that draws random inputs and targets, a new batch at each call."""
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        size = (shape.batch_size, shape.context_length + 1)
        ids = torch.randint(VOCABULARY, size, generator=generator)
        return ids[:, :-1], ids[:, 1:].contiguous()

    return draw


def training_step(name: str, shape: Shape, precision: str) -> Callable[[], None]:
    """Return a function that runs one optimizer step of a bare training loop.

    Args:
        name: bare (our network), transformers or book.
        shape: Sizes of the model and its batches.
        precision: 32-true, or bf16-mixed for autocast.
    """
    torch.manual_seed(123)
    draw = batches(shape)
    model: Any
    if name == "bare":
        from gpt_lightning.models.loss import cross_entropy
        from gpt_lightning.training.hardware import keep_freed_memory  # here, because it imports Lightning

        keep_freed_memory()  # as in `fit`
        model = our_gpt(shape)
        loss_of = lambda inputs, targets: cross_entropy(model(inputs), targets).mean()  # noqa: E731
    elif name == "book":
        model = BookGPT(shape)
        loss_of = lambda inputs, targets: F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())  # noqa: E731
    else:
        model = transformers_gpt(shape)
        loss_of = lambda inputs, targets: F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())  # noqa: E731
    model.train()
    fused = {} if name == "book" else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **fused)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(shape.accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = loss_of(*draw()) / shape.accumulate
            loss.backward()
        optimizer.step()

    return step


class WithoutProducts(TorchDispatchMode):
    """Replace bfloat16 matrix products by uninitialized tensors, to measure the rest of a step."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        factors = args[1:] if name in ("addmm", "baddbmm") else args
        if name in ("mm", "bmm", "addmm", "baddbmm") and factors[0].dtype == torch.bfloat16:
            return factors[0].new_empty(*factors[0].shape[:-1], factors[1].shape[-1])
        return func(*args, **(kwargs or {}))


class Gate(Callback):
    """Run one optimizer step of `fit` per message, and send the time from its start to the start of the next."""

    connection: ClassVar[Connection]

    def __init__(self) -> None:
        self.let_through = math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.connection.send(time.perf_counter() - self.let_through)  # NaN before the first step
            self.connection.recv()
            self.let_through = time.perf_counter()


class Waits(Callback):
    """Write to waits.json which share of the time of training steps is spent waiting for their data."""

    def __init__(self) -> None:
        self.begin = self.end = self.waited = 0.0
        self.tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin = self.end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.end
        self.tokens += batch[0].numel()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.end = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self.end - self.begin
        facts = {"share": self.waited / seconds, "tokens_per_second": self.tokens / seconds}
        Path("waits.json").write_text(json.dumps(facts))


class Steady(Callback):
    """Write the memory of each process after three optimizer steps, and its maximum, to rank-<rank>.json."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 3:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = {"resident": psutil.Process().memory_info().rss, "peak": peak}
            Path(f"rank-{trainer.global_rank}.json").write_text(json.dumps(found))
