from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import write

from gpt_lightning.data.text import read_text, remove_empty_lines
from gpt_lightning.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "contains only whitespace"),
        (b"abc\x80d", r"not UTF-8 text \(byte 0x80 at offset 3\)"),
        (b"ab\0c", "contains NUL bytes; not a text file"),
        (b"aaaa", "contains only the character 'a'; there is nothing to learn"),
    ],
)
def test_files_without_usable_text_are_refused(in_tmp: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text(write(in_tmp / "a.txt", content))


def test_a_folder_is_refused(in_tmp: Path) -> None:
    with pytest.raises(InputError, match="data.val_text must be a file, not a folder"):
        read_text(in_tmp, setting="data.val_text")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: data.text must be a regular file"):
        read_text(tmp_path / "pipe")


def test_a_huge_file_is_refused_before_it_is_read(in_tmp: Path) -> None:
    with open(in_tmp / "huge.txt", "wb") as file:
        file.truncate(3 * 1024**3)

    with pytest.raises(InputError, match=r"huge.txt: is too large \(3.0 GiB\); the limit is 2 GiB"):
        read_text("huge.txt")


def test_a_byte_order_mark_is_removed_with_a_warning(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_text(write(in_tmp / "a.txt", b"\xef\xbb\xbfab")).content == "ab"
    assert "byte order mark" in capsys.readouterr().err


def test_line_ends_are_normalized_as_by_python(in_tmp: Path) -> None:
    path = write(in_tmp / "a.txt", b"a\r\nb\rc\n")

    assert read_text(path).content == Path(path).read_text() == "a\nb\nc\n"


@given(st.text())
def test_cleaning_is_idempotent(content: str) -> None:
    cleaned = remove_empty_lines(content)

    assert remove_empty_lines(cleaned) == cleaned
    assert all(line == line.strip() != "" for line in cleaned.splitlines())
