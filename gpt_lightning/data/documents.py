"""Find, read, check and clean documents, and cut them into pieces that can be encoded separately.

Files are read in chunks, so memory does not grow with their size.
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
PIECE = 1 << 20  # bytes per read, and characters per encoded piece
MAX_LINE = 256 << 20  # bytes
# Every pre-tokenization pattern of tiktoken starts a new match at a space or newline after a letter or digit.
LAST_CUT = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)


class Piece(NamedTuple):
    """A piece of one document.

    Attributes:
        text: Consecutive characters.
        is_last: Whether the document ends with this piece.
    """

    text: str
    is_last: bool


def find_documents(source: str) -> list[Path]:
    """Return the .txt and .jsonl files below a folder, the files that a glob matches, or the file of a path, sorted.

    Hidden files and whatever is no regular file are left out. Files of other kinds in a folder cause a warning.

    Raises:
        InputError: There are no such files.
        MachineError: A folder cannot be read.
    """
    path = Path(source)
    is_folder = path.is_dir()
    if path.exists() and not is_folder:
        return [path]
    if not is_folder and not glob.has_magic(source):
        raise InputError(f"{source}: no such file")
    found = _walk(path) if is_folder else (Path(name) for name in glob.glob(source, recursive=True))
    files = sorted(file for file in found if file.is_file() or not file.exists())  # reading a broken link reports it
    if not is_folder:
        if not files:
            raise InputError(f"{source}: no file matches it")
        return files
    texts = [file for file in files if file.suffix in SUFFIXES]
    if len(texts) < len(files):
        endings = sorted({file.suffix or "no ending" for file in files if file.suffix not in SUFFIXES})
        shown = ", ".join([*endings[:3], *(["..."] if len(endings) > 3 else [])])
        others = f"{len(files) - len(texts)} of other kinds ({shown})"
        if not texts:
            hint = f"if they are text, name them by a glob, as in '{path}/*.md'"
            raise InputError(f"{source}: contains no {' or '.join(SUFFIXES)} file, only {others}; {hint}")
        warn(f"{source}: reads {len(texts)} file{'s' * (len(texts) > 1)} and leaves out {others}")
    if not texts:
        raise InputError(f"{source}: contains no {' or '.join(SUFFIXES)} file")
    return texts


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, without hidden files and folders."""

    def refuse(error: OSError) -> None:
        raise MachineError(describe_os_error(error)[0]) from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read_documents(path: Path, advance: Callable[[int], object] = lambda _: None) -> Iterator[Iterator[str]]:
    """Yield the documents of a file, each as an iterator over chunks of its text with line ends normalized to LF.

    Args:
        path: A .txt file, which is one document, or a .jsonl file with one document per line.
        advance: Called with the number of bytes of each read.

    Raises:
        InputError: The file is not UTF-8 or contains NUL bytes, or a line is not a JSON object with a "text".
        MachineError: The file cannot be read.
    """
    if path.suffix != ".jsonl":
        yield _read_text(path, advance)
        return
    with with_filename(path), open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            advance(len(line))
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                warn(f"{path}: starts with a byte order mark, which is removed")
                line = line[len(codecs.BOM_UTF8) :]
            if line.strip():
                text = _parse_line(line, f"{path}:{number}")
                yield (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def clean_chunks(chunks: Iterable[str]) -> Iterator[str]:
    """Apply `remove_empty_lines` to a text in chunks, keeping at most a chunk and an incomplete line in memory."""
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
    """Cut a document into pieces whose token ids, concatenated, equal those of the whole document.

    Pieces have about `PIECE` characters, more if a chunk has no place to cut. A blank document has no pieces.
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
    """Yield the pieces of all documents in lists of about `PIECE` characters.

    Args:
        files: .txt and .jsonl files.
        clean: None or "remove_empty_lines".
        advance: Called with the number of bytes of each read.
    """
    batch: list[Piece] = []
    weight = 0
    for path in files:
        for chunks in read_documents(path, advance):
            for piece in cut_pieces(chunks if clean is None else clean_chunks(chunks)):
                batch.append(piece)
                weight += len(piece.text) + 100  # bounds the number of tiny documents in a batch
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
                # error.object starts with the bytes of an incomplete character from the block before.
                raise not_utf8(error, path, offset - len(error.object)) from None
            refuse_nul(chunk, path)
            if chunk and not begun:
                begun = True
                if chunk[0] == "\ufeff":
                    warn(f"{path}: starts with a byte order mark, which is removed")
                    chunk = chunk[1:]
            yield chunk
            if not block:
                return
            advance(len(block))


def _parse_line(line: bytes, place: str) -> str:
    """Return the "text" of one line of JSON; `place` is the line's file and number."""
    if len(line) > MAX_LINE:
        raise InputError(f"{place}: longer than {MAX_LINE >> 20} MiB, the limit for a line")
    content = decode_utf8(line, place)
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:  # also raised for huge integers and for deep nesting
        raise InputError(f"{place}: not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise InputError(f'{place}: must be a JSON object with a "text", got a {type(row).__name__}')
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f'{place}: "text" is missing or not a string')
    if "\0" in text:
        raise InputError(f'{place}: "text" contains a NUL character')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'{place}: "text" contains an unpaired surrogate (\\u{ord(text[error.start]):x})') from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
