"""Windows of token ids, and the order in which they are trained on.

Shapes: B batch, T context_length, N tokens of the text.

A language model needs no labels, because the target of each token is the next token. A window consists of T input
tokens and, as targets, the same tokens shifted by one. It therefore contains T predictions, from contexts of
1, 2, ..., T tokens, so the model also learns to predict from short contexts. All windows have the same length,
so that they can be stacked into tensors (B, T) without padding or masks. T is also the number of positions of the
model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gpt_lightning.console import plural
from gpt_lightning.data.shards import ShardedTokens
from gpt_lightning.errors import InputError

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), int64
TokenIds = Tensor | NDArray[Any] | ShardedTokens  # (N,) of any integer type


def windows_in_batch(batch: Batch) -> int:
    """Return B, as the argument `batch_size_fn` of Lightning's ThroughputMonitor."""
    return batch[0].shape[0]


def tokens_in_batch(batch: Batch) -> int:
    """Return B * T, as the argument `length_fn` of Lightning's ThroughputMonitor."""
    return batch[0].numel()


class Windows(Dataset[Batch]):
    """A dataset of windows: `context_length` tokens and, as targets, the same tokens shifted by one.

    Windows start at range(0, N - T, stride), as in the book; a shorter rest at the end is not used. With shards, this
    holds for each shard: no window spans two.

    Args:
        token_ids: (N,) of any integer type.
        context_length: T.
        stride: Tokens between the starts of windows. If it is T, each token is predicted at most once.

    Attributes:
        groups: Number of windows in each shard; of all windows, if the tokens are not in shards.
    """

    def __init__(self, token_ids: TokenIds, context_length: int, stride: int) -> None:
        self.token_ids = token_ids
        self.context_length = context_length
        self.stride = stride
        self._pieces = token_ids.pieces if isinstance(token_ids, ShardedTokens) else [range(len(token_ids))]
        self._starts = [range(one.start, max(one.start, one.stop - context_length), stride) for one in self._pieces]
        self.groups = list(map(len, self._starts))
        self._firsts = list(accumulate(self.groups, initial=0))  # index of the first window of each shard

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> Batch:
        start = self.start(index)
        piece = self.token_ids[start : start + self.context_length + 1]
        if not isinstance(piece, Tensor):
            piece = torch.from_numpy(piece.astype(np.int64))
        return piece[:-1], piece[1:]

    def start(self, index: int) -> int:
        """Return the position of a window's first token."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._firsts, index) - 1
        return self._starts[group][index - self._firsts[group]]

    def fetch_ahead(self, groups: list[int]) -> None:
        """Begin to download shards, one after another, if the tokens are in shards."""
        if isinstance(self.token_ids, ShardedTokens):
            self.token_ids.fetch_ahead(groups)

    def require_one(self, name: str, advice: str) -> None:
        """Raise `InputError` if the tokens are fewer than a window and the token after it, its last target.

        Args:
            name: Name of the text, which starts the message.
            advice: What to do, which ends it.
        """
        if not len(self):
            raise InputError(
                f"{name} has {plural(len(self.token_ids), 'token')}, but one window needs {self.context_length + 1:,}: "
                f"model.context_length ({self.context_length}) and one more as the last target; {advice}"
            )

    def times_predicted(self, windows: int) -> NDArray[np.int64]:
        """Return how many of the first windows have each token, up to their end, as a target; 0 for the first token.

        Args:
            windows: Number of windows to count, at least 1.
        """
        starts = np.concatenate([np.arange(one.start, one.stop, one.step) for one in self._starts])[:windows]
        changes = np.zeros(starts[-1] + self.context_length + 2, np.int64)
        np.add.at(changes, starts + 1, 1)
        np.add.at(changes, starts + self.context_length + 1, -1)
        return np.cumsum(changes[:-1])

    @property
    def unused_tokens(self) -> int:
        """Number of trailing tokens that are not a target of any window, in all shards together."""
        both = zip(self._pieces, self._starts, strict=True)
        return sum(
            piece.stop - 1 - (starts[-1] + self.context_length if starts else piece.start) for piece, starts in both
        )


class ResumableSampler(Sampler[int]):
    """Shuffle the training windows in an order that depends only on the seed and the epoch.

    Shards come one after another, in an order of their own, and the windows of each are shuffled. Each rank gets its
    share of every global batch. Windows that do not fill a global batch are dropped from the epoch.

    Args:
        windows: The training windows.
        global_batch: Windows of a global batch, a multiple of world_size.
        seed: Seed of the run.
        epoch: First epoch to iterate over; Lightning calls `set_epoch` before later ones.
        skip: Windows to skip in the first epoch, because they were already trained on.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        windows: Windows,
        global_batch: int,
        seed: int,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.windows = windows
        self.global_batch = global_batch
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._skip = skip

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.windows) // self.global_batch * self.global_batch // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups = self.windows.groups
        order = torch.randperm(len(groups), generator=generator).tolist() if len(groups) > 1 else [0]
        firsts = list(accumulate(groups, initial=0))
        skipped, self._skip = self._skip, 0
        used, begin = len(self) * self.world_size, 0  # windows of the epoch, and of the shards before this one
        for group, following in zip_longest(order, order[1:]):
            shuffled = firsts[group] + torch.randperm(groups[group], generator=generator)
            first = max(skipped, begin)
            chosen = shuffled[first - begin : max(used - begin, 0)]
            chosen = chosen[(self.rank - first) % self.world_size :: self.world_size]
            begin += groups[group]
            if len(chosen) and following is not None:
                self.windows.fetch_ahead([group, following])
            yield from chosen.tolist()
