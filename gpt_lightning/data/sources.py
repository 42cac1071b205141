"""Find a text: at its path, in the folder `GPT_LIGHTNING_DATA`, in the package, at a URL, or on the Hub."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.request
from pathlib import Path

from gpt_lightning.console import warn
from gpt_lightning.data.object_store import is_address
from gpt_lightning.data.text import MAX_BYTES, Text, check_text, read_text
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import packaged_folder, with_filename

DATA_ENV = "GPT_LIGHTNING_DATA"
FETCH_SECONDS = 30
DATASET = "hf:"  # prefix of hf:DATASET/CONFIG/SPLIT


def is_path(source: str) -> bool:
    """Return whether a source is a path or a glob, rather than hf:DATASET/CONFIG/SPLIT or an address."""
    return not source.startswith(DATASET) and not is_address(source)


def absolute(name: str) -> str:
    """Return the absolute path of a file; hf:DATASET/CONFIG/SPLIT and addresses are returned unchanged."""
    return os.path.abspath(name) if is_path(name) else name


def short_name(path: str | Path) -> str:
    """Return the name used in messages: the last component of a path; hf:DATASET/CONFIG/SPLIT and addresses in full."""
    return os.path.basename(path) if is_path(str(path)) else str(path)


def find_source(
    source: str, url: str | None = None, fallback: str | None = None, *, setting: str = "data.text"
) -> tuple[str, str | None]:
    """Look for a text at its path, in the folder `GPT_LIGHTNING_DATA` and in the package, then download it.

    Args:
        source: Path of a file, to which a download is saved. Datasets and globs are returned unchanged.
        url: URL to download the file from, see `parse_url`. If it has a checksum, files in `GPT_LIGHTNING_DATA` and
            downloads must match it; a file at `source` that does not match is used with a warning.
        fallback: File to use, with a warning, if the text cannot be found or downloaded.
        setting: Name of the setting in error messages.

    Returns:
        The path of the text, and `url` if the text is the one that it names, else None.

    Raises:
        InputError: The file does not exist, and there is neither a URL nor a fallback.
        MachineError: The file cannot be read or downloaded, and there is no fallback.
    """
    if "://" in source:
        is_setting = setting == "data.text"
        remedy = "give the address as data.url and a file name as data.text" if is_setting else "download it first"
        raise InputError(f"{source}: {setting} must be a file; {remedy}")
    address, sha256 = (None, None) if url is None else parse_url(url)
    if source.startswith(DATASET) or os.path.exists(source) or glob.has_magic(source):
        if sha256 is None or not os.path.isfile(source) or sha256_of(source) == sha256:
            return source, url
        warn(f"{source}: differs from the text of data.url (sha256 {sha256[:12]}...); using it anyway")
        return source, None

    tried = [f"{source}: no such file"]
    if folder := os.environ.get(DATA_ENV):
        copy = os.path.join(folder, os.path.basename(source))
        is_there = os.path.exists(copy)
        if is_there and (sha256 is None or sha256_of(copy) == sha256):
            return copy, url
        tried.append(f"{copy}: {'checksum mismatch' if is_there else 'no such file'}")
    if sha256 is None and (bundled := _find_bundled(source)):
        return bundled, url
    if address is None and fallback is None:
        raise InputError("; ".join(tried))
    if address is not None:
        try:
            fetch(address, Path(source), sha256)
            return source, url
        except MachineError as error:
            tried.append(str(error))
    if fallback is None:
        raise MachineError("; ".join(tried))
    if not os.path.exists(fallback):
        fallback = _find_bundled(fallback) or fallback
    warn(f"using the text {fallback} instead of {source} ({'; '.join(tried[1:]) or tried[0]})")
    return fallback, None


def _find_bundled(name: str) -> str | None:
    """Return the path of the text with a file's name that comes with the package, or None."""
    path = packaged_folder("texts") / os.path.basename(name)
    return str(path) if path.is_file() else None


def sha256_of(path: str) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with with_filename(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_url(url: str) -> tuple[str, str | None]:
    """Split a URL into the URL proper and the checksum in its fragment.

    Args:
        url: URL in pip's format, https://...#sha256=HEX; the fragment is optional.

    Returns:
        The URL without its fragment, and the sha256 in lower case, or None if there is no fragment.

    Raises:
        InputError: The fragment is not a sha256 checksum.
    """
    address, has_fragment, fragment = url.partition("#")
    if has_fragment and re.fullmatch("sha256=[0-9A-Fa-f]{64}", fragment) is None:
        raise InputError(f"data.url ({url}) must end with #sha256= and 64 hexadecimal digits, or have no # at all")
    return address, fragment.removeprefix("sha256=").lower() or None


def read_source(path: str, *, setting: str = "data.text", clean: str | None = None) -> Text:
    """Read a text file or, if the path starts with hf:, a split of a dataset.

    Args:
        path: Path of the file, or hf:DATASET/CONFIG/SPLIT.
        setting: Name of the setting in error messages.
        clean: None or "remove_empty_lines".

    Raises:
        InputError: The text is missing or invalid, see `read_text` and `read_dataset`.
        MachineError: The text cannot be read or downloaded.
    """
    if not path.startswith(DATASET):
        return read_text(path, setting=setting, clean=clean)
    content = read_dataset(path, setting)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Text(check_text(content, path, clean), Path(path), digest)


def read_dataset(name: str, setting: str) -> str:
    """Return the column "text" of a dataset's split, its rows concatenated.

    Args:
        name: hf:DATASET/CONFIG/SPLIT, where DATASET is OWNER/NAME on the Hugging Face Hub or a local folder.
        setting: Name of the setting in error messages.

    Raises:
        InputError: The name is invalid, the library `datasets` is not installed, or the dataset has no such split or
            no column "text".
        MachineError: The Hugging Face Hub cannot be reached.
    """
    parts = name.removeprefix(DATASET).rsplit("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{setting} must be {DATASET}DATASET/CONFIG/SPLIT, got {name!r}")
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(f"{name}: needs the extra datasets: pip install -c constraints.txt -e '.[datasets]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry; the failure is reported below
    try:
        split = datasets.load_dataset(parts[0], parts[1], split=parts[2])
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ConnectionError):
            raise MachineError(f"{name}: cannot be downloaded ({reason}); use a local text file instead") from None
        raise InputError(f"{name}: cannot be read ({reason})") from None
    if "text" not in split.column_names:
        raise InputError(f'{name}: has no column "text", only {", ".join(split.column_names)}')
    if split.data.nbytes > MAX_BYTES:
        raise InputError(f"{name}: is too large; the limit is {MAX_BYTES // 1024**3} GiB")
    return "".join(split["text"])


def fetch(url: str, path: Path, sha256: str | None) -> None:
    """Download a file atomically, within `FETCH_SECONDS`.

    Raises:
        MachineError: The server does not answer, the file is too large, too slow, incomplete or has another checksum,
            or it cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise MachineError(f"{url}: cannot be downloaded (not an http or https URL)")
    deadline = time.monotonic() + FETCH_SECONDS
    digest = hashlib.sha256()
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                while block := answer.read(1 << 16):
                    digest.update(block)
                    file.write(block)
                    if file.tell() > MAX_BYTES:
                        raise MachineError(f"{url}: larger than {MAX_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise MachineError(f"{url}: not downloaded within {FETCH_SECONDS} s")
                if file.tell() != int(answer.headers.get("Content-Length", file.tell())):
                    raise MachineError(f"{url}: download incomplete ({file.tell()} bytes), file not kept")
                file.flush()
                os.fsync(file.fileno())
        if sha256 is not None and digest.hexdigest() != sha256:
            raise MachineError(f"{url}: checksum mismatch, file not kept")
        os.replace(part, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineError(f"{url}: cannot be downloaded ({reason})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
