"""Samples as pieces of text for an HTML page: what is copied, and where it comes from."""

from __future__ import annotations

import re
from typing import Any

MOST_CHARACTERS = 4000  # of a completion, or of a prompt
COUNTED = 8  # tokens of a run that counts as copied, where `at_least` is not recorded


def choose_samples(rows: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """Return all samples, or those of as many steps at equal distances as a number of bytes has room for.

    The last step is one of them, with as many samples as have room, at least one.

    Args:
        rows: Rows of samples.jsonl.
        budget: Bytes of HTML.
    """
    steps = sorted({row["step"] for row in rows})
    cost = dict.fromkeys(steps, 0)
    for row in rows:
        cost[row["step"]] += _bytes_of(row)
    kept, stride = set(steps), 1
    while len(kept) > 1 and sum(cost[step] for step in kept) > budget:
        stride += 1
        kept = set(steps[::-stride])
    chosen = [row for row in rows if row["step"] in kept]
    while len(chosen) > 1 and sum(map(_bytes_of, chosen)) > budget:
        chosen = chosen[: len(chosen) // 2]
    return chosen


def _bytes_of(row: dict[str, Any]) -> int:
    """Estimate the bytes of HTML of a sample: up to 6 for a character, 900 for a source."""
    characters = min(len(row["completion"]), MOST_CHARACTERS) + min(len(row["prompt"]), MOST_CHARACTERS)
    return 400 + 6 * characters + 900 * len((row.get("copied") or {}).get("runs") or [])


def describe_sample(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a sample as pieces of text, and the places that its copied pieces come from.

    Args:
        row: A row of samples.jsonl.
        name: Prefix of the ids of its copied pieces.
    """
    copied = row.get("copied") or {}
    at_least = copied.get("at_least") or COUNTED
    text, prompt = row["completion"][:MOST_CHARACTERS], row["prompt"]
    pieces: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    end = 0
    for one in copied.get("runs") or []:
        begin = max(one["begin"], end)
        if begin >= min(one["end"], len(text)):
            continue
        pieces += split_newlines(text[end:begin])
        end = min(one["end"], len(text))
        number, words = len(sources) + 1, text[one["begin"] : end]
        if kept := text[begin:end].rstrip("\n"):
            end = begin + len(kept)  # so that the number is before the newlines
        is_counted = one["tokens"] >= at_least
        source = {**one, "id": f"{name}-{number}", "number": number, "words": words, "is_counted": is_counted}
        pieces.append({"source": source, "pieces": split_newlines(text[begin:end])})
        sources.append(source)
    return {
        "step": row["step"],
        "epoch": row["epoch"],
        "prompt": prompt if len(prompt) <= MOST_CHARACTERS else f"\u2026{prompt[-MOST_CHARACTERS:]}",
        "pieces": pieces + split_newlines(text[end:]),
        "left_out": len(row["completion"]) - len(text),
        "sources": sources,
        "at_least": at_least,
        **{key: copied.get(key) for key in ("share", "tokens", "of", "longest")},
    }


def split_newlines(text: str) -> list[dict[str, Any]]:
    """Split a text into pieces, each with the number of newlines (0, or at least 3) that follow it."""
    parts = re.split(r"(\n{3,})", text)
    found = [(part, len(gap)) for part, gap in zip(parts[::2], [*parts[1::2], ""], strict=True)]
    return [{"text": part, "newlines": count} for part, count in found if part or count]
