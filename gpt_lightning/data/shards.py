"""A corpus as shards of tokens in an object store, as the command `prepare` writes it.

    <address>/
        index.json             tokenizer, cleaning, and the shards with their sizes and checksums
        00000-<digits>.tokens  token ids of the first shard, uint16 or uint32, little-endian
        ...

Documents are shuffled when the shards are written, so each shard is a random sample of the corpus. Training therefore
reads one shard after another, in an order drawn for each epoch, and shuffles the windows of one shard at a time. No
window spans two shards.

Shards are downloaded to `data.cache_dir`, the next one while the current one is trained on. They all have the right
checksum when they are used.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import re
import threading
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from gpt_lightning.console import warn
from gpt_lightning.data.object_store import READ_ONLY, REQUEST_SECONDS, ObjectStore, is_address
from gpt_lightning.data.sources import sha256_of
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import replace_bytes

FORMAT = 1  # version of the index
INDEX = "index.json"
SUFFIX = ".tokens"
PATIENCE = 300.0  # seconds for which the download of a shard is repeated
OPEN_SHARDS = 4  # memory-mapped at a time


@dataclass(frozen=True)
class Shard:
    """A shard of a corpus.

    Attributes:
        name: Name of the object.
        tokens: Number of tokens.
        characters: Number of characters.
        sha256: Checksum of its bytes.
    """

    name: str
    tokens: int
    characters: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The contents of index.json.

    Attributes:
        tokenizer: Name of the tokenizer.
        vocab_size: Number of its tokens.
        clean: How the documents were cleaned, as `data.clean`.
        dtype: Type of the token ids, uint16 or uint32.
        documents: Number of documents.
        files: Number of files that they were read from.
        seed: Seed of the order of the documents.
        shards: The shards.
    """

    tokenizer: str
    vocab_size: int
    clean: str | None
    dtype: str
    documents: int
    files: int
    seed: int
    shards: tuple[Shard, ...]

    @property
    def is_valid(self) -> bool:
        """Whether all fields have possible values."""
        counts = (self.vocab_size, self.documents, self.files, *(one.tokens for one in self.shards))
        others = (self.seed, *(one.characters for one in self.shards))
        return (
            isinstance(self.tokenizer, str)
            and (self.clean is None or isinstance(self.clean, str))
            and all(type(count) is int and count > 0 for count in counts)
            and all(type(count) is int and count >= 0 for count in others)
            and self.dtype == ("uint16" if self.vocab_size <= 1 << 16 else "uint32")
            and all(re.fullmatch(r"\d{5,}-[0-9a-f]{12}\.tokens", one.name) for one in self.shards)
            and all(re.fullmatch(r"[0-9a-f]{64}", one.sha256) for one in self.shards)
            and 0 < len(self.shards) == len({one.name for one in self.shards})
        )

    def to_json(self) -> bytes:
        """Return the contents of index.json."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @property
    def sha256(self) -> str:
        """A checksum of everything that the index says, the checksums of the shards included."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @staticmethod
    def from_json(content: bytes, name: str) -> Index:
        """Parse index.json.

        Args:
            content: The bytes of the file.
            name: Its name in messages.

        Raises:
            InputError: It is not an index, or one of another version.
        """
        try:
            fields = json.loads(content)
            version = fields.pop("format")
            if version == FORMAT:
                shards = tuple(Shard(**one) for one in fields.pop("shards"))
                index = Index(shards=shards, **fields)
                if not index.is_valid:
                    raise ValueError
                return index
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{name}: is not an index of token shards") from None
        raise InputError(f"{name}: has version {version}, expected {FORMAT}; prepare the text again")


def read_index(store: ObjectStore) -> Index | None:
    """Return the index of the shards below an address, or None if there is none.

    Raises:
        InputError: The index is not valid.
        MachineError: It cannot be read.
    """
    try:
        content = store.read(INDEX)
    except FileNotFoundError:
        return None
    return Index.from_json(content, f"{store.address}/{INDEX}")


class ShardCache:
    """Shards in a folder on the disk, which several processes share.

    Args:
        store: The object store.
        index: The index of the corpus.
        folder: The folder, created if it is missing.
        most_bytes: Size above which the shards that were not used for longest are removed.
    """

    def __init__(self, store: ObjectStore, index: Index, folder: Path, most_bytes: int) -> None:
        self.store, self.index, self.folder, self.most_bytes = store, index, folder, most_bytes
        self._open: dict[int, NDArray[Any]] = {}
        self._fetching: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be sent to a worker process of a DataLoader."""
        return {**vars(self), "_open": {}, "_fetching": None}

    def tokens(self, number: int) -> NDArray[Any]:
        """Return the token ids of a shard, memory-mapped.

        Raises:
            MachineError: The shard cannot be read or stored.
        """
        found = self._open.pop(number, None)
        if found is None:
            found = np.memmap(self.fetch(number), self.index.dtype, mode="r")
        self._open[number] = found  # the last one of the dict
        for oldest in list(self._open)[:-OPEN_SHARDS]:
            del self._open[oldest]
        return found

    def fetch(self, number: int) -> Path:
        """Return the file of a shard, downloaded unless it is there.

        Raises:
            InputError: The index gives it another size.
            MachineError: The shard cannot be read or stored.
        """
        shard = self.index.shards[number]
        path = self.folder / shard.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                if path.exists():
                    if sha256_of(str(path)) == shard.sha256:
                        os.utime(path)  # the time of its last use
                        return path
                    warn(f"{path}: is damaged; downloading it again")
                try:
                    content = self.store.read(shard.name, shard.sha256)
                except FileNotFoundError:
                    raise MachineError(f"{self.store.address}/{shard.name}: the shard is missing") from None
                if len(content) != shard.tokens * np.dtype(self.index.dtype).itemsize:
                    raise InputError(f"{self.store.address}/{INDEX}: has a wrong number of tokens for {shard.name}")
                self._make_room(len(content), path)
                replace_bytes(path, content)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise MachineError(f"{self.folder}: a shard cannot be stored ({reason})") from None
        return path

    def fetch_ahead(self, numbers: list[int]) -> None:
        """Begin to download shards, one after another; an error is reported when the shard is used."""
        if self._fetching is not None and self._fetching.is_alive():
            return

        def fetch() -> None:
            with contextlib.suppress(MachineError, InputError):
                for number in numbers:
                    self.fetch(number)

        if self._fetching is None:
            atexit.register(self._stop)
        self._fetching = threading.Thread(target=fetch, daemon=True)
        self._fetching.start()

    def _stop(self) -> None:
        """Wait for the end of a request; a thread that returns to Python after its end would abort the process."""
        self.store.stopped.set()
        assert self._fetching is not None
        self._fetching.join(REQUEST_SECONDS)

    def _make_room(self, size: int, path: Path) -> None:
        """Remove the shards that were not used for longest. Processes that have opened them can still read them."""
        others = [one for one in self.folder.glob(f"*{SUFFIX}") if one != path]
        stats = sorted((one.stat().st_mtime_ns, one.stat().st_size, one) for one in others)
        total = size + sum(one[1] for one in stats)
        for _, bytes_freed, oldest in stats:
            if total <= self.most_bytes:
                break
            oldest.unlink()
            total -= bytes_freed


class ShardedTokens:
    """Consecutive shards as one sequence of token ids (N,), of which slices are read when they are used.

    Args:
        cache: The shards on the disk.
        numbers: The numbers of the shards.

    Attributes:
        pieces: The tokens of each shard, as positions in the sequence.
    """

    def __init__(self, cache: ShardCache, numbers: range) -> None:
        self._cache, self._numbers = cache, numbers
        ends = list(itertools.accumulate((cache.index.shards[i].tokens for i in numbers), initial=0))
        self.pieces = [range(begin, end) for begin, end in itertools.pairwise(ends)]

    def __len__(self) -> int:
        return self.pieces[-1].stop

    def __getitem__(self, key: slice) -> NDArray[Any]:
        begin, end, step = key.indices(len(self))
        assert step == 1
        found = [np.zeros(0, self._cache.index.dtype)]
        piece = bisect_right(self.pieces, begin, key=lambda one: one.start) - 1
        while begin < end:
            one = self.pieces[piece]
            found.append(self._cache.tokens(self._numbers[piece])[begin - one.start : end - one.start])
            begin, piece = one.stop, piece + 1
        return found[1] if len(found) == 2 else np.concatenate(found)

    def fetch_ahead(self, pieces: list[int]) -> None:
        """Begin to download the shards of some pieces, one after another."""
        self._cache.fetch_ahead([self._numbers[piece] for piece in pieces])

    def sample(self) -> NDArray[Any]:
        """Return the tokens of the first shard, which is a random sample of the documents."""
        return self._cache.tokens(self._numbers[0])


def open_shards(
    address: str, tokenizer: Tokenizer, *, clean: str | None, cache_dir: Path, cache_gigabytes: float, setting: str
) -> ShardCache:
    """Read the index of the shards below an address, and check that they fit the settings.

    Args:
        address: An address of an object store, or a local folder.
        tokenizer: Tokenizer of the run.
        clean: How the documents must have been cleaned.
        cache_dir: Folder whose subfolder `shards` caches them.
        cache_gigabytes: Most space that these take, in 10^9 bytes.
        setting: Name of the setting in error messages.

    Raises:
        InputError: There is no index, or the shards do not fit the settings.
        MachineError: The index cannot be read.
    """
    first = ObjectStore(address)
    index = read_index(first)
    if index is None:
        names = [] if address.startswith(READ_ONLY) else list(first.sizes())
        if any(name.endswith(SUFFIX) for name in names):
            raise InputError(f"{address}: has shards but no {INDEX}; run prepare again, which continues")
        raise InputError(f"{address}: {setting} has no {INDEX}; write one with the command prepare")
    if (index.tokenizer, index.vocab_size) != (tokenizer.name, tokenizer.vocab_size):
        sizes = f"{index.vocab_size:,} and {tokenizer.vocab_size:,} tokens"
        raise InputError(
            f"{address}: has tokens of tokenizer {index.tokenizer}, but data.tokenizer is {tokenizer.name} ({sizes}); "
            "change data.tokenizer, or prepare the text again"
        )
    if index.clean != clean:
        names = ["null" if one is None else one for one in (index.clean, clean)]
        raise InputError(f"{address}: was prepared with clean {names[0]}, but data.clean is {names[1]}")
    folder = cache_dir.absolute() / "shards" / index.sha256[:16]
    largest = max(one.tokens for one in index.shards) * np.dtype(index.dtype).itemsize
    if cache_gigabytes * 1e9 < 2 * largest:
        least = f"{2 * largest / 1e9:.3g}, the size of two shards"
        raise InputError(f"data.cache_gigabytes ({cache_gigabytes:g}) must be at least {least}")
    store = ObjectStore(address, PATIENCE if is_address(address) else 0)  # a damaged file stays damaged
    return ShardCache(store, index, folder, int(cache_gigabytes * 1e9))
