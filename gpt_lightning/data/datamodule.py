"""From text to batches: the LightningDataModule."""

from __future__ import annotations

import dataclasses
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from gpt_lightning.console import warn
from gpt_lightning.data.corpus import Corpus, is_corpus, split_documents, split_text
from gpt_lightning.data.sources import find_text, parse_url, read_source, short_name
from gpt_lightning.data.text import CLEANERS, Text
from gpt_lightning.data.token_cache import prepare
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.data.windows import Batch, TokenIds, TrainOrder, Windows
from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer, require_number

MAX_WORKERS = 16
LARGE_BYTES = 64_000_000  # of a file that is encoded piece by piece instead of read whole


@dataclass(frozen=True)
class Split:
    """One part of the text, as characters, tokens and windows."""

    characters: int
    tokens: int
    windows: Windows


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers leave Ctrl-C and SIGTERM to the process that they serve.

    A signal to the whole process group would else take the batches of the step that is to be finished. The
    workers are started with the signals blocked, and stay so.
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
        text: Training text: a UTF-8 file; many documents in a folder, a glob (quoted) or a .jsonl file; or
            hf:DATASET/CONFIG/SPLIT.
        val_text: Validation text, likewise; null splits `text` by train_ratio.
        test_text: Text of the `test` command, likewise.
        url: http(s) URL of `text`, downloaded once if the file is missing; its checksum may follow as
            #sha256=HEX.
        fallback_text: File to train on, with a warning, if `text` is found nowhere.
        tokenizer: gpt2, bytes, or another encoding of tiktoken.
        context_length: Tokens per window; linked to model.context_length.
        cache_dir: Folder that keeps the tokens of documents and of large files, so that they are encoded
            once.
        train_ratio: Share of the characters that is trained on; several documents are split between two
            of them, a file above 64 MB between two tokens.
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
        self.whole_text = False  # validate: all of `text` is the validation text
        self.is_compared = False  # whether another text than the checkpoint's is refused once it is read
        self.source: Text | Corpus | None = None
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
            self.source = self._read("test_text")
            self._add("test", self.source)
            return
        self.source = self._find_source()
        if stage == "validate" and self.whole_text:
            self._add("validation", self.source)
            return
        if self.hparams["val_text"] is not None:
            val = self._read("val_text")
            self.val_sha256 = val.sha256
            if val.sha256 == self.source.sha256:
                warn("data.val_text is the text that is trained on, so that its loss says nothing of other texts")
            self._add("training", self.source)
            self._add("validation", val)
        elif isinstance(self.source, Corpus):
            for split, part in zip(("training", "validation"), self._cut(self.source), strict=True):
                self._add(split, self.source, part)
        else:
            parts = split_text(self.source.content, self.hparams["train_ratio"])
            for split, content in zip(("training", "validation"), parts, strict=True):
                self._add(split, dataclasses.replace(self.source, content=content))
        self.total_tokens = len(self._encode(self.source))  # a token may lie across the cut
        windows = len(self.splits["training"].windows)
        if stage == "fit" and windows < self.hparams["batch_size"]:
            raise InputError(f"data.batch_size ({self.hparams['batch_size']}) exceeds the {windows} training windows")

    def _read(self, name: str) -> Text | Corpus:
        """A text that a setting names, read whole, or encoded into the cache where that may be too much."""
        path = self.hparams[name]
        if is_corpus(path) or (os.path.isfile(path) and os.path.getsize(path) > LARGE_BYTES):
            return prepare(path, self.tokenizer.name, self.hparams["clean"], Path(self.hparams["cache_dir"]))
        return read_source(path, setting=f"data.{name}", clean=self.hparams["clean"])

    def _cut(self, corpus: Corpus) -> tuple[slice, slice]:
        if is_corpus(str(corpus.path)):
            return split_documents(corpus, self.hparams["train_ratio"])
        cut = int(self.hparams["train_ratio"] * len(corpus.tokens))
        return slice(0, cut), slice(cut, len(corpus.tokens))

    def _encode(self, source: Text | Corpus) -> TokenIds:
        if isinstance(source, Corpus):
            return source.tokens
        return torch.tensor(self.tokenizer.encode(source.content), dtype=torch.int64)

    def _find_source(self) -> Text | Corpus:
        path = self.hparams["text"]
        if not path:
            raise InputError("data.text is missing: give a text file, or a config that names one")
        if is_corpus(path) or (os.path.isfile(path) and os.path.getsize(path) > LARGE_BYTES):
            corpus = self._read("text")
            self.hparams.update(text=str(corpus.path), url=None, fallback_text=None)
            return corpus
        source = find_text(
            path,
            url=self.hparams["url"],
            fallback=self.hparams["fallback_text"],
            clean=self.hparams["clean"],
            warns=not self.is_compared,
        )
        # What a checkpoint says of its text: the one that was found, and nothing to take in its place.
        if source.path.name != os.path.basename(path):
            self.hparams["url"] = None
        self.hparams.update(text=str(source.path), fallback_text=None)
        return source

    def _add(self, split: str, source: Text | Corpus, part: slice | None = None) -> None:
        """Makes windows of a text, or of a part of the tokens of documents."""
        token_ids = self._encode(source)
        characters = source.characters
        if part is not None:
            characters = round(characters * (part.stop - part.start) / len(token_ids))
            token_ids = token_ids[part]
        context_length = self.hparams["context_length"]
        windows = Windows(token_ids, context_length, self.stride)
        if not windows:
            name, longest = f"{split} split", max(len(token_ids) - 1, 1)
            advice = (
                f"lower model.context_length to at most {longest}, change data.train_ratio "
                f"({self.hparams['train_ratio']}), or give a longer text"
            )
            if split == "test" or self.whole_text:
                name, advice = "text", "give a longer one"
            raise InputError(
                f"{short_name(source.path)}: the {name} ({len(token_ids)} tokens) is shorter than one window "
                f"({context_length + 1} tokens); {advice}"
            )
        self.splits[split] = Split(characters, len(token_ids), windows)

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
