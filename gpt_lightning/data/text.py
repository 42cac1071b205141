"""One UTF-8 text file: read, checked and cleaned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gpt_lightning.console import warn
from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8, with_filename

MAX_BYTES = 2 * 1024**3
CLEANERS = ("remove_empty_lines",)


@dataclass(frozen=True)
class Text:
    """A text and where it comes from.

    Attributes:
        content: The characters, cleaned.
        path: The file, absolute; or the name of a dataset's split.
        sha256: Of the file's bytes.
    """

    content: str
    path: Path
    sha256: str


def read_text(path: str | Path, *, setting: str = "data.text", clean: str | None = None) -> Text:
    """Read and check one UTF-8 file. A byte order mark is removed, with a warning.

    Raises:
        InputError: No such file, a folder, empty, blank, not UTF-8, NUL bytes, one character over and
            over, or larger than 2 GiB.
        MachineError: It cannot be read.
    """
    path = Path(path)
    with with_filename(path):
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path}: {setting} must be a file, this is a folder")
        if not path.is_file():  # a pipe or a device, which may never end
            raise InputError(f"{path}: {setting} must be a regular file")
        if size > MAX_BYTES:
            gib = size / 1024**3
            raise InputError(f"{path}: {gib:.1f} GiB, more than this program reads (limit {MAX_BYTES // 1024**3} GiB)")
        data = path.read_bytes()
    if not data:
        raise InputError(f"{path}: is empty")
    content = check_text(decode_utf8(data, path), str(path), clean)
    return Text(content, path.absolute(), hashlib.sha256(data).hexdigest())


def refuse_nul(content: str | bytes, path: str | Path) -> None:
    """Raise `InputError` if there are NUL bytes, which no text has."""
    if "\0" in content if isinstance(content, str) else b"\0" in content:
        raise InputError(f"{path}: contains NUL bytes; not a text file")


def check_text(content: str, path: str, clean: str | None) -> str:
    """Return the text with normalized line ends, cleaned. Raise `InputError` if there is nothing to learn."""
    refuse_nul(content, path)
    if content.startswith("\ufeff"):
        warn(f"{path}: starts with a byte order mark, which is left out")
        content = content[1:]
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if clean == "remove_empty_lines":
        content = remove_empty_lines(content)
    if not content.strip():
        raise InputError(f"{path}: holds nothing but white space")
    if content.count(content[0]) == len(content):
        raise InputError(f"{path}: is one character ({content[0]!r}) over and over; there is nothing to learn")
    return content


def remove_empty_lines(text: str) -> str:
    """Strip every line and remove the empty ones."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
