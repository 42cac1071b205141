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
        (b" \n\n", "holds nothing but white space"),
        (b"abc\x80d", r"not UTF-8 text \(byte 0x80 at offset 3\)"),
        (b"ab\0c", "contains NUL bytes; not a text file"),
        (b"aaaa", r"is one character \('a'\) over and over"),
    ],
)
def test_files_that_are_no_text_are_refused(in_tmp: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text(write(in_tmp / "a.txt", content))


def test_a_folder_is_refused(in_tmp: Path) -> None:
    with pytest.raises(InputError, match="data.val_text must be a file, this is a folder"):
        read_text(in_tmp, setting="data.val_text")


def test_a_pipe_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: data.text must be a regular file"):
        read_text(tmp_path / "pipe")


def test_a_huge_file_is_refused_before_it_is_read(in_tmp: Path) -> None:
    with open(in_tmp / "huge.txt", "wb") as file:
        file.truncate(3 * 1024**3)

    with pytest.raises(InputError, match=r"3.0 GiB, more than this program reads \(limit 2 GiB\)"):
        read_text("huge.txt")


def test_a_byte_order_mark_is_left_out_with_a_warning(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_text(write(in_tmp / "a.txt", b"\xef\xbb\xbfab")).content == "ab"
    assert "byte order mark" in capsys.readouterr().err


def test_line_ends_are_read_as_python_reads_them(in_tmp: Path) -> None:
    path = write(in_tmp / "a.txt", b"a\r\nb\rc\n")

    assert read_text(path).content == Path(path).read_text() == "a\nb\nc\n"


@given(st.text())
def test_cleaning_twice_is_cleaning_once(content: str) -> None:
    cleaned = remove_empty_lines(content)

    assert remove_empty_lines(cleaned) == cleaned
    assert all(line == line.strip() != "" for line in cleaned.splitlines())
