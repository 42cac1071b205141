"""The copied parts of completions, in characters, compared with the texts themselves."""

from __future__ import annotations

import codecs
import functools
from typing import Any

import numpy as np
import pytest
from conftest import STORY
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.corpus import split_text
from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer
from gpt_lightning.evaluation.copy_finder import count_copied, shortest_run
from gpt_lightning.evaluation.memorization import Memorization, describe_copied
from gpt_lightning.inference.completion import CompletedText, TextStream

TEXT = "Zwölf Uhr … 日本語 und so weiter. 🙂 The lamp burned low.\n\nIt's late, 日本語 und so fort; the lamp went out."


def completed(tokenizer: Tokenizer, token_ids: list[int], stop_strings: tuple[str, ...] = ()) -> CompletedText:
    """A completion of these tokens, as `complete_all` makes it."""
    stream = TextStream(tokenizer, stop_strings)
    for token_id in token_ids:
        stream.add(token_id)
    stream.finish()
    return CompletedText("", stream.text, token_ids, [0.0] * len(token_ids), "length", 123)


def describe(completion: str, training: str = TEXT, tokenizer: str = "bytes") -> dict[str, Any]:
    memorization = memorization_of(training, tokenizer)
    loaded = memorization.tokenizer
    return memorization.describe(completed(loaded, loaded.encode(completion)))


def decode_complete(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """The characters of token ids, without an incomplete one at the end."""
    return codecs.utf_8_decode(b"".join(map(tokenizer.token_bytes, token_ids)), "replace", False)[0]


@functools.cache
def memorization_of(training: str, tokenizer: str) -> Memorization:
    loaded = load_tokenizer(tokenizer)
    return Memorization(np.array(loaded.encode(training), np.uint16), loaded)


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
@given(st.data())
def test_offsets_are_those_of_the_copied_characters(name: str, data: st.DataObject) -> None:
    """Pieces of a text with characters of 1 to 4 bytes, cut between two tokens, also inside of a character."""
    memorization = memorization_of(TEXT, name)
    tokenizer, text_ids = memorization.tokenizer, memorization.finder.token_ids.tolist()
    token_ids: list[int] = []
    for _ in range(data.draw(st.integers(0, 3))):
        begin, end = sorted(data.draw(st.lists(st.integers(0, len(text_ids)), min_size=2, max_size=2)))
        token_ids += text_ids[begin:end] + tokenizer.encode(data.draw(st.sampled_from(["", "!", "é", "語"])))
    one = completed(tokenizer, token_ids)

    copied = memorization.describe(one)

    finder = memorization.finder
    at_least = memorization.at_least
    runs = finder.copied_runs(token_ids, at_least) or [
        run for run in [finder.longest_short_run(token_ids, at_least)] if run is not None
    ]
    assert (copied["of"], copied["longest"]) == (len(token_ids), max([run.length for run in runs] + [0]))
    assert copied["tokens"] == (count_copied(runs) if copied["longest"] >= at_least else 0)
    assert copied["share"] == copied["tokens"] / max(len(token_ids), 1)
    for run, row in zip(runs, copied["runs"], strict=True):
        end = run.start + run.length
        begins, ends = (len(decode_complete(tokenizer, token_ids[:place])) for place in (run.start, end))
        source = decode_complete(tokenizer, text_ids[: run.position])
        until_end = decode_complete(tokenizer, text_ids[: run.position + run.length])
        assert row == {
            "begin": begins,
            "end": ends if end < len(token_ids) else len(one.completion),
            "tokens": run.length,
            "source": len(source),
            "before": source[-40:],
            "after": TEXT[len(until_end) :][:40],
        }


def test_a_copied_sentence_is_found_at_its_place() -> None:
    sentence = " 日本語 und so weiter. 🙂 The lamp b"

    copied = describe(f"A{sentence}egins.")

    begin = TEXT.index(sentence)
    tokens, of = len(sentence.encode()), len(sentence.encode()) + 7
    assert copied == {
        "at_least": 32,
        "share": tokens / of,
        "tokens": tokens,
        "of": of,
        "longest": tokens,
        "runs": [
            {
                "begin": 1,
                "end": 1 + len(sentence),
                "tokens": tokens,
                "source": begin,
                "before": TEXT[:begin],
                "after": TEXT[begin + len(sentence) :][:40],
            }
        ],
    }
    assert describe_copied(copied, f"A{sentence}egins.") == (
        "41 of 48 tokens, longest run 41: ' 日本語 und so weiter. 🙂 The lamp b' (character 11)"
    )


def test_a_run_of_fewer_tokens_is_shown_and_not_counted() -> None:
    copied = describe("xx lamp! xxx")

    assert [copied[name] for name in ("share", "tokens", "of", "longest")] == [0, 0, 12, 5]
    (run,) = copied["runs"]
    assert (run["begin"], run["end"], run["source"]) == (2, 7, TEXT.index(" lamp"))
    assert describe_copied(copied, "xx lamp! xxx") == "0 of 12 tokens, longest run 5: ' lamp' (character 36)"


def test_a_run_that_counts_has_at_least_8_tokens_and_about_32_bytes() -> None:
    """A token of bytes is 1 byte, of GPT-2 3.8 bytes of this story 64 of these dashes, and 2 in Japanese."""
    story = STORY.read_text()
    train, unseen = split_text(story, 0.9)

    assert memorization_of(train, "bytes").at_least == 32
    assert memorization_of(train, "gpt2").at_least == 8
    assert memorization_of("-" * 320, "gpt2").at_least == 8
    japanese = "日本語の文章を読む" * 9
    assert memorization_of(japanese, "gpt2").at_least == round(32 * len(load_tokenizer("gpt2").encode(japanese)) / 243)
    # Of the unseen part, 78 % is in runs of 8 bytes.
    assert describe(unseen, train)["share"] == pytest.approx(0.041, abs=0.0005)
    assert describe(unseen, train, "gpt2")["share"] == pytest.approx(0.049, abs=0.0005)


def test_only_the_first_tokens_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_lightning.evaluation.copy_finder.MEASURED", 3)
    end_of_text = np.array([256, 256, 256, *range(97, 117)])  # 13 bytes each

    assert shortest_run(end_of_text, load_tokenizer("bytes")) == 8
    assert shortest_run(end_of_text[2:], load_tokenizer("bytes")) == 8
    assert shortest_run(end_of_text[3:], load_tokenizer("bytes")) == 32
    assert shortest_run(end_of_text[:0], load_tokenizer("bytes")) == 8


def test_a_completion_without_any_token_of_the_text() -> None:
    assert describe("####") == {"at_least": 32, "share": 0, "tokens": 0, "of": 4, "longest": 0, "runs": []}
    assert describe_copied(describe("####"), "####") == "0 of 4 tokens, none of which occurs in the training text"
    assert describe_copied(describe(""), "") == "0 of 0 tokens"


def test_a_long_run_is_shortened_in_the_line() -> None:
    text = "".join(f"{number:,}\n\n" for number in range(990, 1100))

    line = describe_copied(describe(text, text), text)

    tokens = len(text)
    shown = "990 991 992 993 994 995 996 997 998 9..."
    assert line == f"{tokens} of {tokens} tokens, longest run {tokens}: '{shown}' (character 0)"


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    tokenizer = load_tokenizer("bytes")
    text = "The lamp burned low.\n\nIt's late, "
    one = completed(tokenizer, tokenizer.encode(f"{text}日本語 und"), stop_strings=("日本",))
    assert one.completion == text

    copied = Memorization(np.array(tokenizer.encode(TEXT)), tokenizer).describe(one)

    assert (copied["tokens"], copied["of"], copied["runs"][0]["end"]) == (33, 33, 33)


def test_characters_are_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_lightning.evaluation.memorization.BLOCK", 7)

    pieces = ("語 und so weiter. 🙂 The lamp b", "語 und so fort; the lamp went out")

    copied = describe(" ## ".join(pieces))

    assert [run["source"] for run in copied["runs"]] == [TEXT.index(piece) for piece in pieces]


def test_a_verdict_is_searched_in_gpt2_tokens(verdict: Any) -> None:
    text = verdict.read_text()
    completion = '" was one of the axioms he laid down across the Sevres and silver of an exquisitely appointed lamp'

    copied = describe(completion, text, "gpt2")

    (run,) = copied["runs"]
    shown = completion[run["begin"] : run["end"]]
    assert (copied["tokens"], copied["of"]) == (run["tokens"], len(load_tokenizer("gpt2").encode(completion)))
    assert text[run["source"] :].startswith(shown)
    assert shown.endswith(" exquisitely appointed")
    assert text[run["source"] - 40 : run["source"]] == run["before"]
