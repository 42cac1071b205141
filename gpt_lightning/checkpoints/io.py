"""Read checkpoints with verified checksums, and write them atomically.

A checkpoint is a file of `torch.save`: a zip archive with a CRC32 of each record, loaded with `weights_only=True`.
A flipped bit is either detected or has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpt_lightning.checkpoints.metadata import FORMAT, PLAIN, SCHEMA, check_schema
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import find_os_error, sync_folder
from gpt_lightning.runs.folder import resolve_latest

FOLDER_ATTRIBUTE = 0x10  # the MS-DOS directory flag in a zip record's external_attr
ZIP_START = b"PK\x03\x04"
IMPORTABLE = (".safetensors", ".pth", ".pt", ".bin")  # endings of other programs' weights


def read_checkpoint(path: str | os.PathLike[str], *, mmap: bool = True) -> dict[str, Any]:
    """Verify the checksums of a checkpoint of this program and read it.

    Args:
        path: The file.
        mmap: Whether tensors are memory-mapped from the file instead of copied into memory.

    Returns:
        The content of the file, on the CPU.

    Raises:
        InputError: The file does not exist, is damaged, contains more than tensors and plain data, was not
            written by this program, or has another format version.
    """
    name = resolve_latest(os.fspath(path))
    if "://" in name:
        raise InputError(f"{name}: must be a local file")
    if not os.path.exists(name):
        raise InputError(f"{name}: no such file")
    if os.path.isdir(name):
        places = ("checkpoints/*.ckpt", "*.ckpt", "latest/*.ckpt")
        found = [path for place in places for path in sorted(Path(name).glob(place))]
        hint = f"; it contains {found[0]}" if found else _import_hint(name)
        raise InputError(f"{name}: is a folder, not a checkpoint{hint}")
    if not os.path.isfile(name):  # reading a pipe or a device may never end
        raise InputError(f"{name}: must be a regular file")
    checkpoint = load_plain(name, f"a checkpoint{_import_hint(name)}", mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("gpt_lightning"), dict):
        raise InputError(f"{name}: is not a checkpoint of gpt_lightning{_import_hint(name)}")
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


def _import_hint(name: str) -> str:
    """Return the end of a message about a file or folder that looks like another program's weights, else nothing."""
    is_importable = name.endswith(IMPORTABLE) or os.path.isfile(os.path.join(name, "config.json"))
    return f"; convert it with `import --from {name} --output NEW.ckpt`" if is_importable else ""


def load_plain(name: str, kind: str, mmap: bool) -> Any:
    """Load tensors and plain data from a file of `torch.save`, on the CPU.

    Args:
        name: Name of the file.
        kind: What the file should be (and what to do if it is not), for the error message.
        mmap: Whether tensors are memory-mapped from the file instead of copied into memory.

    Raises:
        InputError: The file is damaged, contains more than tensors and plain data, or is not a file of `torch.save`.
    """
    verify_checksums(name, kind)
    try:
        return torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise InputError(f"{name}: refused, because it contains more than tensors and plain data") from None
    except (OSError, MemoryError):
        raise
    except Exception:  # unpickling arbitrary bytes can raise anything
        raise InputError(f"{name}: is not {kind}") from None


def verify_checksums(name: str, kind: str) -> None:
    """Verify the CRC32 of each record in a file of `torch.save`.

    A flipped bit outside the records makes the file unreadable or has no effect, with one exception, which is checked
    here: PyTorch does not read a record that is marked as a folder and leaves its memory uninitialized.

    Args:
        name: Name of the file.
        kind: See `load_plain`.

    Raises:
        InputError: The file is truncated or damaged, or is not a zip archive.
    """
    try:
        with zipfile.ZipFile(name) as archive:
            if any(record.external_attr & FOLDER_ATTRIBUTE for record in archive.infolist()):
                raise zipfile.BadZipFile
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        # RuntimeError: a record marked as encrypted. EINVAL: a negative offset; other OSErrors come from the disk.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        with open(name, "rb") as file:
            was_zip = ZIP_START.startswith(file.read(len(ZIP_START)))  # an empty file may be a truncated one
        raise InputError(f"{name}: is {'not a complete checkpoint' if was_zip else f'not {kind}'}") from None
    if damaged is not None:
        raise InputError(f"{name}: checksum mismatch in {damaged.split('/', 1)[-1]}")


def write_checkpoint(content: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint atomically: write a temporary file in the same folder, sync it, then rename it.

    Args:
        content: Tensors and plain data.
        path: The file to write.
        previous: New name for the file that `path` replaces; None to delete that file.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    prepare_checkpoint(content, path)
    publish_checkpoint(path, previous)


def prepare_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint to a temporary file beside its place, where `publish_checkpoint` moves it.

    Args:
        content: Tensors and plain data.
        path: The place of the checkpoint. A checkpoint that was prepared for it before is replaced.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    with _saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(_temporary(path), "wb") as file:
            torch.save(content, file)


def publish_checkpoint(path: Path, previous: Path | None = None) -> None:
    """Sync the checkpoint that was prepared for a place, and move it there.

    Args:
        path: The place of the checkpoint.
        previous: New name for the file that `path` replaces; None to delete that file.

    Raises:
        MachineError: The disk is full, or the folder cannot be written to.
    """
    temporary = _temporary(path)
    with _saving(path):
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)  # if killed here, the run resumes from `previous`
        os.replace(temporary, path)
        sync_folder(path.parent)


def discard_checkpoint(path: Path) -> None:
    """Delete the checkpoint that was prepared for a place, if there is one."""
    with contextlib.suppress(OSError):
        _temporary(path).unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


@contextlib.contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Name the checkpoint in an error of the system, and leave no temporary file behind."""
    try:
        yield
    except BaseException as error:
        discard_checkpoint(path)
        if isinstance(error, Exception) and (cause := find_os_error(error)) is not None:
            kept = f"; the previous {path.name} is intact" if path.exists() else ""
            reason = (cause.strerror or str(cause)).lower()
            raise MachineError(f"{path}: {reason} while saving{kept}") from error
        raise
