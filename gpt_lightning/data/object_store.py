"""Read and write objects below an address: s3://, gs://, az://, http(s):// for reading, or a local folder.

The library obstore makes the requests. It takes credentials and endpoints from the environment, such as
AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL. Addresses with credentials are refused, because addresses are stored in
checkpoints.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gpt_lightning.console import warn
from gpt_lightning.errors import InputError, MachineError

READ_ONLY = ("http://", "https://")
SCHEMES = ("s3://", "gs://", "az://", *READ_ONLY)
CONNECT_SECONDS, REQUEST_SECONDS = 10, 60
CONTACT_SECONDS = 10.0  # for which the first requests to a store are repeated
METADATA_SERVER = "169.254.169.254"  # of virtual machines in a cloud
NO_CREDENTIALS = "the environment has no credentials"
MEANINGS = {  # words of messages, and what they mean
    "Connection refused": "connection refused",
    "dns error": "unknown host",
    "operation timed out": "timeout",
    "TimedOut": "timeout",
    "response body": "incomplete answer",
    "error sending request": "no connection",
}
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; each pause is twice the one before

Answer = TypeVar("Answer")


def is_address(source: str) -> bool:
    """Return whether a source is an address of an object store rather than a path."""
    return source.startswith(SCHEMES)


class ObjectStore:
    """The objects below an address.

    Requests that fail because of the network or the server are repeated, with pauses that grow.

    Args:
        address: An address of an object store, or a local folder.
        patience: Seconds after which a request is not repeated any more.

    Attributes:
        address: The address without a slash at its end.
        stopped: When set, failed requests are not repeated.

    Raises:
        InputError: The address is invalid, or obstore is not installed.
    """

    def __init__(self, address: str, patience: float = CONTACT_SECONDS) -> None:
        self.address = address.rstrip("/")
        self.patience = patience
        self.stopped = threading.Event()
        if re.match(r"[A-Za-z][\w+.-]+:/", address) and not is_address(address):
            raise InputError(f"{address}: must begin with {', '.join(SCHEMES)}, or be a folder")
        if is_address(address):
            parts = urlsplit(address)
            if parts.username or parts.password or parts.query or parts.fragment:
                place = f"{parts.scheme}://{parts.hostname}{parts.path}"
                raise InputError(f"{place}: must have no credentials and no query; set them in the environment")
            if not parts.hostname:
                raise InputError(f"{address}: must name a bucket, as in {parts.scheme}://BUCKET/PREFIX")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be sent to a worker process of a DataLoader."""
        return {"address": self.address, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def _store(self) -> Any:
        try:
            from obstore import store
        except ModuleNotFoundError:
            raise InputError(f"{self.address}: needs the extra s3: pip install -c constraints.txt -e '.[s3]'") from None
        if not is_address(self.address):
            return store.LocalStore(Path(self.address).absolute())
        try:
            return store.from_url(
                self.address,
                client_options={
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                    "allow_http": True,
                },
                retry_config={"max_retries": 0},  # `_repeated` also repeats what arrives incomplete or damaged
            )
        except Exception as error:  # obstore raises subclasses of BaseError, ValueError and KeyError
            raise InputError(f"{self.address}: is not a valid address ({_reason(error)})") from None

    def read(self, name: str, sha256: str | None = None) -> bytes:
        """Return the content of an object.

        Args:
            name: Name of the object below the address.
            sha256: Its checksum, which the content must have.

        Raises:
            FileNotFoundError: There is no such object.
            MachineError: It cannot be read, or not without errors.
        """
        import obstore

        def attempt() -> bytes:
            content = bytes(obstore.get(self._store, name).bytes())
            if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise _DamagedError("checksum mismatch; if it persists, delete the shard and run prepare again")
            return content

        return self._repeated(attempt, f"{self.address}/{name}", "read")

    def write(self, name: str, content: Any, *, overwrite: bool = True) -> bool:
        """Write an object, completely or not at all.

        Args:
            name: Name of the object below the address.
            content: A one-dimensional buffer of bytes.
            overwrite: Whether to replace an object of this name.

        Returns:
            Whether it was written; False if there is one already.

        Raises:
            MachineError: It cannot be written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def attempt() -> bool:
            try:
                obstore.put(
                    self._store, name, content, mode="overwrite" if overwrite else "create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
            return True

        return self._repeated(attempt, f"{self.address}/{name}", "written")

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every object below the address, by name.

        Raises:
            MachineError: They cannot be listed.
        """
        import obstore

        def attempt() -> dict[str, int]:
            return {one["path"]: one["size"] for batch in obstore.list(self._store) for one in batch}

        return self._repeated(attempt, self.address, "listed")

    def _repeated(self, attempt: Callable[[], Answer], what: str, done: str) -> Answer:
        """Call a function until it succeeds, fails for good, or the store's patience is over."""
        from obstore.exceptions import BaseError

        end, pause, is_first = time.monotonic() + self.patience, FIRST_PAUSE, True
        while True:
            try:
                return attempt()
            except FileNotFoundError:
                raise
            except (BaseError, _DamagedError, OSError) as error:
                if _is_final(error) or time.monotonic() + pause > end or self.stopped.is_set():
                    raise MachineError(f"{what}: cannot be {done} ({_reason(error)})") from None
                if is_first and self.patience > CONTACT_SECONDS:
                    warn(f"{what}: could not be {done} ({_reason(error)}); trying again for {self.patience:.0f} s")
                is_first = False
                self.stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


class _DamagedError(Exception):
    """What was read has another checksum."""


def _reason(error: Exception) -> str:
    """Describe an error of obstore in a few words; its own messages have several lines."""
    message = " ".join(str(error).split())
    if METADATA_SERVER in message:  # asked for credentials if the environment has none
        return NO_CREDENTIALS
    if status := _status(error):
        return status
    for sign, meaning in MEANINGS.items():
        if sign in message:
            return meaning
    return message.partition(" Debug source:")[0][:200]


def _status(error: Exception) -> str | None:
    """Return the HTTP status that an error is about, as in "404 Not Found", or None."""
    found = re.search(r"status code: (\d{3} [A-Za-z ]+)", str(error))
    return found and found[1].strip()


def _is_final(error: Exception) -> bool:
    """Return whether a request that failed would fail again."""
    status = _status(error) or ""
    return _reason(error) == NO_CREDENTIALS or (status[:1] == "4" and status[:3] not in ("408", "429"))
