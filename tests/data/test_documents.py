from __future__ import annotations

import json
import os
import tracemalloc
from itertools import chain, pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import make_tokenizers, to_lines, write

from gpt_lightning.data import documents
from gpt_lightning.data.documents import cut_pieces, find_documents, read_documents
from gpt_lightning.data.text import read_text, remove_empty_lines
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.errors import InputError, MachineError


def test_a_folder_is_searched_recursively(in_tmp: Path) -> None:
    for name in ["b.txt", "a/z.jsonl", "a/b/c.txt", ".hidden.txt", ".git/x.txt", "read.me", "a.txt/inner.txt"]:
        write(in_tmp / "in" / name, "x")

    found = [str(path.relative_to(in_tmp / "in")) for path in find_documents(str(in_tmp / "in"))]

    assert found == ["a/b/c.txt", "a/z.jsonl", "a.txt/inner.txt", "b.txt"]


def test_unreadable_files_and_folders_in_a_folder_are_reported(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    assert find_documents("*") == [Path("a.txt"), Path("b.txt"), Path("d[1].txt"), Path("x.md")]
    assert find_documents("*.md") == [Path("x.md")]
    assert find_documents("**/*.jsonl") == [Path("deep/er/c.jsonl")]
    assert find_documents("[ab].txt") == [Path("a.txt"), Path("b.txt")]
    assert find_documents("d[1].txt") == [Path("d[1].txt")]
    assert find_documents("a.txt") == [Path("a.txt")]


def test_sources_without_documents_are_refused(in_tmp: Path) -> None:
    write(in_tmp / "in" / "x.md", "x")
    only = r"^in: contains no .txt or .jsonl file, only 1 of other kinds \(.md\); if they are text, name them by a"
    with pytest.raises(InputError, match=only):
        find_documents("in")
    with pytest.raises(InputError, match=r"^in/\*.rst: no file matches it$"):
        find_documents("in/*.rst")
    with pytest.raises(InputError, match="^a.txt: no such file$"):
        find_documents("a.txt")


def test_pipes_in_a_folder_or_glob_are_left_out(in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.txt", "x")
    os.mkfifo(in_tmp / "in" / "pipe.txt")

    assert find_documents("in") == find_documents("in/*") == [Path("in/a.txt")]


def test_files_of_other_kinds_in_a_folder_are_counted_in_a_warning(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "x.md", "y.md", "z.png", ".hidden", "README"):
        write(in_tmp / "in" / name, "x")

    assert find_documents("in") == [Path("in/a.txt")]
    assert capsys.readouterr().err == (
        "gpt_lightning: warning: in: reads 1 file and leaves out 4 of other kinds (.md, .png, no ending)\n"
    )


@given(
    st.lists(st.sampled_from([b"\xef\xbb\xbf", b"\r", b"\n", b" ", b"ab", "é日😀".encode(), b"\x80", b"\xf0", b"\0"])),
    st.integers(1, 9),
)
def test_reading_in_blocks_equals_reading_at_once(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], n: int):
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
    # In blocks, the first invalid byte of the file is reported; read at once, invalid UTF-8 is reported before NUL.
    assert found == expected or ("contains NUL" in found and "not UTF-8" in expected)


def test_a_byte_order_mark_is_removed_with_a_warning(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (b'["text"]', 'must be a JSON object with a "text", got a list'),
        (b'{"txt": "a"}', '"text" is missing or not a string'),
        (b'{"text": 3}', '"text" is missing or not a string'),
        (b'{"text": "a\\u0000"}', '"text" contains a NUL character'),
        (b'{"text": "a\\ud800"}', r'"text" contains an unpaired surrogate \(\\ud800\)'),
        (b'{"text": "\x80"}', r"not UTF-8 text \(byte 0x80 at offset 10\)"),
    ],
)
def test_invalid_lines_are_refused(in_tmp: Path, line: bytes, message: str) -> None:
    write(in_tmp / "corpus.jsonl", b'{"text": "fine"}\r\n \n' + line + b"\n")

    with pytest.raises(InputError, match=f"^corpus.jsonl:3: {message}"):
        list(read_documents(Path("corpus.jsonl")))


def test_a_line_above_the_limit_is_refused(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_LINE", 1 << 20)
    write(in_tmp / "a.jsonl", to_lines(["x" * (1 << 20)]))

    with pytest.raises(InputError, match="^a.jsonl:1: longer than 1 MiB, the limit for a line$"):
        list(read_documents(Path("a.jsonl")))


@given(st.lists(st.sampled_from(["\n", " ", "\t", "\x0b", "\u2028", "ab", "c d"])), st.data())
def test_cleaning_in_chunks_equals_cleaning_at_once(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    assert "".join(documents.clean_chunks(chunks)) == remove_empty_lines(text)


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


@pytest.mark.parametrize("tokenizer", make_tokenizers(), ids=lambda tokenizer: tokenizer.name)
@given(st.lists(WORDS | st.text(max_size=3), min_size=5), st.integers(1, 6))
@example(["a_\n", "b!\n", "c7\n", "日\n "], 3)
@example(["a_ ", "b! ", "c7 ", "日  "], 3)
def test_the_token_ids_of_pieces_equal_those_of_the_document(tokenizer: Tokenizer, words: list[str], n: int) -> None:
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


def test_pieces_have_about_the_size_piece() -> None:
    chunks = ["low water and " * 10] * 20  # 140 characters each
    with mock.patch.object(documents, "PIECE", 300):
        lengths = [len(piece.text) for piece in cut_pieces(chunks)]

    assert sum(lengths) == 2800
    assert all(300 <= length <= 440 for length in lengths[:-1])
    assert [len(piece.text) for piece in cut_pieces(chunks)] == [2800]


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
