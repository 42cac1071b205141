"""Where a text comes from: a path, the folder `GPT_LIGHTNING_DATA`, a URL, or a dataset of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import time
import urllib.request
from pathlib import Path

from gpt_lightning.console import warn
from gpt_lightning.data.text import MAX_BYTES, Text, check_text, read_text
from gpt_lightning.errors import InputError, MachineError

DATA_VARIABLE = "GPT_LIGHTNING_DATA"
FETCH_SECONDS = 30
DATASET = "hf:"  # begins the name of a dataset's split


def absolute(name: str) -> str:
    """A path made absolute; the name of a dataset's split as it is."""
    return name if name.startswith(DATASET) else os.path.abspath(name)


def short_name(path: str | Path) -> str:
    """How messages call a text: a file's name without its folders, a dataset's split in full."""
    return str(path) if str(path).startswith(DATASET) else os.path.basename(path)


def find_text(
    path: str,
    *,
    setting: str = "data.text",
    address: str | None = None,
    sha256: str | None = None,
    fallback: str | None = None,
    source: str | None = None,
    clean: str | None = None,
    warns: bool = True,
) -> Text:
    """Looks for a text at its path, in the folder of `GPT_LIGHTNING_DATA`, at its address.

    Args:
        path: The file; a fetched text is kept there. Or the name of a dataset's split, see `read_dataset`.
        setting: Its name in messages.
        address: http or https URL to fetch it from, once.
        sha256: Checksum of the file's bytes. A copy from the folder or the address must have it; of
            the file at `path` itself a warning says that it is another text.
        source: In words, where the text comes from; said where it is missing.
        fallback: File to take, with a warning, where the text cannot be had.
        clean: None or "remove_empty_lines".
        warns: Whether to warn of another text at `path`; not where the caller refuses one.

    Raises:
        InputError: There is no such file and no address, or it is not a text.
        MachineError: It cannot be read or fetched.
    """
    if path.startswith(DATASET) or os.path.exists(path):
        text = read_source(path, setting=setting, clean=clean)
        if warns and sha256 is not None and text.sha256 != sha256:
            warn(f"{path}: is not the text that data.sha256 names ({sha256[:12]}...); using it as it is")
        return text

    tried = [f"{path}: no such file"]
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        copy = os.path.join(folder, os.path.basename(path))
        if os.path.exists(copy):
            text = read_text(copy, setting=setting, clean=clean)
            if sha256 is None or text.sha256 == sha256:
                return text
            tried.append(f"{copy}: checksum mismatch")
        else:
            tried.append(f"{copy}: no such file")
    if address is None and fallback is None:
        raise InputError("; ".join(tried) + (f"; needed: {source}" if source else ""))
    if address is not None:
        try:
            fetch(address, Path(path), sha256)
            return read_text(path, setting=setting, clean=clean)
        except MachineError as error:
            tried.append(str(error))
    if fallback is None:
        raise MachineError("; ".join(tried))
    warn(f"training text is {fallback} instead of {path} ({'; '.join(tried[1:]) or tried[0]})")
    return read_text(fallback, setting="data.fallback_text", clean=clean)


def read_source(path: str, *, setting: str = "data.text", clean: str | None = None) -> Text:
    """Read a text file or, where the path begins with hf:, a dataset's split.

    Raises:
        InputError: See `read_text` and `read_dataset`.
        MachineError: It cannot be read or fetched.
    """
    if not path.startswith(DATASET):
        return read_text(path, setting=setting, clean=clean)
    content = read_dataset(path, setting)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Text(check_text(content, path, clean), Path(path), digest)


def read_dataset(name: str, setting: str) -> str:
    """A split of a dataset, its rows of text one after the other as they are.

    Args:
        name: hf:DATASET/CONFIG/SPLIT, where DATASET is OWNER/NAME on the Hugging Face Hub or a local folder.
        setting: Its name in messages.

    Raises:
        InputError: The name is wrong, the extra is not installed, or there is no text in it.
        MachineError: The Hub cannot be reached.
    """
    parts = name.removeprefix(DATASET).rsplit("/", 2)
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{setting} must be {DATASET}DATASET/CONFIG/SPLIT, got {name!r}")
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(f"{name}: needs the extra datasets: pip install -c constraints.txt -e '.[datasets]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what failed is said below
    try:
        split = datasets.load_dataset(parts[0], parts[1], split=parts[2])
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ConnectionError):
            raise MachineError(f"{name}: cannot be fetched ({reason}); a text file serves as well") from None
        raise InputError(f"{name}: cannot be read ({reason})") from None
    if "text" not in split.column_names:
        raise InputError(f'{name}: has no column "text", only {", ".join(split.column_names)}')
    if split.data.nbytes > MAX_BYTES:
        raise InputError(f"{name}: more than this program reads (limit {MAX_BYTES // 1024**3} GiB)")
    return "".join(split["text"])


def fetch(address: str, path: Path, sha256: str | None) -> None:
    """Fetches a file whole or not at all, within `FETCH_SECONDS`.

    Raises:
        MachineError: No answer, too large, too slow, the wrong checksum, or nowhere to write it.
    """
    if not address.startswith(("http://", "https://")):
        raise MachineError(f"{address}: cannot be fetched (not an http or https address)")
    deadline = time.monotonic() + FETCH_SECONDS
    digest = hashlib.sha256()
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                while block := answer.read(1 << 16):
                    digest.update(block)
                    file.write(block)
                    if file.tell() > MAX_BYTES:
                        raise MachineError(f"{address}: larger than {MAX_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise MachineError(f"{address}: not fetched within {FETCH_SECONDS} s")
                if file.tell() != int(answer.headers.get("Content-Length", file.tell())):
                    raise MachineError(f"{address}: cut short after {file.tell()} bytes, file not kept")
                file.flush()
                os.fsync(file.fileno())
        if sha256 is not None and digest.hexdigest() != sha256:
            raise MachineError(f"{address}: checksum mismatch, file not kept")
        os.replace(part, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineError(f"{address}: cannot be fetched ({reason})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
