"""The file of a checkpoint: verified when it is read, written atomically.

A zip file of `torch.save` with the checksum of everything before it as its comment, so that a single flipped bit
is detected. Everything in it loads with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

from gpt_lightning.checkpoints.metadata import FORMAT, PLAIN, SCHEMA, check_schema
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import find_os_error
from gpt_lightning.runs.folder import BEST, LAST

COMMENT_LENGTH_BYTES = 2  # in which a zip file ends, before its comment


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = True) -> dict[str, Any]:
    """Reads a checkpoint of this program, after verifying its checksums.

    Args:
        path: The file.
        mmap: Whether the file stays the memory of its tensors.

    Returns:
        The whole content, on the CPU.

    Raises:
        InputError: No such file, an address, damaged, more than plain data, another program's, or of
            a newer format.
    """
    name = os.fspath(path)
    if "://" in name:
        raise InputError(f"{name}: checkpoints are local files only")
    if not os.path.exists(name):
        raise InputError(f"{name}: no such file")
    if os.path.isdir(name):
        inside = [os.path.join(name, folder, one) for folder in ("checkpoints", "") for one in (BEST, LAST)]
        found = next(filter(os.path.isfile, inside), None)
        hint = f"; it holds {found}" if found else ""
        raise InputError(f"{name}: is a folder, not a checkpoint{hint}")
    if not os.path.isfile(name):  # a pipe or a device, which may never end
        raise InputError(f"{name}: must be a regular file")
    checkpoint = load_plain(name, "a checkpoint", mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("gpt_lightning"), dict):
        raise InputError(f"{name}: not a checkpoint of gpt_lightning")
    content = checkpoint["gpt_lightning"]
    number = content.get("format")
    if not isinstance(number, int) or number != FORMAT:
        raise InputError(f"{name}: has checkpoint format {number}; this program reads format {FORMAT}")
    check_schema(checkpoint, SCHEMA, name)
    for key, tensor in checkpoint["state_dict"].items():
        is_dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not isinstance(key, str) or not is_dense:
            raise InputError(f"{name}: state_dict.{key} must be a name and a dense tensor")
    for settings in (checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"], content["fit"]):
        for key, value in settings.items():
            if not isinstance(key, str) or not isinstance(value, PLAIN):
                raise InputError(f"{name}: setting {key} must be a name and plain data")
    return checkpoint


def load_plain(name: str, kind: str, mmap: bool) -> Any:
    """What a file of `torch.save` holds, on the CPU: tensors and plain data, or it is refused.

    Args:
        name: Of the file.
        kind: What it should be, for the error.
        mmap: Whether the file stays the memory of its tensors.

    Raises:
        InputError: Damaged, more than plain data, or something else.
    """
    check_sums(name)
    try:
        return torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise InputError(f"{name}: refused, contains more than tensors and plain data") from None
    except (OSError, MemoryError):
        raise
    except Exception:  # whatever the pickle machine runs into in bytes that are no pickle
        raise InputError(f"{name}: not {kind}") from None


def check_sums(name: str) -> None:
    """Raises `InputError` for a file that is not, bit for bit, what was written.

    The checksum of all that is before it is the zip file's comment. A file of plain `torch.save` has none; it
    is checked by the checksums of its records, which leave out the padding between them.
    """
    try:
        with open(name, "rb") as file:
            file.seek(max(0, os.path.getsize(name) - COMMENT_LENGTH_BYTES))
            has_comment = file.read() != bytes(COMMENT_LENGTH_BYTES)
        with zipfile.ZipFile(name) as archive:
            damaged = None if has_comment else archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError):  # RuntimeError: a flag says encrypted
        raise InputError(f"{name}: not a complete checkpoint") from None
    if damaged is not None:
        raise InputError(f"{name}: checksum mismatch in {damaged.split('/', 1)[-1]}")
    if has_comment:
        checksum, left = 0, os.path.getsize(name) - len(_end(0))
        with open(name, "rb") as file:
            while left > 0 and (block := file.read(min(1 << 20, left))):
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
            if file.read() != _end(checksum):
                raise InputError(f"{name}: checksum mismatch")


def _end(checksum: int) -> bytes:
    """The end of a zip file: the length of its comment and the comment, here the checksum of all before."""
    comment = b"crc32 %08x" % checksum
    return len(comment).to_bytes(COMMENT_LENGTH_BYTES, "little") + comment


class _SummedZip:
    """Passes a zip file on to a file and ends it with its checksum as the comment.

    Args:
        file: Open for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._checksum = 0
        self._held = b""  # at the end of a zip file: the length of its comment, 0

    def write(self, data: bytes) -> int:
        """Takes bytes in order, as `torch.save` writes them."""
        view = memoryview(data).cast("B")
        held = self._held + bytes(view[-COMMENT_LENGTH_BYTES:])
        self._pass_on(self._held[: max(0, len(held) - COMMENT_LENGTH_BYTES)])
        self._pass_on(view[:-COMMENT_LENGTH_BYTES])
        self._held = held[-COMMENT_LENGTH_BYTES:]
        return len(view)

    def _pass_on(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)

    def flush(self) -> None:
        """Nothing: the zip file does not end here."""

    def finish(self) -> None:
        """Writes the comment."""
        assert self._held == bytes(COMMENT_LENGTH_BYTES)
        self._file.write(_end(self._checksum))


def write_checkpoint(content: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Writes to a temporary file in the same folder, syncs, then renames: a kill leaves the old file.

    Args:
        content: Tensors and plain data.
        path: Where to.
        previous: Keeps what `path` held before under that name.

    Raises:
        MachineError: The disk is full, a folder cannot be written to.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            archive = _SummedZip(file)
            torch.save(content, archive)  # type: ignore[arg-type]  # all it needs is write() and flush()
            archive.finish()
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)  # killed here, a run goes on from that one
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except Exception as error:
        if (cause := find_os_error(error)) is not None:
            kept = f"; {path.name} of before is intact" if path.exists() else ""
            reason = (cause.strerror or str(cause)).lower()
            raise MachineError(f"{path}: {reason} while saving{kept}") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
