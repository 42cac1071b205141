from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import chain, pairwise, product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiktoken
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from gpt_lightning.data import documents, token_cache
from gpt_lightning.data.corpus import DocumentsCorpus, is_documents
from gpt_lightning.data.documents import Piece, cut_pieces, find_documents, read_documents
from gpt_lightning.data.text import read_text, remove_empty_lines
from gpt_lightning.data.token_cache import EncodedDocuments, encode_batches, prepare
from gpt_lightning.data.tokenizer import ByteTokenizer, TiktokenTokenizer, Tokenizer, load_tokenizer
from gpt_lightning.errors import InputError, MachineError

STORIES = ["The lamp burned low.\n\n\n It's 12 o'clock", "Zwölf Uhr … 日本語\r\nund so weiter.", "end"]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def to_lines(texts: list[str]) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def stories(in_tmp: Path) -> Path:
    """A folder with three documents in two files."""
    write(in_tmp / "in" / "a.txt", STORIES[0])
    write(in_tmp / "in" / "b.jsonl", to_lines(STORIES[1:]))
    return in_tmp / "in"


def make_corpus(character_ends: list[int], ends: list[int]) -> DocumentsCorpus:
    tokens = np.arange(ends[-1], dtype=np.uint16)
    encoded = EncodedDocuments(
        tokens, np.array(ends), character_ends[-1], np.array(character_ends), "0" * 64, 1, len(character_ends)
    )
    return DocumentsCorpus(Path("in"), None, encoded)


# Sources


def test_a_folder_is_searched_to_its_depths(in_tmp: Path) -> None:
    for name in ["b.txt", "a/z.jsonl", "a/b/c.txt", ".hidden.txt", ".git/x.txt", "read.me", "a.txt/inner.txt"]:
        write(in_tmp / "in" / name, "x")

    found = [str(path.relative_to(in_tmp / "in")) for path in find_documents(str(in_tmp / "in"))]

    assert found == ["a/b/c.txt", "a/z.jsonl", "a.txt/inner.txt", "b.txt"]


def test_what_cannot_be_listed_or_read_in_a_folder_is_said(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_tmp / "a" / "b").mkdir(parents=True)
    (in_tmp / "a" / "link.txt").symlink_to(in_tmp / "nothing")
    assert find_documents("a") == [Path("a/link.txt")]
    with pytest.raises(InputError, match="a/link.txt: no such file"):
        list(chain(*read_documents(Path("a/link.txt"))))

    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MachineError, match="a/b: permission denied"):
        find_documents("a")


def test_globs_and_single_files(in_tmp: Path) -> None:
    for name in ["b.txt", "a.txt", "deep/er/c.jsonl", "x.md", "d[1].txt"]:
        write(in_tmp / name, "x")

    assert find_documents("*") == [Path("a.txt"), Path("b.txt"), Path("d[1].txt")]
    assert find_documents("**/*.jsonl") == [Path("deep/er/c.jsonl")]
    assert find_documents("[ab].txt") == [Path("a.txt"), Path("b.txt")]
    assert find_documents("d[1].txt") == [Path("d[1].txt")]
    assert find_documents("a.txt") == [Path("a.txt")]


def test_sources_without_documents_are_refused(in_tmp: Path) -> None:
    write(in_tmp / "in" / "x.md", "x")
    with pytest.raises(InputError, match="^in: no .txt or .jsonl file below it$"):
        find_documents("in")
    with pytest.raises(InputError, match=r"^in/\*: no .txt or .jsonl file matches it$"):
        find_documents("in/*")
    with pytest.raises(InputError, match="^a.txt: no such file$"):
        find_documents("a.txt")
    with pytest.raises(InputError, match="x.md: must be a folder, a glob, or a file that ends with .txt or .jsonl"):
        find_documents("in/x.md")


def test_what_is_a_corpus(in_tmp: Path) -> None:
    write(in_tmp / "a.txt", "x")
    write(in_tmp / "a[1].txt", "x")

    assert all(map(is_documents, [str(in_tmp), "*.txt", "?.txt", "[a].txt", "missing.jsonl"]))
    assert not any(map(is_documents, ["a.txt", "missing.txt", "a[1].txt", ""]))


# Documents


@given(
    st.lists(st.sampled_from([b"\xef\xbb\xbf", b"\r", b"\n", b" ", b"ab", "é日😀".encode(), b"\x80", b"\xf0", b"\0"])),
    st.integers(1, 9),
)
def test_a_text_in_blocks_is_the_text_as_a_whole(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], n: int):
    path = write(tmp_path_factory.getbasetemp() / "blocks.txt", b"ab" + b"".join(parts))

    def read_in_blocks() -> str:
        (document,) = read_documents(path)
        return "".join(document)

    def outcome(read) -> str:
        try:
            return read()
        except InputError as error:
            return str(error)

    with mock.patch.object(documents, "PIECE", n):
        found = outcome(read_in_blocks)

    expected = outcome(lambda: read_text(path).content)
    # Decoded block by block, what comes first is told first; as a whole, UTF-8 comes before NUL.
    assert found == expected or ("contains NUL" in found and "not UTF-8" in expected)


def test_a_byte_order_mark_is_left_out_with_a_warning(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(in_tmp / "a.txt", b"\xef\xbb\xbfab")
    write(in_tmp / "b.jsonl", b"\xef\xbb\xbf" + to_lines(["\ufeffcd\r\re"]).encode())

    assert ["".join(d) for name in ("a.txt", "b.jsonl") for d in read_documents(Path(name))] == ["ab", "cd\n\ne"]
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["a.txt", "b.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', r"not JSON \(Expecting value\)"),
        (b'{"text": "a"} {"text": "b"}', r"not JSON \(Extra data\)"),
        (b'{"id": ' + b"1" * 5000 + b"}", r"not JSON \(Exceeds the limit"),
        (b"[" * 100_000, r"not JSON \("),
        (b'["text"]', 'must be a JSON object with a "text", is a list'),
        (b'{"txt": "a"}', 'has no string under "text"'),
        (b'{"text": 3}', 'has no string under "text"'),
        (b'{"text": "a\\u0000"}', '"text" contains NUL; not a text'),
        (b'{"text": "a\\ud800"}', r'"text" contains half a character \(\\ud800\)'),
        (b'{"text": "\x80"}', r"not UTF-8 text \(byte 0x80 at offset 10\)"),
    ],
)
def test_lines_that_are_no_documents_are_refused(in_tmp: Path, line: bytes, message: str) -> None:
    write(in_tmp / "corpus.jsonl", b'{"text": "fine"}\r\n \n' + line + b"\n")

    with pytest.raises(InputError, match=f"^corpus.jsonl:3: {message}"):
        prepare("corpus.jsonl", "bytes", None, in_tmp / "cache")
    assert names(in_tmp / "cache") == []


def test_a_line_without_end_is_refused(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_LINE", 1 << 20)
    write(in_tmp / "a.jsonl", to_lines(["x" * (1 << 20)]))

    with pytest.raises(InputError, match="^a.jsonl:1: longer than 1 MiB, the limit for a line$"):
        list(read_documents(Path("a.jsonl")))


def test_what_the_system_refuses_names_the_file(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@given(st.lists(st.sampled_from(["\n", " ", "\t", "\x0b", "\u2028", "ab", "c d"])), st.data())
def test_cleaning_in_chunks_is_cleaning_the_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    assert "".join(documents.clean_chunks(chunks)) == remove_empty_lines(text)


# Encoding


def make_tokenizers() -> list[Tokenizer]:
    """bytes, gpt2, and the patterns of newer encodings over merges that join whatever a pattern lets them."""
    gpt2 = load_tokenizer("gpt2")
    assert isinstance(gpt2, TiktokenTokenizer)
    ranks = dict(gpt2._encoding._mergeable_ranks)
    for first, second in product(range(128), repeat=2):
        ranks.setdefault(bytes([first, second]), len(ranks))
    tokenizers: list[Tokenizer] = [ByteTokenizer(), gpt2]
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=ranks):
        for made in (openai_public.cl100k_base(), openai_public.o200k_base()):
            tokenizers.append(TiktokenTokenizer(made["name"], tiktoken.Encoding(**made)))
    return tokenizers


TOKENIZERS = make_tokenizers()
WORDS = st.sampled_from(
    [
        " ",
        "  ",
        "\n",
        " \n",
        "\t",
        "'s",
        "'",
        "a",
        "The",
        "É",
        "日",
        "²",
        "7",
        "1234",
        ".",
        "!!",
        "_",
        "<|endoftext|>",
        "\u3000",
    ]
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.name)
@given(st.lists(WORDS | st.text(max_size=3), min_size=5), st.integers(1, 6))
@example(["a_\n", "b!\n", "c7\n", "日\n "], 3)
@example(["a_ ", "b! ", "c7 ", "日  "], 3)
def test_the_ids_of_pieces_are_those_of_the_whole(tokenizer: Tokenizer, words: list[str], n: int) -> None:
    text = "".join(words)
    chunks = [text[start : start + n] for start in range(0, len(text), n)]

    with mock.patch.object(documents, "PIECE", 1):
        pieces = list(cut_pieces(chunks))

    if not text.strip():
        assert pieces == []
        return
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [i for piece in pieces for i in tokenizer.encode(piece.text)] == tokenizer.encode(text)


def test_pieces_have_the_size_that_was_asked_for() -> None:
    chunks = ["low water and " * 10] * 20  # 140 characters each
    with mock.patch.object(documents, "PIECE", 300):
        lengths = [len(piece.text) for piece in cut_pieces(chunks)]

    assert sum(lengths) == 2800
    assert all(300 <= length <= 440 for length in lengths[:-1])
    assert [len(piece.text) for piece in cut_pieces(chunks)] == [2800]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("clean", [None, "remove_empty_lines"])
def test_every_document_is_encoded_and_ended(stories: Path, name: str, clean: str | None) -> None:
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


def test_many_ids_need_four_bytes(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = next(tokenizer for tokenizer in TOKENIZERS if tokenizer.name == "o200k_base")
    monkeypatch.setattr(token_cache, "load_tokenizer", lambda _: large)

    made = prepare(str(stories), "o200k_base", None, stories.parent / "cache")

    assert made.tokens.dtype == np.uint32
    assert made.tokens[made.ends - 1].tolist() == [199999] * 3


def test_a_corpus_of_blank_documents_is_refused(in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.txt", " \n")
    write(in_tmp / "in" / "b.jsonl", to_lines([""]))

    with pytest.raises(InputError, match=r"^in: holds nothing but white space \(2 files\)$"):
        prepare("in", "bytes", None, in_tmp / "cache")
    assert names(in_tmp / "cache") == []


def test_several_processes_make_what_one_makes(
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
    assert ahead <= 5  # two batches per worker and the one in hand
    assert "encoding: 100%" in capsys.readouterr().err


def test_a_killed_worker_is_the_machines_fault() -> None:
    def batches() -> Iterator[list[Piece]]:
        yield [Piece("a", True)]
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(MachineError, match="a process that encodes the corpus was killed"):
        list(encode_batches(batches(), "bytes", 2))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_reading_takes_little_memory(in_tmp: Path, name: str) -> None:
    line = json.dumps({"text": "low water and a lamp " * 500}) + "\n"
    path = write(in_tmp / name, line * 3000)
    assert path.stat().st_size > 30e6

    tracemalloc.start()
    characters = sum(len(piece.text) for batch in documents.batch_pieces([path], None, id) for piece in batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert characters > 30e6
    assert peak < 8e6


# Cache


def test_a_corpus_is_encoded_once_wherever_it_lies(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_decides_the_tokens_decides_the_key(stories: Path) -> None:
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
def test_a_damaged_cache_is_made_anew(
    stories: Path, name: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = stories.parent / "cache"
    tokens = prepare(str(stories), "bytes", None, cache).tokens.tolist()
    (folder,) = cache.iterdir()
    if content is None:
        (folder / name).unlink()
    else:
        write(folder / name, content)

    assert prepare(str(stories), "bytes", None, cache).tokens.tolist() == tokens
    assert capsys.readouterr().err == f"gpt_lightning: warning: {folder}: is damaged and is encoded again\n"
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
    with pytest.raises(MachineError, match=r"^cache: the corpus cannot be encoded there \(no space left on device\)$"):
        prepare(str(stories), "bytes", None, Path("cache"))
    assert names(Path("cache")) == []


def test_a_cache_that_cannot_be_made_is_the_machines_fault(stories: Path) -> None:
    write(stories.parent / "cache", "a file")

    with pytest.raises(MachineError, match=r"^cache: the corpus cannot be encoded there \((file exists|not a dir)"):
        prepare(str(stories), "bytes", None, Path("cache"))


@pytest.mark.parametrize(("name", "tokens"), [("bytes", "60.0 GB"), ("gpt2", "15.0 GB")])
def test_a_text_whose_tokens_the_disk_cannot_hold_is_refused_before_it_is_read(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, name: str, tokens: str
) -> None:
    with open("huge.txt", "wb") as file:
        file.truncate(60 * 10**9)  # a hole, no bytes
    write(Path("cache/0123456789abcdef/tokens.bin"), b"1" * 10**6)
    usage = shutil.disk_usage(in_tmp)._replace(free=14 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == in_tmp / "cache" else None)
    monkeypatch.setattr(token_cache, "open", mock.Mock(side_effect=AssertionError), False)

    message = (
        f"huge.txt: 60.0 GB of text make at least {tokens} of tokens, data.cache_dir (cache) has 14.0 GB free; "
        "name a folder on another disk"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        prepare("huge.txt", name, None, Path("cache"))
    with open("cache/0123456789abcdef/tokens.bin", "wb") as file:
        file.truncate(60 * 10**9)  # perhaps its tokens, which need no more room then
    with pytest.raises(AssertionError):
        prepare("huge.txt", name, None, Path("cache"))


def test_a_large_file_that_is_no_text_is_not_read_to_its_end(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(InputError, match="a file was changed while it was read"):
        prepare(str(stories), "bytes", None, stories.parent / "cache")
    assert names(stories.parent / "cache") == []


@pytest.mark.parametrize("whole", [True, False])
def test_another_process_may_be_quicker(stories: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    publish = token_cache._publish

    def publish_second(temporary: Path, folder: Path, key: str) -> None:
        shutil.copytree(temporary, folder)
        if not whole:
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


def test_a_killed_preparation_leaves_no_cache_and_no_process(stories: Path) -> None:
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

    assert names(cache) == sorted([made.sha256[:16], other.name])  # of a living process, the folder stays
    assert made.documents == 3
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(is_running, workers))


# Split


@pytest.mark.parametrize(
    ("ratio", "tokens", "characters"), [(0.9, 30, 88), (0.6, 20, 50), (0.01, 3, 10), (0.99, 30, 88)]
)
def test_the_cut_is_at_the_nearest_end_of_a_document(ratio: float, tokens: int, characters: int) -> None:
    train, val = make_corpus([10, 50, 88, 100], [3, 20, 30, 45]).split(ratio)

    assert (train.token_ids.tolist(), val.token_ids.tolist()) == (list(range(tokens)), list(range(tokens, 45)))
    assert (train.characters, val.characters) == (characters, 100 - characters)


@given(st.lists(st.integers(1, 50), min_size=2), st.floats(0.01, 0.99))
def test_no_other_cut_is_nearer(lengths: list[int], ratio: float) -> None:
    character_ends = np.cumsum(lengths).tolist()
    made = make_corpus(character_ends, [end * 2 for end in character_ends])

    train, val = made.split(ratio)

    assert [*train.token_ids, *val.token_ids] == made.token_ids.tolist()
    assert train.characters in character_ends[:-1]
    assert len(train.token_ids) == 2 * train.characters
    distances = [abs(end - ratio * made.characters) for end in character_ends[:-1]]
    assert abs(train.characters - ratio * made.characters) == min(distances)


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(InputError, match="only 1 document, .*; give data.val_text"):
        make_corpus([10], [3]).split(0.9)


def test_a_part_is_read_without_a_copy(stories: Path) -> None:
    encoded = prepare(str(stories), "bytes", None, stories.parent / "cache")
    train, val = DocumentsCorpus(stories, None, encoded).split(0.5)

    assert np.shares_memory(val.token_ids, encoded.tokens)
    assert [*train.token_ids, *val.token_ids] == encoded.tokens.tolist()
    assert not train.token_ids.flags.writeable


@pytest.mark.parametrize("token_id", [65, 60000])
def test_a_cache_with_other_tokens_is_made_anew(
    stories: Path, token_id: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = stories.parent / "cache"
    tokens = prepare(str(stories), "bytes", None, cache).tokens.tolist()
    (folder,) = cache.iterdir()
    damaged = np.array([token_id] * len(tokens), np.uint16)
    (folder / "tokens.bin").write_bytes(damaged.tobytes())

    assert prepare(str(stories), "bytes", None, cache).tokens.tolist() == tokens
    assert capsys.readouterr().err == f"gpt_lightning: warning: {folder}: is damaged and is encoded again\n"


def test_a_refused_corpus_leaves_no_folders(in_tmp: Path) -> None:
    Path("bad.jsonl").write_text("{}\n")

    with pytest.raises(InputError, match="bad.jsonl:1: has no string under"):
        prepare("bad.jsonl", "bytes", None, Path("data/cache"))

    assert os.listdir() == ["bad.jsonl"]
