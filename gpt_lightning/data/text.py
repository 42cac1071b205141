"""Read, check and clean a UTF-8 text file."""

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
    """A text and its source.

    Attributes:
        content: The text after cleaning.
        path: Absolute path of the file, or hf:DATASET/CONFIG/SPLIT.
        sha256: Checksum of the file's bytes or, for a dataset, of its text before cleaning.
    """

    content: str
    path: Path
    sha256: str


def read_text(path: str | Path, *, setting: str = "data.text", clean: str | None = None) -> Text:
    """Read, check and clean a UTF-8 file. A byte order mark is removed with a warning.

    Args:
        path: Path of the file.
        setting: Name of the setting in error messages.
        clean: None or "remove_empty_lines".

    Raises:
        InputError: The file does not exist, is not a regular file, is larger than 2 GiB, is not UTF-8, contains NUL
            bytes, or contains only whitespace or one repeated character.
        MachineError: The file cannot be read.
    """
    path = Path(path)
    with with_filename(path):
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path}: {setting} must be a file, not a folder")
        if not path.is_file():  # reading a pipe or a device may never end
            raise InputError(f"{path}: {setting} must be a regular file")
        if size > MAX_BYTES:
            gib = size / 1024**3
            raise InputError(f"{path}: is too large ({gib:.1f} GiB); the limit is {MAX_BYTES // 1024**3} GiB")
        data = path.read_bytes()
    if not data:
        raise InputError(f"{path}: is empty")
    content = check_text(decode_utf8(data, path), str(path), clean)
    return Text(content, path.absolute(), hashlib.sha256(data).hexdigest())


def refuse_nul(content: str | bytes, path: str | Path) -> None:
    """Raise `InputError` if the content has NUL bytes, which indicate a binary file."""
    if "\0" in content if isinstance(content, str) else b"\0" in content:
        raise InputError(f"{path}: contains NUL bytes; not a text file")


def check_text(content: str, path: str, clean: str | None) -> str:
    """Clean a text and normalize its line ends to LF.

    Args:
        content: The text.
        path: Name of the text in messages.
        clean: None or "remove_empty_lines".

    Raises:
        InputError: The text contains NUL bytes, or only whitespace or one repeated character.
    """
    refuse_nul(content, path)
    if content.startswith("\ufeff"):
        warn(f"{path}: starts with a byte order mark, which is removed")
        content = content[1:]
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if clean == "remove_empty_lines":
        content = remove_empty_lines(content)
    if not content.strip():
        raise InputError(f"{path}: contains only whitespace")
    if content.count(content[0]) == len(content):
        raise InputError(f"{path}: contains only the character {content[0]!r}; there is nothing to learn")
    return content


def remove_empty_lines(text: str) -> str:
    """Strip whitespace from every line and remove empty lines."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
