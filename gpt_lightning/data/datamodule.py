"""From text to batches: the LightningDataModule."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from gpt_lightning.console import warn
from gpt_lightning.data.corpus import Corpus, Part, open_corpus
from gpt_lightning.data.sources import parse_url
from gpt_lightning.data.text import CLEANERS
from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer
from gpt_lightning.data.windows import Batch, ResumableSampler, Windows
from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer, require_number

MAX_WORKERS = 16


@dataclass(frozen=True)
class Split:
    """One part of the text, as characters, tokens and windows."""

    characters: int
    tokens: int
    windows: Windows


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers leave Ctrl-C and SIGTERM to the main process.

    Otherwise a signal to the whole process group would end the workers before the current step has its
    batches. The workers are started with the signals blocked, and keep them so.
    """

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class TextDataModule(LightningDataModule):
    """A text as training and validation windows.

    Args:
        text: Text to train on: a file, folder, quoted glob, .jsonl or hf:DATASET. The dataset's configuration and split
            follow it: hf:DATASET/CONFIG/SPLIT.
        val_text: Validation text of the same kinds; null splits `text` by train_ratio.
        test_text: Text that the command `test` evaluates.
        url: http(s) URL of `text`, downloaded once if the file is missing. Its checksum may follow as
            #sha256=HEX.
        fallback_text: File to train on, with a warning, if `text` cannot be found or downloaded.
        tokenizer: gpt2, bytes, or another encoding of tiktoken.
        context_length: Tokens per window; linked to model.context_length.
        cache_dir: Folder for the tokens of documents and of large files, which are encoded once.
        train_ratio: Share of the characters to train on; the rest is the validation split. Documents are split where
            one ends, a file above 64 MB between two tokens.
        stride: Tokens between the starts of windows; null: context_length.
        batch_size: Windows per batch and device.
        num_workers: Processes that prepare batches, 0..16; 0 prepares them in the main process.
        clean: How to clean the text: null (not at all) or remove_empty_lines.
        seed: Of the order of the windows; linked to seed_everything.
        evaluate_batches: Training batches, in text order, whose loss is evaluated; linked to
            evaluate_batches.

    Raises:
        InputError: An argument is out of range, named as the setting `data.<name>`.
    """

    def __init__(
        self,
        text: str | None = None,
        val_text: str | None = None,
        test_text: str | None = None,
        url: str | None = None,
        fallback_text: str | None = None,
        tokenizer: str = "gpt2",
        cache_dir: str = "data/cache",
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
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may get no validation window
        require_integer("model.context_length", context_length, 1)
        require_number("data.train_ratio", train_ratio, "be between 0 and 1", lambda ratio: 0 < ratio < 1)
        if stride is not None:
            require_integer("data.stride", stride, 1)
        require_integer("data.batch_size", batch_size, 1)
        require_integer("data.num_workers", num_workers, 0, MAX_WORKERS)
        require(clean is None or clean in CLEANERS, "data.clean", f"be null or {', '.join(CLEANERS)}", clean)
        require_integer("evaluate_batches", evaluate_batches, 1)
        if url is not None:
            parse_url(url)
        self.save_hyperparameters(logger=False)
        self.stride = stride or context_length
        self.source: Corpus | None = None
        self.val_sha256: str | None = None  # of val_text
        self.total_tokens = 0
        self.splits: dict[str, Split] = {}
        self.position = (0, 0)  # epoch, batches of it that were trained on

    def setup(self, stage: str) -> None:
        """Find and encode the text, and cut it into windows; done once.

        Raises:
            InputError: A text is missing, not a text, or too short for one window.
            MachineError: A text cannot be read or downloaded.
        """
        if self.splits:
            return
        if stage == "test":
            if self.hparams["test_text"] is None:
                raise InputError("data.test_text is missing: which file is to be tested?")
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
                warn("data.val_text is the text that is trained on, so that its loss says nothing of other texts")
            train, val = self.source.whole(), other.whole()
        rest = f"change data.train_ratio ({self.hparams['train_ratio']}), or give a longer text"
        for split, corpus, part in (("training", self.source, train), ("validation", other, val)):
            longest = max(len(part.token_ids) - 1, 1)
            advice = f"lower model.context_length to at most {longest}, {rest}"
            self._add(split, part, f"{corpus.name}: the {split} split", advice)
        self.total_tokens = len(self.source.token_ids)
        windows = len(self.splits["training"].windows)
        if stage == "fit" and windows < self.hparams["batch_size"]:
            raise InputError(f"data.batch_size ({self.hparams['batch_size']}) exceeds the {windows} training windows")

    def setup_whole_text(self) -> None:
        """Make all of `text` the validation text, instead of `setup`."""
        self.source = self._open_text()
        self._add_whole("validation", self.source)

    def _open_text(self) -> Corpus:
        """Open `text`, and make the settings, which checkpoints keep, name the text that was found."""
        if not self.hparams["text"]:
            raise InputError("data.text is missing: give a text file, or a config that names one")
        corpus = self._open("text", self.hparams["url"], self.hparams["fallback_text"])
        self.hparams.update(text=str(corpus.path), url=corpus.url, fallback_text=None)
        return corpus

    def _open(self, name: str, url: str | None = None, fallback: str | None = None) -> Corpus:
        return open_corpus(
            self.hparams[name],
            self.tokenizer,
            clean=self.hparams["clean"],
            cache_dir=Path(self.hparams["cache_dir"]),
            setting=f"data.{name}",
            url=url,
            fallback=fallback,
        )

    def _add_whole(self, split: str, corpus: Corpus) -> None:
        self._add(split, corpus.whole(), f"{corpus.name}: the text", "give a longer one")

    def _add(self, split: str, part: Part, name: str, advice: str) -> None:
        """Cut a part into windows; if there is not one, the error calls the part `name`."""
        context_length = self.hparams["context_length"]
        windows = Windows(part.token_ids, context_length, self.stride)
        if not windows:
            raise InputError(
                f"{name} ({len(part.token_ids)} tokens) is shorter than one window "
                f"({context_length + 1} tokens); {advice}"
            )
        self.splits[split] = Split(part.characters, len(part.token_ids), windows)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Between text and token ids; loaded at its first use."""
        return load_tokenizer(self.hparams["tokenizer"])

    def count_train_batches(self, world_size: int = 1) -> int:
        """Return the batches per epoch on each rank."""
        return len(self.splits["training"].windows) // (int(self.hparams["batch_size"]) * world_size)

    @property
    def val_batches(self) -> int:
        """Number of batches of the validation windows, over all ranks."""
        return -(-len(self.splits["validation"].windows) // int(self.hparams["batch_size"]))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.splits["training"].windows, self._sampler())

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Load the validation windows and, inside `fit`, the first training windows in text order."""
        loaders = [self._ordered_loader(self.splits["validation"].windows)]
        if self.trainer is not None and self.trainer.state.fn == "fit":
            windows = self.splits["training"].windows
            first = self.hparams["evaluate_batches"] * self.hparams["batch_size"]
            loaders.append(self._ordered_loader(Subset(windows, range(min(first, len(windows))))))
        return loaders

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._ordered_loader(self.splits["test"].windows)

    def _sampler(self) -> ResumableSampler:
        epoch, batches = self.position
        return ResumableSampler(
            len(self.splits["training"].windows),
            self.hparams["batch_size"],
            self.hparams["seed"],
            epoch,
            batches,
            *self._rank_and_world_size(),
        )

    def _ordered_loader(self, windows: Windows | Subset[Batch]) -> DataLoader[Batch]:
        """Load every window once, in order, none repeated to even out the ranks."""
        rank, world_size = self._rank_and_world_size()
        return self._loader(windows, range(rank, len(windows), world_size))

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, windows: Dataset[Batch], order: ResumableSampler | range) -> DataLoader[Batch]:
        return Loader(
            windows,
            batch_size=self.hparams["batch_size"],
            sampler=order,
            num_workers=self.hparams["num_workers"],
            pin_memory=torch.cuda.is_available(),  # copied while the device computes
            # Each iter() of a loader draws a seed for its workers: from here, not from the global state.
            generator=torch.Generator().manual_seed(self.hparams["seed"]),
        )

    def record_batch(self, epoch: int, batches: int, *, epoch_ended: bool) -> None:
        """Record how far the run is, for the checkpoint.

        Args:
            epoch: The current epoch, counted from 0.
            batches: Batches of it that were trained on.
            epoch_ended: Whether these are all.
        """
        self.position = (epoch + 1, 0) if epoch_ended else (epoch, batches)

    def state_dict(self) -> dict[str, Any]:
        epoch, batches = self.position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = (state_dict["epoch"], state_dict["batches"])
