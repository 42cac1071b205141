from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import STORIES, to_lines, write

from gpt_lightning.data.corpus import DocumentsCorpus, is_documents, open_corpus, split_text
from gpt_lightning.data.token_cache import EncodedDocuments
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError


def make_corpus(character_ends: list[int], ends: list[int]) -> DocumentsCorpus:
    tokens = np.arange(ends[-1], dtype=np.uint16)
    encoded = EncodedDocuments(
        tokens, np.array(ends), character_ends[-1], np.array(character_ends), "0" * 64, 1, len(character_ends)
    )
    return DocumentsCorpus(Path("in"), None, encoded)


def test_folders_globs_and_jsonl_files_are_documents(in_tmp: Path) -> None:
    write(in_tmp / "a.txt", "x")
    write(in_tmp / "a[1].txt", "x")

    assert all(map(is_documents, [str(in_tmp), "*.txt", "?.txt", "[a].txt", "missing.jsonl"]))
    assert not any(map(is_documents, ["a.txt", "missing.txt", "a[1].txt", ""]))


@given(st.text(), st.floats(0.01, 0.99))
def test_the_split_loses_nothing(content: str, ratio: float) -> None:
    train, val = split_text(content, ratio)

    assert train + val == content
    assert len(train) == int(ratio * len(content))


def test_a_large_file_is_split_between_two_tokens(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_lightning.data.corpus.LARGE_BYTES", 100)
    write(in_tmp / "large.txt", "abcdefghij" * 20)
    corpus = open_corpus("large.txt", load_tokenizer("bytes"), clean=None, cache_dir=Path("cache"))

    train, val = corpus.split(0.9)

    assert (len(train.token_ids), len(val.token_ids)) == (180, 21)  # 200 bytes and <|endoftext|>
    assert bytes(train.token_ids.tolist()) == b"abcdefghij" * 18
    assert (train.characters, val.characters, corpus.characters, corpus.contents) == (179, 21, 200, "")


def test_the_parts_of_one_text_are_encoded_separately(in_tmp: Path) -> None:
    text, tokenizer = "The lamp burned low at midnight.", load_tokenizer("gpt2")
    write(in_tmp / "a.txt", text)
    corpus = open_corpus("a.txt", tokenizer, clean=None, cache_dir=Path("cache"))

    train, val = corpus.split(0.5)

    assert train.token_ids.tolist() == tokenizer.encode(text[:16])  # the split is inside the token " low"
    assert val.token_ids.tolist() == tokenizer.encode(text[16:])
    assert (train.characters, val.characters) == (16, 16)
    assert corpus.whole().token_ids.tolist() == tokenizer.encode(text)
    assert len(train.token_ids) + len(val.token_ids) > len(corpus.token_ids)
    assert not Path("cache").exists()


@pytest.mark.parametrize(
    ("ratio", "tokens", "characters"), [(0.9, 30, 88), (0.6, 20, 50), (0.01, 3, 10), (0.99, 30, 88)]
)
def test_documents_are_split_at_the_nearest_end_of_a_document(ratio: float, tokens: int, characters: int) -> None:
    train, val = make_corpus([10, 50, 88, 100], [3, 20, 30, 45]).split(ratio)

    assert (train.token_ids.tolist(), val.token_ids.tolist()) == (list(range(tokens)), list(range(tokens, 45)))
    assert (train.characters, val.characters) == (characters, 100 - characters)


@given(st.lists(st.integers(1, 50), min_size=2), st.floats(0.01, 0.99))
def test_no_other_end_of_a_document_is_nearer(lengths: list[int], ratio: float) -> None:
    character_ends = np.cumsum(lengths).tolist()
    made = make_corpus(character_ends, [end * 2 for end in character_ends])

    train, val = made.split(ratio)

    assert [*train.token_ids, *val.token_ids] == made.token_ids.tolist()
    assert train.characters in character_ends[:-1]
    assert len(train.token_ids) == 2 * train.characters
    distances = [abs(end - ratio * made.characters) for end in character_ends[:-1]]
    assert abs(train.characters - ratio * made.characters) == min(distances)


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(InputError, match="only 1 document, .*; set data.val_text"):
        make_corpus([10], [3]).split(0.9)


def test_parts_share_the_memory_of_the_corpus(in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.txt", STORIES[0])
    write(in_tmp / "in" / "b.jsonl", to_lines(STORIES[1:]))
    corpus = open_corpus("in", load_tokenizer("bytes"), clean=None, cache_dir=Path("cache"))
    train, val = corpus.split(0.5)

    assert np.shares_memory(val.token_ids, corpus.token_ids)
    assert [*train.token_ids, *val.token_ids] == corpus.token_ids.tolist()
    assert not train.token_ids.flags.writeable
    assert (corpus.path, corpus.name, corpus.contents) == (in_tmp / "in", "in", "3 documents of 2 files")
