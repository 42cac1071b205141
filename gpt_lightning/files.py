"""Files on disk: atomic writes, JSON lines, and operating-system errors that name their file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_lightning.errors import InputError, MachineError, describe_os_error


@contextlib.contextmanager
def with_filename(path: str | Path) -> Iterator[None]:
    """Turn an OSError into an InputError or MachineError that names the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        message, code = describe_os_error(error)
        raise (InputError if code == InputError.exit_code else MachineError)(message) from None


def find_os_error(error: BaseException | None) -> OSError | None:
    """What the operating system said behind an error, or None.

    `torch.save` reports a full disk as a RuntimeError and keeps the reason in `__context__`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def decode_utf8(data: bytes, name: str | Path) -> str:
    """Decode the text of a file, or of one of its lines.

    Args:
        data: All of it.
        name: What the message calls it.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error, name) from None


def not_utf8(error: UnicodeDecodeError, name: str | Path, offset: int = 0) -> InputError:
    """Return the error for bytes that are not UTF-8; `offset` is where in the file the decoded bytes begin."""
    byte = error.object[error.start]
    return InputError(f"{name}: not UTF-8 text (byte 0x{byte:02x} at offset {offset + error.start})")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds one line of JSON to a file."""
    with with_filename(path), open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file that are rows with a step, oldest first; a kill may cut one short."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with with_filename(path):
        temporary.write_bytes(content)
        os.replace(temporary, path)


def check_absent(output: Path) -> None:
    """Raises `InputError` where an output exists: nothing is overwritten."""
    if output.exists() or output.is_symlink():
        raise InputError(f"--output {output}: exists; name another, or remove it")
