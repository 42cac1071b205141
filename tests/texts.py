"""Helpers for tests of the data: files, documents, tokenizers."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from unittest import mock

import tiktoken
from tiktoken_ext import openai_public

from gpt_lightning.data.tokenizer import ByteTokenizer, TiktokenTokenizer, Tokenizer, load_tokenizer

STORIES = ["The lamp burned low.\n\n\n It's 12 o'clock", "Zwölf Uhr … 日本語\r\nund so weiter.", "end"]


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, creating its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def to_lines(texts: list[str]) -> str:
    """Return texts as JSON lines."""
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, or an empty list if it does not exist."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def make_tokenizers() -> list[Tokenizer]:
    """Return bytes, gpt2, and tokenizers with the patterns of newer encodings.

    Their vocabularies are not available offline. GPT-2's merges and all pairs of ASCII characters replace them, so that
    two characters stay apart only if the pattern separates them.
    """
    gpt2 = load_tokenizer("gpt2")
    assert isinstance(gpt2, TiktokenTokenizer)
    ranks = dict(gpt2._encoding._mergeable_ranks)
    for first, second in product(range(128), repeat=2):
        ranks.setdefault(bytes([first, second]), len(ranks))
    tokenizers: list[Tokenizer] = [ByteTokenizer(), gpt2]
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=ranks):
        for made in (openai_public.cl100k_base(), openai_public.o200k_base()):
            tokenizers.append(TiktokenTokenizer(made["name"], tiktoken.Encoding(**made)))
    return tokenizers
