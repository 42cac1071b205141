"""The documents of a folder, a glob or a file: found, checked, cleaned, cut where tokens end.

Everything is read in chunks, so that the memory does not grow with a file.
"""

from __future__ import annotations

import codecs
import glob
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt_lightning.console import warn
from gpt_lightning.data.text import refuse_nul, remove_empty_lines
from gpt_lightning.errors import InputError, MachineError, describe_os_error
from gpt_lightning.files import decode_utf8, not_utf8, with_filename

SUFFIXES = (".txt", ".jsonl")
PIECE = 1 << 20  # bytes that are read, characters that are encoded at a time
MAX_LINE = 256 << 20
# Before a space or line end that follows a letter or digit, every pattern of tiktoken begins a new match.
LAST_CUT = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)


class Piece(NamedTuple):
    """Consecutive characters of one document, and whether they are its last."""

    text: str
    is_last: bool


def find_documents(source: str) -> list[Path]:
    """Return the files of a folder, a glob or a path, sorted, without hidden ones.

    Of a folder these are the .txt and .jsonl files, with a warning if there are others; of a glob, all that it matches.

    Raises:
        InputError: There are none.
        MachineError: A folder cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        found = list(_walk(path))
        files = [file for file in found if file.suffix in SUFFIXES]
        others = sorted({file.suffix or "no ending" for file in found if file.suffix not in SUFFIXES})
        kinds = (
            f"{len(found) - len(files)} of other kinds ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''})"
        )
        if not files:
            rest = f", only {kinds}; name them by a glob, as in '{path}/*.md'" if others else ""
            raise InputError(f"{source}: has no {' or '.join(SUFFIXES)} file{rest}")
        if others:
            warn(f"{source}: reads {len(files)} file{'s' * (len(files) > 1)} and leaves out {kinds}")
    elif glob.has_magic(source) and not path.exists():
        files = [Path(name) for name in glob.glob(source, recursive=True)]
        files = [file for file in files if file.is_file() or not file.exists()]  # reading a dangling link says so
        if not files:
            raise InputError(f"{source}: no file matches it")
    elif not path.exists():
        raise InputError(f"{source}: no such file")
    else:
        files = [path]
    return sorted(files)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones and those in hidden folders."""

    def refuse(error: OSError) -> None:
        raise MachineError(describe_os_error(error)[0]) from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read_documents(path: Path, advance: Callable[[int], object] = lambda _: None) -> Iterator[Iterator[str]]:
    """Yield the documents of a file, each as chunks of its text: checked, line ends normalized.

    Args:
        path: A .txt file, which is one document, or a .jsonl file with one in every line.
        advance: Called with the number of bytes of each read.

    Raises:
        InputError: Not UTF-8, NUL bytes; a line that is no JSON object with a "text".
        MachineError: It cannot be read.
    """
    if path.suffix != ".jsonl":
        yield _read_text(path, advance)
        return
    with with_filename(path), open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            advance(len(line))
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                warn(f"{path}: starts with a byte order mark, which is left out")
                line = line[len(codecs.BOM_UTF8) :]
            if line.strip():
                text = _parse_line(line, f"{path}:{number}")
                yield (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def clean_chunks(chunks: Iterable[str]) -> Iterator[str]:
    """Apply `remove_empty_lines` to a text in chunks, holding one line at a time."""
    rest: list[str] = []
    begun = False
    for chunk in chain(chunks, ["\n"]):
        lines, found, tail = chunk.rpartition("\n")
        if found:
            cleaned = remove_empty_lines("".join([*rest, lines]))
            if cleaned:
                yield "\n" + cleaned if begun else cleaned
                begun = True
            rest = []
        rest.append(tail)


def cut_pieces(chunks: Iterable[str]) -> Iterator[Piece]:
    """Cut a document into pieces whose token ids, concatenated, are those of the whole.

    Pieces have about `PIECE` characters, more if there is no place to cut. A blank document has none.
    """
    parts: list[str] = []
    length = 0
    begun = False
    for chunk in chunks:
        parts.append(chunk)
        length += len(chunk)
        if length >= PIECE and (match := LAST_CUT.match(chunk)):
            parts[-1] = chunk[: match.end()]
            yield Piece("".join(parts), False)
            parts = [chunk[match.end() :]]
            length = len(parts[0])
            begun = True
    rest = "".join(parts)
    if begun or rest.strip():
        yield Piece(rest, True)


def batch_pieces(files: list[Path], clean: str | None, advance: Callable[[int], object]) -> Iterator[list[Piece]]:
    """Yield the pieces of all documents, in lists of about `PIECE` characters."""
    batch: list[Piece] = []
    weight = 0
    for path in files:
        for chunks in read_documents(path, advance):
            for piece in cut_pieces(chunks if clean is None else clean_chunks(chunks)):
                batch.append(piece)
                weight += len(piece.text) + 100  # so that a million tiny documents are not one batch
                if weight >= PIECE:
                    yield batch
                    batch, weight = [], 0
    if batch:
        yield batch


def _read_text(path: Path, advance: Callable[[int], object]) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset = 0
    begun = False
    with with_filename(path), open(path, "rb") as file:
        while True:
            block = file.read(PIECE)
            offset += len(block)
            try:
                chunk = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder keeps an incomplete character from block to block.
                raise not_utf8(error, path, offset - len(error.object)) from None
            refuse_nul(chunk, path)
            if chunk and not begun:
                begun = True
                if chunk[0] == "\ufeff":
                    warn(f"{path}: starts with a byte order mark, which is left out")
                    chunk = chunk[1:]
            yield chunk
            if not block:
                return
            advance(len(block))


def _parse_line(line: bytes, place: str) -> str:
    """Return the "text" of one line of JSON; `place` is its file and number."""
    if len(line) > MAX_LINE:
        raise InputError(f"{place}: longer than {MAX_LINE >> 20} MiB, the limit for a line")
    content = decode_utf8(line, place)
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:  # of JSON; a number of thousands of digits; a thousand brackets
        raise InputError(f"{place}: not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise InputError(f'{place}: must be a JSON object with a "text", is a {type(row).__name__}')
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f'{place}: has no string under "text"')
    if "\0" in text:
        raise InputError(f'{place}: "text" contains NUL; not a text')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place}: "text" contains half a character (\\u{ord(text[error.start]):x})') from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
