"""The LightningDataModule: from a text to batches of windows."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from gpt_lightning.console import warn
from gpt_lightning.data.corpus import CACHE_DIR, CACHE_GIGABYTES, Corpus, Part, open_corpus
from gpt_lightning.data.shards import ShardedTokens
from gpt_lightning.data.sources import absolute, parse_url
from gpt_lightning.data.text import CLEANERS
from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer
from gpt_lightning.data.windows import Batch, ResumableSampler, Windows
from gpt_lightning.errors import STOP_SIGNALS, InputError
from gpt_lightning.validation import require, require_integer, require_number

MAX_WORKERS = 16


@dataclass(frozen=True)
class Split:
    """The training, validation or test split.

    Attributes:
        characters: Number of characters.
        tokens: Number of tokens.
        windows: The tokens as windows.
    """

    characters: int
    tokens: int
    windows: Windows


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers block the signals that stop a run.

    A signal to the whole process group would otherwise stop the workers before the current optimizer step has its
    batches. Workers inherit the signal mask of the main process, which blocks them while it starts the workers.
    """

    def __iter__(self) -> Any:
        names = ("pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK")  # which Windows does not have
        set_mask, block, restore = (getattr(signal, name, None) for name in names)
        if set_mask is None:
            return super().__iter__()
        before = set_mask(block, (signal.SIGINT, *STOP_SIGNALS))
        try:
            return super().__iter__()
        finally:
            set_mask(restore, before)


class TextDataModule(LightningDataModule):
    """Load a text, split it, and serve training and validation windows.

    Args:
        text: Training text: file, folder, quoted glob, .jsonl, hf:DATASET or s3://SHARDS. A dataset's configuration and
            split follow it: hf:DATASET/CONFIG/SPLIT. Shards, which `prepare` writes, may also be in a folder or at gs://,
            az:// or https://.
        val_text: Validation text of the same kinds; null splits `text` by train_ratio.
        test_text: Text that the command `test` evaluates.
        url: http(s) URL of `text`, downloaded once if the file is missing. It may end with a checksum,
            #sha256=HEX.
        fallback_text: File to use, with a warning, if `text` cannot be found or downloaded.
        tokenizer: gpt2, bytes, or another encoding of tiktoken.
        context_length: Tokens per window; linked to model.context_length.
        cache_dir: Folder that caches the tokens of documents and large files, and shards of an object store.
        cache_gigabytes: Most space that shards take in cache_dir, in 10^9 bytes.
        train_ratio: Share of the characters to train on; the rest is the validation split. Collections of documents
            are split between two documents, shards between two shards, files above 64 MB between two tokens.
        stride: Tokens between the starts of windows; null: context_length.
        batch_size: Windows per batch and device.
        global_batch_size: Windows per optimizer step, summed over all devices. The gradients of several batches are
            accumulated to reach it. A run that sets it can be resumed on another number of devices. In `fit`,
            evaluate_batches and the limits on batches count batches of this size. null: batch_size, times devices,
            times trainer.accumulate_grad_batches.
        num_workers: Processes that prepare batches, 0..16; 0 prepares them in the main process.
        clean: How to clean the text: null (not at all) or remove_empty_lines.
        seed: Seed of the order of the windows; linked to seed_everything.
        evaluate_batches: Training batches, in text order, that each evaluation uses; linked to
            evaluate_batches.

    Attributes:
        source: The training or test text; None before `setup`.
        found_in: The folder of `text`, if it was not found at its own path.
        val_sha256: Checksum of `val_text`, or None if there is none.
        total_tokens: Number of tokens of `text`.
        splits: The splits by name: training and validation, or test.
        position: Current epoch, and the number of its windows that were already trained on.

    Raises:
        InputError: An argument is out of range; the message calls it `data.<name>`.
    """

    def __init__(
        self,
        text: str | None = None,
        val_text: str | None = None,
        test_text: str | None = None,
        url: str | None = None,
        fallback_text: str | None = None,
        tokenizer: str = "gpt2",
        cache_dir: str = CACHE_DIR,
        cache_gigabytes: float = CACHE_GIGABYTES,
        context_length: int = 256,
        train_ratio: float = 0.9,
        stride: int | None = None,
        batch_size: int = 2,
        global_batch_size: int | None = None,
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
        if global_batch_size is not None:
            require_integer("data.global_batch_size", global_batch_size, 1)
        require_number("data.cache_gigabytes", cache_gigabytes, "be above 0", lambda size: size > 0)
        require_integer("data.num_workers", num_workers, 0, MAX_WORKERS)
        require(clean is None or clean in CLEANERS, "data.clean", f"be null or {', '.join(CLEANERS)}", clean)
        require_integer("evaluate_batches", evaluate_batches, 1)
        if url is not None:
            parse_url(url)
        self.save_hyperparameters(logger=False)
        self.stride = stride or context_length
        self.source: Corpus | None = None
        self.found_in: Path | None = None
        self.val_sha256: str | None = None
        self.total_tokens = 0
        self.splits: dict[str, Split] = {}
        self.position = (0, 0)

    def setup(self, stage: str) -> None:
        """Find, encode and split the text, and divide it into windows. Later calls do nothing.

        Args:
            stage: "test" for `test_text`, otherwise `text` and `val_text`.

        Raises:
            InputError: A text is missing, invalid, or too short for one window.
            MachineError: A text cannot be read or downloaded.
        """
        if self.splits:
            return
        if stage == "test":
            if self.hparams["test_text"] is None:
                raise InputError("data.test_text is missing; name the text to evaluate")
            self.source = self._open("test_text")
            self._add_whole("test", self.source)
            return
        self.source = self._open_text()
        if self.hparams["val_text"] is None:
            other = self.source
            train, val = self.source.split(self.hparams["train_ratio"])
        else:
            other = self._open("val_text")
            self.val_sha256 = other.sha256
            if other.sha256 == self.source.sha256:
                warn("data.val_text is the training text, so val_loss says nothing about unseen text")
            train, val = self.source.whole(), other.whole()
        rest = f"change data.train_ratio ({self.hparams['train_ratio']}), or use a longer text"
        for split, corpus, part in (("training", self.source, train), ("validation", other, val)):
            longest = max(len(part.token_ids) - 1, 1)
            advice = f"lower model.context_length to at most {longest}, {rest}"
            self._add(split, part, f"{corpus.name}: the {split} split", advice)
        self.total_tokens = len(self.source.token_ids)
        windows = len(self.splits["training"].windows)
        for name in ("batch_size", "global_batch_size"):
            if stage == "fit" and windows < (self.hparams[name] or 0):
                raise InputError(f"data.{name} ({self.hparams[name]}) exceeds the {windows} training windows")

    def setup_whole_text(self) -> None:
        """Use all of `text` as the validation split; called instead of `setup`."""
        self.source = self._open_text()
        self._add_whole("validation", self.source)

    def _open_text(self) -> Corpus:
        """Open `text`, and set `hparams`, which checkpoints store, to the text that was found."""
        if not self.hparams["text"]:
            raise InputError("data.text is missing; name a text file, or use a config that names one")
        corpus = self._open("text", self.hparams["url"], self.hparams["fallback_text"])
        if absolute(str(corpus.path)) != absolute(self.hparams["text"]):
            self.found_in = Path(corpus.path).parent
        self.hparams.update(text=str(corpus.path), url=corpus.url, fallback_text=None)
        return corpus

    def _open(self, name: str, url: str | None = None, fallback: str | None = None) -> Corpus:
        return open_corpus(
            self.hparams[name],
            self.tokenizer,
            clean=self.hparams["clean"],
            cache_dir=Path(self.hparams["cache_dir"]),
            cache_gigabytes=self.hparams["cache_gigabytes"],
            setting=f"data.{name}",
            url=url,
            fallback=fallback,
        )

    def _add_whole(self, split: str, corpus: Corpus) -> None:
        self._add(split, corpus.whole(), f"{corpus.name}: the text")

    def _add(self, split: str, part: Part, name: str, advice: str = "use a longer text") -> None:
        """Add a split and its windows; `name` and `advice` are for the error if it is shorter than one window."""
        windows = Windows(part.token_ids, self.hparams["context_length"], self.stride)
        windows.require_one(name, advice)
        self.splits[split] = Split(part.characters, len(part.token_ids), windows)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded on first use."""
        return load_tokenizer(self.hparams["tokenizer"])

    def count_train_batches(self, world_size: int = 1) -> int:
        """Return the number of training batches per epoch and rank."""
        windows = len(self.splits["training"].windows)
        per_batch = int(self.hparams["batch_size"]) * world_size
        global_batch = self.hparams["global_batch_size"] or per_batch
        return windows // global_batch * (global_batch // per_batch)

    def count_val_batches(self, world_size: int = 1) -> int:
        """Return the number of validation batches per rank."""
        windows = math.ceil(len(self.splits["validation"].windows) / world_size)
        return math.ceil(windows / int(self.hparams["batch_size"]))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.splits["training"].windows, self._sampler())

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader of the validation windows and, in `fit`, one of the first training windows in text order."""
        loaders = [self._ordered_loader(self.splits["validation"].windows)]
        if self.trainer is not None and self.trainer.state.fn == "fit":
            windows = self.splits["training"].windows
            first = self.hparams["evaluate_batches"] * (self.hparams["global_batch_size"] or self.hparams["batch_size"])
            loaders.append(self._ordered_loader(Subset(windows, range(min(first, len(windows))))))
        return loaders

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._ordered_loader(self.splits["test"].windows)

    def _sampler(self) -> ResumableSampler:
        epoch, windows = self.position
        return ResumableSampler(
            self.splits["training"].windows,
            self.hparams["global_batch_size"] or self.windows_per_batch,
            self.hparams["seed"],
            epoch,
            windows,
            *self._rank_and_world_size(),
        )

    def _ordered_loader(self, windows: Windows | Subset[Batch]) -> DataLoader[Batch]:
        """Return a loader of this rank's share of the windows, in order.

        All ranks have the same number of windows, because all must compute the same number of batches if the weights
        are split among them. Ranks with a smaller share repeat the last window, which `count_new` leaves out.
        """
        rank, world_size = self._rank_and_world_size()
        share, last = math.ceil(len(windows) / world_size), len(windows) - 1
        return self._loader(windows, [min(rank + i * world_size, last) for i in range(share)])

    def count_new(self, loader: DataLoader[Batch], batch: int) -> int:
        """Return how many windows at the start of a batch of an evaluation are not repetitions.

        Args:
            loader: One of the evaluation loaders.
            batch: Index of the batch on this rank.
        """
        rank, world_size = self._rank_and_world_size()
        assert isinstance(loader.dataset, (Windows, Subset))
        share, size = len(range(rank, len(loader.dataset), world_size)), int(self.hparams["batch_size"])
        return len(range(share)[batch * size : (batch + 1) * size])

    @property
    def windows_per_batch(self) -> int:
        """Number of windows of a batch on all ranks together."""
        return int(self.hparams["batch_size"]) * self._rank_and_world_size()[1]

    @property
    def _has_shards(self) -> bool:
        return any(isinstance(split.windows.token_ids, ShardedTokens) for split in self.splits.values())

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, windows: Dataset[Batch], order: ResumableSampler | list[int]) -> DataLoader[Batch]:
        workers = self.hparams["num_workers"]
        return Loader(
            windows,
            batch_size=self.hparams["batch_size"],
            sampler=order,
            num_workers=workers,
            # Threads of obstore do not survive a fork.
            multiprocessing_context="spawn" if workers and self._has_shards else None,
            pin_memory=torch.cuda.is_available(),  # allows copies to the GPU while it computes
            # Each iter() draws a seed for the workers, by default from the global random state.
            generator=torch.Generator().manual_seed(self.hparams["seed"]),
        )

    def record_batch(self, epoch: int, batches: int, *, epoch_ended: bool) -> None:
        """Record the position in the training data, which checkpoints store.

        Args:
            epoch: The current epoch, counted from 0.
            batches: Number of its batches that were trained on.
            epoch_ended: Whether the epoch is complete.
        """
        self.position = (epoch + 1, 0) if epoch_ended else (epoch, batches * self.windows_per_batch)

    def state_dict(self) -> dict[str, Any]:
        epoch, windows = self.position
        return {"epoch": epoch, "windows": windows, "windows_per_batch": self.windows_per_batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = (state_dict["epoch"], state_dict["windows"])
