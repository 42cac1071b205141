"""`prepare`: write a corpus as shards of tokens to an object store or a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt_lightning.console import format_bytes, labeled
from gpt_lightning.data.object_store import READ_ONLY, ObjectStore, is_address
from gpt_lightning.data.shards import INDEX, PATIENCE, SUFFIX, Index, Shard, read_index
from gpt_lightning.data.sources import find_source, is_path
from gpt_lightning.data.token_cache import EncodedDocuments, prepare
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.files import with_filename

SHARD_TOKENS = 1 << 24  # 34 MB in uint16
LEAST_SHARDS = 20  # of a small corpus, so that a share of them can be the validation split
MAX_UPLOADS = 8  # at the same time
OTHERS = "holds shards of another text or with other settings; choose another prefix"
BAR: dict[str, Any] = {"unit": "shard", "disable": None}  # no bar unless stderr is a terminal

Integers = NDArray[np.int64]


def write_shards(
    source: str, address: str, *, tokenizer_name: str, clean: str | None, cache_dir: Path, seed: int, shard_tokens: int
) -> Iterator[str]:
    """Encode a text, shuffle its documents, and write them as shards; shards that are there are not written again.

    Args:
        source: A folder, a glob, or a .txt or .jsonl file.
        address: Address of an object store, or a folder.
        tokenizer_name: Value of `data.tokenizer`.
        clean: None or "remove_empty_lines".
        cache_dir: Folder for the encoded documents.
        seed: Seed of the order of the documents.
        shard_tokens: Most tokens of a shard, about.

    Yields:
        Lines that describe the result.

    Raises:
        InputError: The text or the address is not valid, or other shards are there.
        MachineError: The text cannot be read, or the shards cannot be written.
    """
    if address.startswith(READ_ONLY):
        raise InputError(f"{address}: can only be read; name an s3://, gs:// or az:// address or a folder")
    if not is_path(source):
        raise InputError(f"{source}: --text must be a file, a folder or a glob")
    store = ObjectStore(address)
    before, sizes = None, {}
    if is_address(address) or os.path.isdir(address):
        before, sizes = read_index(store), store.sizes()
    elif os.path.exists(address):
        raise InputError(f"{address}: not a folder")
    if before is None and not is_address(address) and any(not name.endswith(SUFFIX) for name in sizes):
        raise InputError(f"{address}: the folder has other files; name an empty one")
    source, _ = find_source(source, setting="--text")
    tokenizer = load_tokenizer(tokenizer_name)
    encoded = prepare(source, tokenizer_name, clean, cache_dir)
    pieces = shuffled_pieces(encoded, seed, shard_tokens)
    shards = tuple(_describe(encoded, number, piece) for number, piece in enumerate(tqdm(pieces, "reading", **BAR)))
    index = Index(
        tokenizer.name,
        tokenizer.vocab_size,
        clean,
        encoded.tokens.dtype.name,
        encoded.documents,
        encoded.files,
        seed,
        shards,
    )
    if before is not None and before != index:
        raise InputError(f"{address}: {OTHERS}")
    itemsize = encoded.tokens.itemsize
    missing = [i for i, shard in enumerate(shards) if sizes.get(shard.name) != itemsize * shard.tokens]
    if not is_address(address):
        with with_filename(address):
            os.makedirs(address, exist_ok=True)
    store = ObjectStore(address, PATIENCE)

    def write(number: int) -> None:
        store.write(shards[number].name, _content(encoded, pieces[number]))

    with ThreadPoolExecutor(min(MAX_UPLOADS, os.cpu_count() or 1)) as executor:
        waiting = [executor.submit(write, number) for number in missing]
        try:
            for one in tqdm(waiting, "writing", **BAR):
                one.result()
        except BaseException:
            store.stopped.set()
            executor.shutdown(cancel_futures=True)
            raise
    is_ours = before is not None or store.write(INDEX, index.to_json(), overwrite=False)
    if not is_ours and read_index(store) != index:  # another process has written its index meanwhile
        raise InputError(f"{address}: {OTHERS}")
    size = itemsize * sum(one.tokens for one in shards)
    yield labeled("shards", f"{len(shards)} of {format_bytes(size)} in {address}")
    documents = f"{encoded.documents:,} documents of {encoded.files:,} files"
    yield labeled("tokens", f"{len(encoded.tokens):,} of {documents}, {tokenizer.name}")
    if len(missing) < len(shards):
        yield labeled("kept", f"{len(shards) - len(missing)} shards were there already")


def shuffled_pieces(encoded: EncodedDocuments, seed: int, shard_tokens: int) -> list[tuple[Integers, Integers, int]]:
    """Divide documents, in random order, among shards of about the same size. Only longer ones are cut.

    Args:
        encoded: The documents.
        seed: Seed of their order.
        shard_tokens: Most tokens of a shard, about.

    Returns:
        For each shard: where its documents, or pieces of them, begin and end in the tokens, and its characters.
    """
    total = len(encoded.tokens)
    size = max(1, min(shard_tokens, -(-total // LEAST_SHARDS)))
    begins, lengths = _starts(encoded.ends), np.diff(encoded.ends, prepend=0)
    parts = -(-lengths // size)  # of each document
    document = np.repeat(np.arange(len(lengths)), parts)
    inside = (np.arange(len(document)) - np.repeat(_starts(np.cumsum(parts)), parts)) * size
    stops = np.minimum(inside + size, lengths[document])
    characters = np.diff(encoded.character_ends, prepend=0)[document]
    # Characters of a piece of a document: in proportion to its tokens, so that those of all pieces add up.
    counts = characters * stops // lengths[document] - characters * inside // lengths[document]
    order = np.random.default_rng(seed).permutation(len(document))
    first, last = (begins[document] + inside)[order], (begins[document] + stops)[order]
    shard = _starts(np.cumsum(last - first)) // size
    cuts = np.flatnonzero(np.diff(shard, prepend=-1))
    groups = zip(np.split(first, cuts[1:]), np.split(last, cuts[1:]), np.split(counts[order], cuts[1:]), strict=True)
    return [(begin, end, int(count.sum())) for begin, end, count in groups]


def _starts(ends: Integers) -> Integers:
    return np.concatenate([[0], ends[:-1]])


def _content(encoded: EncodedDocuments, piece: tuple[Integers, Integers, int]) -> memoryview:
    """Return the bytes of a shard."""
    begins, ends, _ = piece
    tokens = [encoded.tokens[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return np.concatenate(tokens).astype(encoded.tokens.dtype.newbyteorder("<")).data.cast("B")


def _describe(encoded: EncodedDocuments, number: int, piece: tuple[Integers, Integers, int]) -> Shard:
    """Return the name, size and checksum of a shard."""
    content = _content(encoded, piece)
    digest = hashlib.sha256(content).hexdigest()
    return Shard(f"{number:05}-{digest[:12]}{SUFFIX}", len(content) // encoded.tokens.itemsize, piece[2], digest)
