"""Texts and document collections as token ids, split into a training and a validation part."""

from __future__ import annotations

import glob
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.data.documents import SUFFIXES
from gpt_lightning.data.object_store import is_address
from gpt_lightning.data.shards import INDEX, ShardCache, ShardedTokens, open_shards
from gpt_lightning.data.sources import find_source, read_source, short_name
from gpt_lightning.data.text import Text
from gpt_lightning.data.token_cache import EncodedDocuments, prepare
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.validation import require_number

CACHE_DIR = "data/cache"  # default of data.cache_dir
CACHE_GIGABYTES = 10.0  # default of data.cache_gigabytes
LARGE_BYTES = 64_000_000  # larger files are encoded piece by piece into the token cache


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a corpus.

    Attributes:
        characters: Number of characters.
        token_ids: (N,) of any integer type, in memory, memory-mapped, or shards.
    """

    characters: int
    token_ids: NDArray[Any] | ShardedTokens

    @property
    def array(self) -> NDArray[Any]:
        """The token ids, which must not be shards."""
        assert not isinstance(self.token_ids, ShardedTokens)
        return self.token_ids


class Corpus(ABC):
    """A text as token ids.

    Attributes:
        path: Absolute path of the file, folder or glob; or hf:DATASET/CONFIG/SPLIT, or an address.
        url: URL to download the text from, or None.
        sha256: Checksum of the file's bytes or, for documents and large files, of everything their tokens depend on.
        characters: Number of characters after cleaning.
        contents: Number of documents and files in words, for the summary of a run; empty for a single text.
    """

    path: Path | str
    url: str | None
    sha256: str
    characters: int
    contents: str = ""

    @property
    def name(self) -> str:
        """The name used in messages, see `short_name`."""
        return short_name(self.path)

    @property
    @abstractmethod
    def token_ids(self) -> NDArray[Any] | ShardedTokens:
        """Token ids (N,) of the whole text; one token may span the boundary that `split` uses."""

    @abstractmethod
    def split(self, train_ratio: float) -> tuple[Part, Part]:
        """Return the training and the validation part.

        Args:
            train_ratio: Share of the characters in the training part, between 0 and 1.

        Raises:
            InputError: The corpus cannot be split.
        """

    def whole(self) -> Part:
        """Return the whole corpus as one part."""
        return Part(self.characters, self.token_ids)


class TextCorpus(Corpus):
    """One text in memory. It is split between two characters, and each part is encoded separately."""

    def __init__(self, text: Text, url: str | None, tokenizer: Tokenizer) -> None:
        self.path, self.url, self.sha256 = text.path, url, text.sha256
        self.characters = len(text.content)
        self._content = text.content
        self._tokenizer = tokenizer

    @cached_property
    def token_ids(self) -> NDArray[Any]:
        return self._encode(self._content).array

    def split(self, train_ratio: float) -> tuple[Part, Part]:
        train, val = split_text(self._content, train_ratio)
        return self._encode(train), self._encode(val)

    def _encode(self, content: str) -> Part:
        return Part(len(content), np.array(self._tokenizer.encode(content), np.int64))


class LargeTextCorpus(Corpus):
    """One large file, encoded on disk. It is split between two tokens."""

    def __init__(self, path: Path, url: str | None, encoded: EncodedDocuments) -> None:
        self.path, self.url, self.sha256 = path, url, encoded.sha256
        self.characters = encoded.characters
        self._encoded = encoded

    @property
    def token_ids(self) -> NDArray[Any]:
        return self._encoded.tokens

    def split(self, train_ratio: float) -> tuple[Part, Part]:
        cut = int(train_ratio * len(self.token_ids))
        return self._cut(cut, round(self.characters * cut / len(self.token_ids)))

    def _cut(self, tokens: int, characters: int) -> tuple[Part, Part]:
        return (
            Part(characters, self.token_ids[:tokens]),
            Part(self.characters - characters, self.token_ids[tokens:]),
        )


class DocumentsCorpus(LargeTextCorpus):
    """Many documents, encoded on disk. They are split between two documents."""

    def __init__(self, path: Path, url: str | None, encoded: EncodedDocuments) -> None:
        super().__init__(path, url, encoded)
        self.contents = f"{encoded.documents:,} documents of {encoded.files:,} files"

    def split(self, train_ratio: float) -> tuple[Part, Part]:
        if self._encoded.documents < 2:
            raise InputError("data.text has only 1 document, but is split between documents; set data.val_text")
        ends = self._encoded.character_ends[:-1]
        nearest = np.argmin(np.abs(ends - train_ratio * self.characters))
        return self._cut(int(self._encoded.ends[nearest]), int(ends[nearest]))


class ShardsCorpus(Corpus):
    """A corpus in an object store. It is split between two shards."""

    def __init__(self, path: Path | str, cache: ShardCache) -> None:
        index = cache.index
        self.path, self.url, self.sha256 = path, None, index.sha256
        self.characters = sum(one.characters for one in index.shards)
        self.contents = f"{index.documents:,} documents of {index.files:,} files in {len(index.shards)} shards"
        self._cache = cache

    @property
    def token_ids(self) -> ShardedTokens:
        return ShardedTokens(self._cache, range(len(self._cache.index.shards)))

    def split(self, train_ratio: float) -> tuple[Part, Part]:
        shards = self._cache.index.shards
        if len(shards) < 2:
            raise InputError(f"{self.path}: has only 1 shard, but is split between shards; set data.val_text")
        ends = np.cumsum([one.tokens for one in shards])[:-1]
        cut = 1 + int(np.argmin(np.abs(ends - train_ratio * len(self.token_ids))))
        return self._part(range(cut)), self._part(range(cut, len(shards)))

    def _part(self, numbers: range) -> Part:
        return Part(sum(self._cache.index.shards[i].characters for i in numbers), ShardedTokens(self._cache, numbers))


def open_corpus(
    source: str,
    tokenizer: Tokenizer,
    *,
    clean: str | None,
    cache_dir: Path,
    cache_gigabytes: float = CACHE_GIGABYTES,
    setting: str = "data.text",
    url: str | None = None,
    fallback: str | None = None,
) -> Corpus:
    """Find and encode a text or a collection of documents.

    Args:
        source: A UTF-8 file; a folder, a glob or a .jsonl file of documents; hf:DATASET/CONFIG/SPLIT; or an address or
            a folder of shards.
        tokenizer: Tokenizer that encodes the text.
        clean: None or "remove_empty_lines".
        cache_dir: Folder for the encoded documents and large files, and for shards.
        cache_gigabytes: Most space for shards in it, in 10^9 bytes.
        setting: Name of the setting in error messages.
        url: URL to download a missing file from, see `find_source`.
        fallback: Source to use if this one cannot be found or downloaded.

    Raises:
        InputError: The source is missing or not a text.
        MachineError: The source cannot be read, downloaded or cached.
    """
    if not is_address(source) or source.endswith(SUFFIXES):  # the address of a text is refused
        source, url = find_source(source, url, fallback, setting=setting)
    if is_address(source) or os.path.isfile(os.path.join(source, INDEX)):
        cache = open_shards(
            source, tokenizer, clean=clean, cache_dir=cache_dir, cache_gigabytes=cache_gigabytes, setting=setting
        )
        return ShardsCorpus(source if is_address(source) else Path(source).absolute(), cache)
    if is_documents(source):
        return DocumentsCorpus(Path(source).absolute(), url, prepare(source, tokenizer.name, clean, cache_dir))
    if os.path.isfile(source) and os.path.getsize(source) > LARGE_BYTES:
        return LargeTextCorpus(Path(source).absolute(), url, prepare(source, tokenizer.name, clean, cache_dir))
    return TextCorpus(read_source(source, setting=setting, clean=clean), url, tokenizer)


def is_documents(source: str) -> bool:
    """Return whether a source is a folder, a glob or a .jsonl file rather than a single text file."""
    if os.path.isfile(source):
        return source.endswith(".jsonl")
    return os.path.isdir(source) or glob.has_magic(source) or source.endswith(".jsonl")


def split_text(text: str, train_ratio: float) -> tuple[str, str]:
    """Split a text at character int(train_ratio * len(text)).

    Raises:
        InputError: train_ratio is not between 0 and 1.
    """
    require_number("data.train_ratio", train_ratio, "be between 0 and 1", lambda ratio: 0 < ratio < 1)
    cut = int(train_ratio * len(text))
    return text[:cut], text[cut:]
