"""From text to batches: windows, their resumable order and the LightningDataModule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from gpt_lightning.errors import InputError, require, require_integer, require_number
from gpt_lightning.text import CLEANERS, Text, find_text, read_text, split_text
from gpt_lightning.tokenizer import load_tokenizer

MAX_WORKERS = 16

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), int64


def windows_in_batch(batch: Batch) -> int:
    """B; for Lightning's ThroughputMonitor, which asks for a function."""
    return batch[0].shape[0]


def tokens_in_batch(batch: Batch) -> int:
    """B * T; likewise."""
    return batch[0].numel()


class Windows(Dataset[Batch]):
    """Pieces of `context_length` tokens and, as targets, the same moved on by one token.

    Only whole windows: they start at range(0, tokens - context_length, stride), as in the book.

    Args:
        token_ids: (N,) int64.
        context_length: T.
        stride: Tokens from one window's start to the next; equal to T, no token is predicted twice.
    """

    def __init__(self, token_ids: Tensor, context_length: int, stride: int) -> None:
        self.token_ids = token_ids
        self.context_length = context_length
        self.starts = range(0, len(token_ids) - context_length, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        start = self.starts[index]
        end = start + self.context_length
        return self.token_ids[start:end], self.token_ids[start + 1 : end + 1]

    @property
    def tail(self) -> int:
        """Tokens at the end that no window predicts."""
        predicted = self.starts[-1] + self.context_length if self.starts else 0
        return len(self.token_ids) - 1 - predicted


@dataclass(frozen=True)
class Split:
    """One part of the text, as characters, tokens and windows."""

    characters: int
    tokens: int
    windows: Windows


class TrainOrder(Sampler[int]):
    """The shuffled order of the training windows, a function of (seed, epoch) alone.

    Every rank sees its own share of each global batch; windows that do not fill a batch on every rank
    are left out of that epoch.

    Args:
        windows: Number of windows.
        batch_size: Windows per rank and batch.
        seed: Of the run.
        epoch: The first epoch to iterate; Lightning calls `set_epoch` before each later one.
        skip_batches: Batches of that first epoch that were already trained on.
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


class TextDataModule(LightningDataModule):
    """A text as training and validation windows.

    Args:
        text: Training text, a UTF-8 file.
        val_text: Validation text; null splits `text` by train_ratio.
        test_text: Text of the `test` command.
        address: http(s) address of `text`, fetched once where the file is missing.
        sha256: Checksum of the file of `text`.
        fallback_text: File to train on, with a warning, where `text` cannot be had.
        tokenizer: gpt2, bytes, or another encoding of tiktoken.
        context_length: Tokens per window; linked to model.context_length.
        train_ratio: Share of the characters that is trained on.
        stride: Tokens between the starts of windows; null means context_length.
        batch_size: Windows per batch and device.
        num_workers: Processes that prepare batches, 0..16; 0 prepares them in the main process.
        clean: null, or remove_empty_lines.
        seed: Of the order of the windows; linked to seed_everything.
        evaluate_batches: Training batches, in text order, whose loss is evaluated; linked to
            evaluate_batches.

    Raises:
        InputError: An argument is out of range, named as the setting `data.<name>`.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a rank may get no validation window

    def __init__(
        self,
        text: str | None = None,
        val_text: str | None = None,
        test_text: str | None = None,
        address: str | None = None,
        sha256: str | None = None,
        fallback_text: str | None = None,
        tokenizer: str = "gpt2",
        context_length: int = 256,
        train_ratio: float = 0.9,
        stride: int | None = None,
        batch_size: int = 2,
        num_workers: int = 0,
        clean: str | None = None,
        seed: int = 123,
        evaluate_batches: int = 5,
    ) -> None:
        super().__init__()
        require_integer("model.context_length", context_length, 1)
        require_number("data.train_ratio", train_ratio, "be between 0 and 1", lambda ratio: 0 < ratio < 1)
        if stride is not None:
            require_integer("data.stride", stride, 1)
        require_integer("data.batch_size", batch_size, 1)
        require_integer("data.num_workers", num_workers, 0, MAX_WORKERS)
        require(clean is None or clean in CLEANERS, "data.clean", f"be null or {', '.join(CLEANERS)}", clean)
        require_integer("evaluate_batches", evaluate_batches, 1)
        self.save_hyperparameters(logger=False)
        self.stride = stride or context_length
        self.whole_text = False  # validate: all of `text` is the validation text
        self.source: Text | None = None
        self.val_sha256: str | None = None  # of val_text
        self.total_tokens = 0
        self.splits: dict[str, Split] = {}
        self.position = (0, 0)  # epoch, batches of it that were trained on

    def setup(self, stage: str) -> None:
        """Finds, reads and encodes the text; done once.

        Raises:
            InputError: A text is missing, unfit, or too short for one window.
            MachineError: A text cannot be read or fetched.
        """
        if self.splits:
            return
        self.tokenizer = load_tokenizer(self.hparams["tokenizer"])
        if stage == "test":
            if self.hparams["test_text"] is None:
                raise InputError("data.test_text is missing: which file is to be tested?")
            test = read_text(self.hparams["test_text"], setting="data.test_text", clean=self.hparams["clean"])
            self.source = test
            self._add("test", test.content, str(test.path))
            return
        self.source = self._find_source()
        content, name = self.source.content, self.source.path.name
        if stage == "validate" and self.whole_text:
            self._add("validation", content, name)
            return
        if self.hparams["val_text"] is not None:
            val = read_text(self.hparams["val_text"], setting="data.val_text", clean=self.hparams["clean"])
            self.val_sha256 = val.sha256
            self._add("training", content, name)
            self._add("validation", val.content, val.path.name)
            self.total_tokens = self.splits["training"].tokens
        else:
            train_part, val_part = split_text(content, self.hparams["train_ratio"])
            self._add("training", train_part, name)
            self._add("validation", val_part, name)
            self.total_tokens = len(self.tokenizer.encode(content))  # a token may lie across the cut
        windows = len(self.splits["training"].windows)
        if stage == "fit" and windows < self.hparams["batch_size"]:
            raise InputError(f"data.batch_size ({self.hparams['batch_size']}) exceeds the {windows} training windows")

    def _find_source(self) -> Text:
        if not self.hparams["text"]:
            raise InputError("data.text is missing: give a text file, or a config that names one")
        source = find_text(
            self.hparams["text"],
            address=self.hparams["address"],
            sha256=self.hparams["sha256"],
            fallback=self.hparams["fallback_text"],
            clean=self.hparams["clean"],
        )
        # What a checkpoint says of its text: the one that was found, and nothing to take in its place.
        if source.path.name != os.path.basename(self.hparams["text"]):
            self.hparams["address"] = None
        self.hparams.update(text=str(source.path), sha256=source.sha256, fallback_text=None)
        return source

    def _add(self, split: str, content: str, name: str) -> None:
        token_ids = torch.tensor(self.tokenizer.encode(content), dtype=torch.int64)
        context_length = self.hparams["context_length"]
        windows = Windows(token_ids, context_length, self.stride)
        if not windows:
            raise InputError(
                f"{name}: the {split} split ({len(token_ids)} tokens) is shorter than one window "
                f"({context_length + 1} tokens); lower model.context_length to at most {max(len(token_ids) - 1, 1)}, "
                f"change data.train_ratio ({self.hparams['train_ratio']}), or give a longer text"
            )
        self.splits[split] = Split(len(content), len(token_ids), windows)

    @property
    def train_batches(self) -> int:
        """Batches per epoch on each rank."""
        return len(self._train_order()) // int(self.hparams["batch_size"])

    @property
    def val_batches(self) -> int:
        """Batches of the validation windows, over all ranks."""
        return -(-len(self.splits["validation"].windows) // int(self.hparams["batch_size"]))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.splits["training"].windows, self._train_order())

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Validation windows and, inside `fit`, the first training windows in text order."""
        loaders = [self._ordered_loader(self.splits["validation"].windows)]
        if self.trainer is not None and self.trainer.state.fn == "fit":
            windows = self.splits["training"].windows
            first = self.hparams["evaluate_batches"] * self.hparams["batch_size"]
            loaders.append(self._ordered_loader(Subset(windows, range(min(first, len(windows))))))
        return loaders

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._ordered_loader(self.splits["test"].windows)

    def _train_order(self) -> TrainOrder:
        epoch, batches = self.position
        return TrainOrder(
            len(self.splits["training"].windows),
            self.hparams["batch_size"],
            self.hparams["seed"],
            epoch,
            batches,
            *self._rank_and_world_size(),
        )

    def _ordered_loader(self, windows: Windows | Subset[Batch]) -> DataLoader[Batch]:
        """Every window once, in order, none repeated to even out the ranks."""
        rank, world_size = self._rank_and_world_size()
        return self._loader(windows, range(rank, len(windows), world_size))

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, windows: Dataset[Batch], order: TrainOrder | range) -> DataLoader[Batch]:
        return DataLoader(
            windows,
            batch_size=self.hparams["batch_size"],
            sampler=order,
            num_workers=self.hparams["num_workers"],
            # Each iter() of a loader draws a seed for its workers: from here, not from the global state.
            generator=torch.Generator().manual_seed(self.hparams["seed"]),
        )

    def state_dict(self) -> dict[str, Any]:
        epoch, batches = self.position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = (state_dict["epoch"], state_dict["batches"])
