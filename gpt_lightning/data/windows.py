"""Windows of token ids and the order in which they are trained on.

Shapes: N tokens of the text, T context_length.

A language model needs no labels: the target of a token is the token after it. A window is T tokens and,
as targets, the same text shifted by one, so that one window asks T questions at once: after its first
token, after its first two, and so on to T. All windows have one length, so that several of them stack into
one tensor (B, T) and nothing has to be padded and masked; T is also the most that the model's positions
reach. Shorter contexts are learned all the same, as the beginnings of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), int64
TokenIds = Tensor | NDArray[Any]  # (N,) int64 in memory, or unsigned and memory-mapped


def windows_in_batch(batch: Batch) -> int:
    """Return B, for Lightning's ThroughputMonitor, which needs a function."""
    return batch[0].shape[0]


def tokens_in_batch(batch: Batch) -> int:
    """Return B * T, for Lightning's ThroughputMonitor."""
    return batch[0].numel()


class Windows(Dataset[Batch]):
    """Windows of `context_length` tokens and, as targets, the same shifted by one token.

    Only whole windows, which start at range(0, tokens - context_length, stride), as in the book.

    Args:
        token_ids: (N,) of any integer type.
        context_length: T.
        stride: Tokens from one window's start to the next; equal to T, no token is predicted twice.
    """

    def __init__(self, token_ids: TokenIds, context_length: int, stride: int) -> None:
        self.token_ids = token_ids
        self.context_length = context_length
        self.starts = range(0, len(token_ids) - context_length, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        start = self.starts[index]
        piece = self.token_ids[start : start + self.context_length + 1]
        if not isinstance(piece, Tensor):
            piece = torch.from_numpy(piece.astype(np.int64))
        return piece[:-1], piece[1:]

    @property
    def unused_tokens(self) -> int:
        """Number of trailing tokens that no window predicts."""
        predicted = self.starts[-1] + self.context_length if self.starts else 0
        return len(self.token_ids) - 1 - predicted


class ResumableSampler(Sampler[int]):
    """Shuffle the training windows in an order that depends on (seed, epoch) alone.

    Every rank gets its own share of each global batch; windows that do not fill a batch on every rank are
    dropped from that epoch.

    Args:
        windows: Number of windows.
        batch_size: Windows per rank and batch.
        seed: Of the run.
        epoch: The first epoch to iterate; Lightning calls `set_epoch` before each later one.
        skip_batches: Batches of the first epoch to skip, because they were already trained on.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        windows: int,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        skip_batches: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.windows = windows
        self.global_batch = batch_size * world_size
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._skip_batches = skip_batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.windows // self.global_batch * self.global_batch // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.windows, generator=generator)
        skipped, self._skip_batches = self._skip_batches, 0
        used = len(self) * self.world_size
        return iter(order[skipped * self.global_batch : used][self.rank :: self.world_size].tolist())
