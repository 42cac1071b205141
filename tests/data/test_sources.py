from __future__ import annotations

import hashlib
import http.server
import re
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from gpt_lightning.data.sources import absolute, find_source, parse_url, read_source, short_name
from gpt_lightning.errors import InputError, MachineError

STORY = b"Once upon a time.\nThe end.\n"


SHA256 = hashlib.sha256(STORY).hexdigest()


NOWHERE = f"http://127.0.0.1:1/#sha256={SHA256}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path in ("/story.txt", "/cut.txt")
        self.send_response(200 if known else 404)
        if self.path == "/cut.txt":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(STORY if known else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def write(path: Path, content: bytes = STORY) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_the_bundled_story_is_found_by_its_name(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "data/the-lamp-at-low-water.txt"

    assert find_source(name) == (str(ROOT / name), None)
    assert find_source("data/other.txt", fallback=name) == (str(ROOT / name), None)
    assert capsys.readouterr().err.startswith(f"gpt_lightning: warning: using the text {ROOT / name} instead of ")
    write(Path(name))
    assert find_source(name) == (name, None)


def test_a_url_is_split_from_its_checksum() -> None:
    assert parse_url(NOWHERE) == ("http://127.0.0.1:1/", SHA256)
    assert parse_url(NOWHERE.replace(SHA256, SHA256.upper())) == parse_url(NOWHERE)
    assert parse_url("http://a/b?c") == ("http://a/b?c", None)


@pytest.mark.parametrize("fragment", ["", "sha256=", f"sha256={SHA256}0", f"sha256={SHA256[1:]}x", f"md5={SHA256}"])
def test_a_fragment_that_is_no_checksum_is_refused(fragment: str) -> None:
    with pytest.raises(InputError, match=r"data.url \(http://a#.*\) must end with #sha256= and 64 hexadecimal digits"):
        parse_url(f"http://a#{fragment}")


def test_a_file_at_its_path_is_used(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_source(write(in_tmp / "a.txt"), NOWHERE) == (str(in_tmp / "a.txt"), NOWHERE)
    assert capsys.readouterr().err == ""


def test_another_text_at_the_path_is_used_with_a_warning(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_source(write(in_tmp / "a.txt", b"mine!"), NOWHERE) == (str(in_tmp / "a.txt"), None)
    assert "a.txt: differs from the text of data.url (sha256 " in capsys.readouterr().err


def test_a_file_in_the_data_folder_is_used(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(in_tmp / "folder" / "a.txt")
    monkeypatch.setenv("GPT_LIGHTNING_DATA", str(in_tmp / "folder"))

    assert find_source("elsewhere/a.txt", NOWHERE) == (str(in_tmp / "folder" / "a.txt"), NOWHERE)
    assert find_source("elsewhere/a.txt") == (str(in_tmp / "folder" / "a.txt"), None)


def test_a_wrong_file_in_the_data_folder_is_not_used(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(in_tmp / "folder" / "a.txt", b"something else")
    monkeypatch.setenv("GPT_LIGHTNING_DATA", str(in_tmp / "folder"))

    with pytest.raises(MachineError, match="a.txt: checksum mismatch; .*cannot be downloaded"):
        find_source("a.txt", NOWHERE)


def test_a_missing_file_is_downloaded_once(in_tmp: Path, url: str) -> None:
    with_checksum = f"{url}/story.txt#sha256={SHA256}"

    assert find_source("data/a.txt", with_checksum) == ("data/a.txt", with_checksum)
    assert [path.name for path in (in_tmp / "data").iterdir()] == ["a.txt"]
    assert (in_tmp / "data" / "a.txt").read_bytes() == STORY
    assert find_source("data/a.txt", NOWHERE) == ("data/a.txt", NOWHERE)


@pytest.mark.parametrize(
    ("name", "limit", "value", "message"),
    [
        (f"story.txt#sha256={'0' * 64}", "MAX_BYTES", 500, "checksum mismatch, file not kept"),
        ("story.txt", "MAX_BYTES", 5, "larger than 5 bytes"),
        ("story.txt", "FETCH_SECONDS", -1, "not downloaded within -1 s"),
        ("cut.txt", "MAX_BYTES", 500, rf"download incomplete \({len(STORY)} bytes\), file not kept"),
    ],
)
def test_a_failed_download_leaves_no_file(
    in_tmp: Path, url: str, monkeypatch: pytest.MonkeyPatch, name: str, limit: str, value: int, message: str
) -> None:
    monkeypatch.setattr(f"gpt_lightning.data.sources.{limit}", value)

    with pytest.raises(MachineError, match=message):
        find_source("a.txt", f"{url}/{name}")
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.txt", "http://127.0.0.1:1/a b.txt", "not a URL", "file:///etc/hostname"]
)
def test_a_url_without_an_answer_is_a_machine_error(in_tmp: Path, url: str) -> None:
    with pytest.raises(MachineError, match=r"a.txt: no such file; .*cannot be downloaded"):
        find_source("a.txt", url)


def test_the_fallback_is_used_with_one_warning_that_names_both(
    in_tmp: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_LIGHTNING_DATA", "")

    assert find_source("a.txt", f"{url}/missing#sha256={SHA256}", "own.txt") == ("own.txt", None)

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpt_lightning: warning: using the text own.txt instead of a.txt (")
    assert "HTTP Error 404" in line or "Not Found" in line


def test_a_missing_file_without_a_url_is_an_input_error(in_tmp: Path) -> None:
    with pytest.raises(InputError, match="^a.txt: no such file$"):
        find_source("a.txt")


@pytest.mark.parametrize("source", ["hf:a/b/c", "*.txt", "."])
def test_datasets_globs_and_folders_are_returned_unchanged(in_tmp: Path, source: str) -> None:
    assert find_source(source, NOWHERE) == (source, NOWHERE)


class FakeDatasets(types.ModuleType):
    """A fake of the optional library `datasets`."""

    def __init__(self, answer: Any) -> None:
        super().__init__("datasets")
        self.answer = answer
        self.asked: list[tuple[str, str, str]] = []

    def load_dataset(self, path: str, name: str, split: str) -> Any:
        self.asked.append((path, name, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeSplit:
    def __init__(self, **columns: list[str]) -> None:
        self._columns = columns
        self.column_names = list(columns)
        self.data = types.SimpleNamespace(nbytes=100)

    def __getitem__(self, name: str) -> list[str]:
        return self._columns[name]


ROWS = ["", " = Title = \n", "", " Some words . \n", " More . \n"]


SPLIT = "hf:Salesforce/wikitext/wikitext-2-raw-v1/train"


def test_the_rows_of_a_dataset_are_concatenated(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeDatasets(FakeSplit(text=ROWS))
    monkeypatch.setitem(sys.modules, "datasets", library)

    text = read_source(SPLIT)

    assert library.asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "train")]
    assert text.content == " = Title = \n Some words . \n More . \n"
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()
    assert (str(text.path), short_name(text.path)) == (SPLIT, SPLIT)
    assert absolute(SPLIT) == SPLIT
    assert read_source(SPLIT, clean="remove_empty_lines").content == "= Title =\nSome words .\nMore ."


@pytest.mark.parametrize(
    ("name", "answer", "error", "message"),
    [
        ("hf:wikitext", None, InputError, "data.text must be hf:DATASET/CONFIG/SPLIT, got 'hf:wikitext'"),
        ("hf:a/b/", None, InputError, "data.text must be hf:DATASET/CONFIG/SPLIT, got 'hf:a/b/'"),
        ("hf:a/b/c/d", ModuleNotFoundError(), InputError, "hf:a/b/c/d: needs the extra datasets: pip install -c"),
        ("hf:a/b/c/d", ConnectionError("no\nHub"), MachineError, "hf:a/b/c/d: cannot be downloaded (no Hub); use"),
        ("hf:a/b/c/d", ValueError('Unknown split "d".'), InputError, 'hf:a/b/c/d: cannot be read (Unknown split "d".)'),
        ("hf:a/b/c/d", FakeSplit(page=["x"]), InputError, 'hf:a/b/c/d: has no column "text", only page'),
        ("hf:a/b/c/d", FakeSplit(text=["", "\n"]), InputError, "hf:a/b/c/d: contains only whitespace"),
    ],
)
def test_unavailable_and_unsuitable_datasets_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, error: type[Exception], message: str
) -> None:
    installed = not isinstance(answer, ModuleNotFoundError)
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(answer) if installed else None)

    with pytest.raises(error, match="^" + re.escape(message)):
        read_source(name)
