from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from texts import STORIES, make_tokenizers, names, to_lines, write

from gpt_lightning.data import documents, token_cache
from gpt_lightning.data.documents import Piece, read_documents
from gpt_lightning.data.text import remove_empty_lines
from gpt_lightning.data.token_cache import encode_batches, prepare
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, MachineError


@pytest.fixture
def stories(in_tmp: Path) -> Path:
    """A folder with three documents in two files."""
    write(in_tmp / "in" / "a.txt", STORIES[0])
    write(in_tmp / "in" / "b.jsonl", to_lines(STORIES[1:]))
    return in_tmp / "in"


def test_operating_system_errors_name_the_file(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(in_tmp / "a.txt", "x")

    broken = mock.mock_open()
    broken.return_value.read.side_effect = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(token_cache, "open", broken, False)
    with pytest.raises(MachineError, match=f"^{path}: input/output error$"):
        prepare(str(path), "bytes", None, in_tmp / "cache")
    denied = PermissionError(errno.EACCES, "Denied", "a.txt")
    monkeypatch.setattr(documents, "open", mock.Mock(side_effect=denied), False)
    with pytest.raises(MachineError, match="^a.txt: denied$"):
        list(*read_documents(path))


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("clean", [None, "remove_empty_lines"])
def test_every_document_is_encoded_and_followed_by_endoftext(stories: Path, name: str, clean: str | None) -> None:
    write(stories / "c.txt", "")
    write(stories / "d.jsonl", "\n" + to_lines(["", " \n\u3000"]))
    tokenizer = load_tokenizer(name)
    texts = [text.replace("\r\n", "\n") for text in STORIES]
    if clean:
        texts = [remove_empty_lines(text) for text in texts]
    ids = [[*tokenizer.encode(text), {"gpt2": 50256, "bytes": 256}[name]] for text in texts]

    made = prepare(str(stories), name, clean, stories.parent / "cache")

    assert made.tokens.tolist() == list(chain(*ids))
    assert (made.tokens.dtype, isinstance(made.tokens, np.memmap)) == (np.uint16, True)
    assert made.ends.tolist() == [sum(map(len, ids[:n])) for n in (1, 2, 3)]
    assert made.character_ends.tolist() == [sum(map(len, texts[:n])) for n in (1, 2, 3)]
    assert (made.ends.dtype, made.character_ends.dtype) == (np.int64, np.int64)
    assert (made.characters, made.files, made.documents) == (len("".join(texts)), 4, 3)


def test_large_vocabularies_are_stored_in_four_bytes(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = next(tokenizer for tokenizer in make_tokenizers() if tokenizer.name == "o200k_base")
    monkeypatch.setattr(token_cache, "load_tokenizer", lambda _: large)

    made = prepare(str(stories), "o200k_base", None, stories.parent / "cache")

    assert made.tokens.dtype == np.uint32
    assert made.tokens[made.ends - 1].tolist() == [199999] * 3


def test_a_corpus_of_blank_documents_is_refused(in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.txt", " \n")
    write(in_tmp / "in" / "b.jsonl", to_lines([""]))

    with pytest.raises(InputError, match=r"^in: contains only whitespace \(2 files\)$"):
        prepare("in", "bytes", None, in_tmp / "cache")
    assert names(in_tmp / "cache") == []


def test_several_processes_encode_the_same_tokens_as_one(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = random.Random(1).choices(["low", "water", "lamp", "o'clock", "12", "…", "Zwölf\n"], k=40_000)
    for number in range(4):
        texts = [" ".join(words[start : start + 700]) for start in range(number, len(words), 2000)]
        write(in_tmp / "in" / f"{number}.jsonl", to_lines(texts))
    write(in_tmp / "in" / "long.txt", " ".join(words))
    monkeypatch.setattr(documents, "PIECE", 20_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one = prepare("in", "gpt2", None, in_tmp / "one")
    assert "encoding" not in capsys.readouterr().err

    monkeypatch.setattr(token_cache, "IN_PROCESS_BYTES", 0)
    read = made = ahead = 0
    batch_pieces, encode = documents.batch_pieces, token_cache.encode_batches

    def count_read(*arguments) -> Iterator[list[Piece]]:
        nonlocal read, ahead
        for batch in batch_pieces(*arguments):
            read += 1
            ahead = max(ahead, read - made)
            yield batch

    def count_made(*arguments):
        nonlocal made
        for encoded in encode(*arguments):
            made += 1
            yield encoded

    monkeypatch.setattr(token_cache, "batch_pieces", count_read)
    monkeypatch.setattr(token_cache, "encode_batches", count_made)
    two = prepare("in", "gpt2", None, in_tmp / "two")

    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.ends, two.ends)
    assert (one.characters, one.documents, one.sha256) == (two.characters, two.documents, two.sha256)
    assert read == made > 10
    assert ahead <= 5  # two batches per worker and the one that was read last
    assert "encoding: 100%" in capsys.readouterr().err


def test_a_killed_worker_is_a_machine_error() -> None:
    def batches() -> Iterator[list[Piece]]:
        yield [Piece("a", True)]
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(MachineError, match="a process that encodes documents was killed"):
        list(encode_batches(batches(), "bytes", 2))


def test_a_moved_corpus_is_not_encoded_again(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = stories.parent / "cache"
    first = prepare(str(stories), "bytes", None, cache)
    assert names(cache) == [first.sha256[:16]]
    assert names(cache / first.sha256[:16]) == ["documents.npy", "meta.json", "tokens.bin"]

    shutil.move(stories, stories.parent / "elsewhere")
    monkeypatch.setattr(token_cache, "encode_pieces", None)
    second = prepare("elsewhere/*", "bytes", None, cache)

    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.ends, second.ends)
    assert np.array_equal(first.character_ends, second.character_ends)
    for field in ("characters", "sha256", "files", "documents"):
        assert getattr(first, field) == getattr(second, field)


def test_the_key_depends_on_everything_the_tokens_depend_on(stories: Path) -> None:
    cache = stories.parent / "cache"

    def key(name: str = "bytes", clean: str | None = None) -> str:
        return prepare(str(stories), name, clean, cache).sha256

    keys = [key(), key("gpt2"), key(clean="remove_empty_lines")]
    (stories / "a.txt").write_text(STORIES[0] + ".")
    keys.append(key())
    (stories / "a.txt").rename(stories / "c.txt")
    keys.append(key())
    with mock.patch.object(token_cache, "FORMAT", 2):
        keys.append(key())

    assert len(set(keys)) == 6
    assert names(cache) == sorted(key[:16] for key in keys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.bin", 65),
        ("tokens.bin", 60000),
        ("tokens.bin", b"12345678"),
        ("tokens.bin", b"123"),
        ("tokens.bin", b""),
        ("tokens.bin", None),
        ("documents.npy", b""),
        ("documents.npy", b"12345678"),
        ("documents.npy", None),
        ("meta.json", b"{"),
        ("meta.json", b"[]"),
        ("meta.json", b'{"dtype": "uint16", "key": "another"}'),
        ("meta.json", None),
    ],
)
def test_a_damaged_cache_is_encoded_again(
    stories: Path, name: str, content: bytes | int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = stories.parent / "cache"
    tokens = prepare(str(stories), "bytes", None, cache).tokens.tolist()
    (folder,) = cache.iterdir()
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, int):  # as many tokens as before
        write(folder / name, np.full(len(tokens), content, np.uint16).tobytes())
    else:
        write(folder / name, content)

    assert prepare(str(stories), "bytes", None, cache).tokens.tolist() == tokens
    assert capsys.readouterr().err == f"gpt_lightning: warning: {folder}: is damaged; encoding its documents again\n"
    assert prepare(str(stories), "bytes", None, cache).tokens.tolist() == tokens
    assert capsys.readouterr().err == ""
    assert names(cache) == [folder.name]


def test_an_interrupted_preparation_leaves_nothing(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = token_cache.encode_pieces, []

    def interrupt(*arguments):
        calls.append(names(stories.parent / "cache"))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(documents, "PIECE", 1)
    monkeypatch.setattr(token_cache, "encode_pieces", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(stories), "bytes", None, stories.parent / "cache")

    assert [len(found) for found in calls] == [1, 1, 1]
    assert names(stories.parent / "cache") == []


def test_a_full_disk_leaves_nothing(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"^cache: the encoded documents cannot be written \(no space left on dev"):
        prepare(str(stories), "bytes", None, Path("cache"))
    assert names(Path("cache")) == []


def test_a_cache_folder_that_cannot_be_created_is_a_machine_error(stories: Path) -> None:
    write(stories.parent / "cache", "a file")

    with pytest.raises(MachineError, match=r"^cache: the encoded documents cannot be written \((file exists|not)"):
        prepare(str(stories), "bytes", None, Path("cache"))


@pytest.mark.parametrize(("name", "tokens"), [("bytes", "60.0 GB"), ("gpt2", "15.0 GB")])
def test_a_text_whose_tokens_do_not_fit_on_the_disk_is_refused_before_it_is_read(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, name: str, tokens: str
) -> None:
    with open("huge.txt", "wb") as file:
        file.truncate(60 * 10**9)  # a sparse file, which takes no space
    write(Path("cache/0123456789abcdef/tokens.bin"), b"1" * 10**6)
    usage = shutil.disk_usage(in_tmp)._replace(free=14 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == in_tmp / "cache" else None)
    monkeypatch.setattr(token_cache, "open", mock.Mock(side_effect=AssertionError), False)

    message = (
        f"huge.txt: the tokens of 60.0 GB of text take at least {tokens}, but data.cache_dir (cache) has 14.0 GB free; "
        "name a folder on another disk"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        prepare("huge.txt", name, None, Path("cache"))
    with open("cache/0123456789abcdef/tokens.bin", "wb") as file:
        file.truncate(60 * 10**9)  # its tokens may already be in the cache
    with pytest.raises(AssertionError):
        prepare("huge.txt", name, None, Path("cache"))


def test_a_large_binary_file_is_not_read_to_its_end(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("huge.txt", "wb") as file:
        file.truncate(60 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: mock.Mock(free=10**12))

    with pytest.raises(InputError, match="^huge.txt: contains NUL bytes; not a text file$"):
        prepare("huge.txt", "bytes", None, Path("cache"))
    assert names(in_tmp) == ["huge.txt"]


def test_a_file_that_changes_while_it_is_read_is_refused(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = token_cache.encode_pieces

    def change(*arguments):
        write(stories / "a.txt", "another")
        return encode(*arguments)

    monkeypatch.setattr(token_cache, "encode_pieces", change)
    with pytest.raises(InputError, match="a file changed while it was read; try again"):
        prepare(str(stories), "bytes", None, stories.parent / "cache")
    assert names(stories.parent / "cache") == []


@pytest.mark.parametrize("intact", [True, False])
def test_another_process_may_write_the_cache_first(
    stories: Path, monkeypatch: pytest.MonkeyPatch, intact: bool
) -> None:
    publish = token_cache._publish

    def publish_second(temporary: Path, folder: Path, key: str) -> None:
        shutil.copytree(temporary, folder)
        if not intact:
            (folder / "tokens.bin").unlink()
        publish(temporary, folder, key)

    monkeypatch.setattr(token_cache, "_publish", publish_second)
    made = prepare(str(stories), "bytes", None, stories.parent / "cache")

    assert made.documents == 3
    assert names(stories.parent / "cache") == [made.sha256[:16]]


KILLED = """
import multiprocessing, sys, time
from pathlib import Path
from gpt_lightning.data import token_cache as corpus

def stall(files, clean, advance):
    yield [corpus.Piece("some words", True)]
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    corpus.IN_PROCESS_BYTES = 0
    corpus.os.cpu_count = lambda: 2
    corpus.batch_pieces = stall
    corpus.prepare("in", "bytes", None, Path("cache"))
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_process_leaves_no_cache_and_no_workers(stories: Path) -> None:
    script = write(stories.parent / "killed.py", KILLED)
    cache = stories.parent / "cache"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        other = cache / f"{'0' * 16}.tmp-{os.getppid()}"
        other.mkdir()
        (left,) = set(names(cache)) - {other.name}
        assert left.endswith(f".tmp-{process.pid}")
        process.send_signal(signal.SIGKILL)
        process.wait()

    made = prepare(str(stories), "bytes", None, cache)

    assert names(cache) == sorted([made.sha256[:16], other.name])  # the folder of a running process is kept
    assert made.documents == 3
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(is_running, workers))


def test_a_refused_corpus_leaves_no_folders(in_tmp: Path) -> None:
    Path("bad.jsonl").write_text("{}\n")

    with pytest.raises(InputError, match='bad.jsonl:1: "text" is missing'):
        prepare("bad.jsonl", "bytes", None, Path("data/cache"))

    assert os.listdir() == ["bad.jsonl"]
