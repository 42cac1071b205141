"""Helpers for files: atomic writes, JSON lines, and operating-system errors that name their file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_lightning.errors import InputError, MachineError, describe_os_error

if TYPE_CHECKING:
    from jinja2 import Template


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
    """Return the first OSError in an exception's chain of causes and contexts, or None.

    `torch.save` reports a full disk as a RuntimeError and keeps the OSError in `__context__`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def decode_utf8(data: bytes, name: str | Path) -> str:
    """Decode the contents of a file, or one line of it, as UTF-8.

    Args:
        data: The bytes to decode.
        name: Name of the file or line in the error message.

    Raises:
        InputError: The bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error, name) from None


def not_utf8(error: UnicodeDecodeError, name: str | Path, offset: int = 0) -> InputError:
    """Return the error for bytes that are not UTF-8.

    Args:
        error: The decoder's error.
        name: Name of the file or line in the message.
        offset: Position in the file of the first byte passed to the decoder.
    """
    byte = error.object[error.start]
    return InputError(f"{name}: not UTF-8 text (byte 0x{byte:02x} at offset {offset + error.start})")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSON-lines file."""
    with with_filename(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the number and the row of each line of a JSON-lines file; the row is None if the line is damaged.

    A row is an object with an integer "step". A last line without its newline is one that a killed process left
    incomplete: if it is damaged, it is skipped. A missing file has no lines.
    """
    content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    *lines, incomplete = content.split("\n")  # not splitlines(): a JSON string may contain U+2028
    for number, line in enumerate([*lines, incomplete], start=1):
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield number, row
        elif number <= len(lines):
            yield number, None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, in file order; see `read_lines`. Damaged lines are skipped."""
    return [row for _, row in read_lines(path) if row is not None]


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; if that fails, leave nothing behind."""
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each atomically, after all of them have been written under other names.

    If one does not fit on the disk, none is written.
    """
    temporary = {path: path.with_name(f"{path.name}.tmp-{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            with _named(path):
                temporary[path].write_bytes(content)
        for path in contents:
            with _named(path):
                os.replace(temporary[path], path)
    finally:
        for left_over in temporary.values():
            with contextlib.suppress(OSError):
                left_over.unlink()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name a file, not the temporary one that is written in its place, in an OSError."""
    with with_filename(path):
        try:
            yield
        except OSError as error:
            error.filename = str(path)
            raise


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, on systems that let a program open a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_template(path: Path, **filters: Callable[..., object]) -> Template:
    """Return the Jinja template of a page, in which every value is escaped and an unknown name is an error."""
    from jinja2 import Environment, StrictUndefined  # imported here, because only pages need it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(path.read_text(encoding="utf-8"))


def packaged_folder(name: str) -> Path:
    """Return the folder with the files that come with the package: "configs" or "texts".

    A wheel has them inside of the package; a clone of the repository, and an editable install, beside it.
    """
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / {"configs": "configs", "texts": "data"}[name]


def check_folder(output: Path) -> None:
    """Raise `InputError` if the folder of an output path does not exist or is a file."""
    folder = output.parent
    if not folder.is_dir():
        problem = f"{folder} is not a folder" if folder.exists() else f"folder {folder} does not exist"
        raise InputError(f"--output {output}: {problem}")


def check_absent(output: Path) -> None:
    """Raise `InputError` if an output path already exists."""
    if output.exists() or output.is_symlink():
        raise InputError(f"--output {output}: already exists; choose another or remove it")
