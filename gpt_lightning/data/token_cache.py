"""A cache of encoded documents on disk.

    <cache_dir>/<first 16 digits of the key>/
        tokens.bin      token ids of all documents, each followed by <|endoftext|>; uint16 or uint32
        documents.npy   (2, documents) int64: end of each document, in tokens and in characters
        meta.json       the key, and the sizes and checksums of the other two files

The key is a sha256 of the tokenizer, the cleaning, and the names and contents of the files, but not of their folders.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gpt_lightning.console import format_bytes, warn
from gpt_lightning.data.documents import PIECE, Piece, batch_pieces, find_documents
from gpt_lightning.data.text import refuse_nul
from gpt_lightning.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import sync_folder, with_filename

FORMAT = 1  # version of the cache format
MAX_WORKERS = 8
LONG_TOKEN = 8  # bytes per token; hardly any text has a larger mean
IN_PROCESS_BYTES = 16_000_000  # smaller corpora are encoded faster than worker processes start


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as token ids on disk.

    Attributes:
        tokens: (N,) uint16 or uint32, memory-mapped, read-only.
        ends: (documents,) int64, number of tokens up to and including each document's `<|endoftext|>`.
        characters: Number of characters of all documents after cleaning.
        character_ends: (documents,) int64, number of characters up to the end of each document.
        sha256: Key of the cache.
        files: Number of files.
        documents: Number of documents that are not blank.
    """

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    characters: int
    character_ends: NDArray[np.int64]
    sha256: str
    files: int
    documents: int


class Encoded(NamedTuple):
    """The tokens of a batch of pieces.

    Attributes:
        token_ids: (n,) uint16 or uint32.
        ends: (2, k), the token and character offsets in the batch at which its k documents end.
        characters: Number of characters.
    """

    token_ids: NDArray[Any]
    ends: NDArray[np.int64]
    characters: int


def prepare(source: str, tokenizer_name: str, clean: str | None, cache_dir: Path) -> EncodedDocuments:
    """Open encoded documents from the cache, or encode them. Memory use does not grow with their size.

    Args:
        source: A folder, a glob, or a .txt or .jsonl file.
        tokenizer_name: Value of `data.tokenizer`.
        clean: None or "remove_empty_lines", applied to each document.
        cache_dir: Folder of the cache, created if it is missing.

    Raises:
        InputError: There are no files or only blank documents, a file is not text or not JSON lines or changes while
            it is read, or the tokens do not fit on the disk.
        MachineError: A file cannot be read, or the cache cannot be written.
    """
    files = find_documents(source)
    tokenizer = load_tokenizer(tokenizer_name)
    _check_space(source, files, tokenizer, clean, cache_dir)
    key = _make_key(files, tokenizer, clean)
    folder = cache_dir / key[:16]
    if (encoded := _open_cache(folder, key)) is not None:
        return encoded
    if folder.exists():
        warn(f"{folder}: is damaged; encoding its documents again")
    temporary = cache_dir / f"{folder.name}.tmp-{os.getpid()}"
    missing = [path for path in (cache_dir, *cache_dir.parents) if not path.exists()]
    try:
        _remove_stale(cache_dir)
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with the same pid
        temporary.mkdir(parents=True)
        numbers = _write_tokens(temporary, files, tokenizer, clean)
        if numbers["documents"] == 0:
            raise InputError(f"{source}: contains only whitespace ({len(files)} files)")
        if _make_key(files, tokenizer, clean) != key:
            raise InputError(f"{source}: a file changed while it was read; try again when all files are complete")
        meta = {"key": key, "files": len(files), "sha256": _checksums(temporary), **numbers}
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="ascii")
        _publish(temporary, folder, key)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MachineError(f"{cache_dir}: the encoded documents cannot be written ({reason})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, which is the normal case
            for path in missing:
                path.rmdir()
    if (encoded := _open_cache(folder, key)) is None:
        raise MachineError(f"{folder}: was changed by another program right after it was written")
    return encoded


def encode_pieces(tokenizer_name: str, pieces: list[Piece]) -> Encoded:
    """Encode pieces of documents, with `<|endoftext|>` after the last piece of each document."""
    tokenizer = load_tokenizer(tokenizer_name)
    end_of_text = tokenizer.encode(END_OF_TEXT)[0]
    token_ids: list[int] = []
    ends: list[tuple[int, int]] = []
    characters = 0
    for text, is_last in pieces:
        token_ids += tokenizer.encode(text)
        characters += len(text)
        if is_last:
            token_ids.append(end_of_text)
            ends.append((len(token_ids), characters))
    return Encoded(np.array(token_ids, _token_type(tokenizer)), np.array(ends, np.int64).reshape(-1, 2).T, characters)


def encode_batches(batches: Iterable[list[Piece]], tokenizer_name: str, workers: int) -> Generator[Encoded]:
    """Encode batches of pieces and yield them in order.

    Args:
        batches: Lists of pieces. At most two per worker are read ahead, which bounds the memory.
        tokenizer_name: Value of `data.tokenizer`.
        workers: Number of processes; 1 encodes in this process.

    Raises:
        MachineError: A worker process was killed.
    """
    if workers == 1:
        for batch in batches:
            yield encode_pieces(tokenizer_name, batch)
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    waiting: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            waiting.append(executor.submit(encode_pieces, tokenizer_name, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise MachineError("a process that encodes documents was killed, possibly for lack of memory") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ignore SIGINT, which the parent process handles, and exit when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _check_space(source: str, files: list[Path], tokenizer: Tokenizer, clean: str | None, cache_dir: Path) -> None:
    """Raise `InputError` if the tokens cannot fit on the disk.

    The estimate is a lower bound: .jsonl files are not counted, because the share of text in them is unknown, and
    every second byte of a text may be a carriage return, which is removed. The size of the cache is added to the free
    space, because the tokens may already be in it.
    """
    size = 0
    for path in files:
        with with_filename(path):
            size += path.stat().st_size if path.suffix != ".jsonl" else 0
    longest = 2 if tokenizer.name == "bytes" and clean is None else LONG_TOKEN
    needed = _token_type(tokenizer).itemsize * size // longest
    disk = next(path for path in (cache_dir.absolute(), *cache_dir.absolute().parents) if path.exists())
    free, held = shutil.disk_usage(disk).free, 0
    for path in cache_dir.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # just removed by another process
            held += path.stat().st_size
    if needed > free + held:
        raise InputError(
            f"{source}: the tokens of {format_bytes(size)} of text take at least {format_bytes(needed)}, but "
            f"data.cache_dir ({cache_dir}) has {format_bytes(free)} free; name a folder on another disk"
        )


def _write_tokens(folder: Path, files: list[Path], tokenizer: Tokenizer, clean: str | None) -> dict[str, int | str]:
    """Write tokens.bin and documents.npy, and return their entries for meta.json."""
    size = sum(path.stat().st_size for path in files)
    workers = 1 if size < IN_PROCESS_BYTES else min(MAX_WORKERS, os.cpu_count() or 1)
    bar = _make_bar("encoding", size)
    ends = [np.zeros((2, 0), np.int64)]
    total = np.zeros((2, 1), np.int64)  # tokens, characters
    batches = encode_batches(batch_pieces(files, clean, bar.update), tokenizer.name, workers)
    with bar, contextlib.closing(batches), open(folder / "tokens.bin", "wb") as file:
        for encoded in batches:
            file.write(encoded.token_ids.data)
            ends.append(total + encoded.ends)
            total += [[len(encoded.token_ids)], [encoded.characters]]
    documents = np.concatenate(ends, axis=1)
    buffer = io.BytesIO()  # np.save to a file does not report a full disk
    np.save(buffer, documents)
    (folder / "documents.npy").write_bytes(buffer.getbuffer())
    return {"dtype": _token_type(tokenizer).name, "tokens": int(total[0, 0]), "documents": documents.shape[1]}


def _make_bar(what: str, size: int, delay: float = 0) -> tqdm[Any]:
    """Return a progress bar over `size` bytes on stderr, shown after `delay` seconds; disabled for small sizes."""
    return tqdm(
        total=size,
        desc=what,
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # fewer lines in a log file
        file=sys.stderr,
        delay=delay,
        disable=size < IN_PROCESS_BYTES,
    )


def _publish(temporary: Path, folder: Path, key: str) -> None:
    """Rename a complete folder to its final name, unless another process did so first."""
    for path in temporary.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    sync_folder(temporary)
    while True:
        try:
            os.rename(temporary, folder)
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _open_cache(folder, key) is not None:
            break
        shutil.rmtree(folder)
    sync_folder(folder.parent)


def _open_cache(folder: Path, key: str) -> EncodedDocuments | None:
    """Open the documents in a cache folder; return None if it is damaged or missing."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="ascii"))
        if meta["sha256"] != _checksums(folder):
            return None
        ends, character_ends = np.load(folder / "documents.npy")
        tokens = np.memmap(folder / "tokens.bin", meta["dtype"], mode="r")
        if (meta["key"], meta["tokens"], meta["documents"]) != (key, len(tokens), len(ends)) or ends[-1] != len(tokens):
            return None
        characters = int(character_ends[-1])
        return EncodedDocuments(tokens, ends, characters, character_ends, key, meta["files"], meta["documents"])
    except (OSError, EOFError, ValueError, LookupError, TypeError):
        return None


def _checksums(folder: Path) -> list[str]:
    """Return the sha256 of tokens.bin and documents.npy."""
    checksums = []
    for name in ("tokens.bin", "documents.npy"):
        with open(folder / name, "rb") as file:
            checksums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return checksums


def _make_key(files: list[Path], tokenizer: Tokenizer, clean: str | None) -> str:
    """Return the sha256 of everything the tokens depend on."""
    digests = []
    with _make_bar("reading", sum(path.stat().st_size for path in files), delay=1) as bar:
        for path in files:
            digest = hashlib.sha256()
            with with_filename(path), open(path, "rb") as file:
                while block := file.read(PIECE):
                    refuse_nul(block, path)  # fails early, without reading a large binary file to its end
                    digest.update(block)
                    bar.update(len(block))
            digests.append([path.name, digest.hexdigest()])
    return hashlib.sha256(
        json.dumps([FORMAT, tokenizer.name, tokenizer.vocab_size, clean, digests]).encode()
    ).hexdigest()


def _remove_stale(cache_dir: Path) -> None:
    """Remove the temporary folders of killed processes."""
    for path in cache_dir.glob(f"{'[0-9a-f]' * 16}.tmp-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)
            except (PermissionError, OverflowError):  # a process of another user; not a valid pid
                continue


def _token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
