"""An encoded text and how it is split into a training and a validation part."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.errors import InputError
from gpt_lightning.validation import require_number


def split_text(text: str, train_ratio: float) -> tuple[str, str]:
    """Training and validation part, cut at character int(train_ratio * len(text)).

    Raises:
        InputError: train_ratio is not between 0 and 1.
    """
    require_number("data.train_ratio", train_ratio, "be between 0 and 1", lambda ratio: 0 < ratio < 1)
    cut = int(train_ratio * len(text))
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus.

    Attributes:
        tokens: (N,) uint16 or uint32, on disk, read-only.
        ends: (documents,) int64, the token offset after each document's `<|endoftext|>`.
        characters: Of all documents, cleaned.
        character_ends: (documents,) int64, characters up to the end of each document.
        sha256: Of the tokenizer, the cleaning and the files: the key of the cache.
        files: Number of files.
        documents: Number of documents that are not blank.
        path: The folder, glob or file that was prepared, absolute.
    """

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    characters: int
    character_ends: NDArray[np.int64]
    sha256: str
    files: int
    documents: int
    path: Path = Path()


def split_documents(corpus: Corpus, train_ratio: float) -> tuple[slice, slice]:
    """Training and validation part of the tokens, cut where a document ends.

    Of all such places it is the one nearest to `train_ratio` of the characters.

    Raises:
        InputError: train_ratio is not between 0 and 1, or there is only one document.
    """
    require_number("data.train_ratio", train_ratio, "be between 0 and 1", lambda ratio: 0 < ratio < 1)
    if corpus.documents < 2:
        raise InputError("data.text holds only 1 document, which cannot be split between documents; give data.val_text")
    nearest = np.argmin(np.abs(corpus.character_ends[:-1] - train_ratio * corpus.characters))
    cut = int(corpus.ends[nearest])
    return slice(0, cut), slice(cut, len(corpus.tokens))


def is_corpus(source: str) -> bool:
    """Whether a source is a folder, a glob or a .jsonl file, rather than one plain text."""
    if os.path.isfile(source):
        return source.endswith(".jsonl")
    return os.path.isdir(source) or glob.has_magic(source) or source.endswith(".jsonl")
