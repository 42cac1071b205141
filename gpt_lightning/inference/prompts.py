"""Read prompts from a file or from standard input."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator

from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8
from gpt_lightning.inference.completion import check_prompt

STANDARD_INPUT = "-"
LIST_BYTES = 100_000_000  # the prompts of a larger file are read lazily, while they are completed


def open_prompts(path: str) -> list[str] | Iterator[str]:
    """Return the prompts of a file: a list, or an iterator for a stream and for a file above 100 MB.

    Args:
        path: A text file with a prompt in each line, a `.jsonl` file, or - for lines of standard input.

    Raises:
        InputError: The file does not exist or is empty, or a line is not a prompt; an iterator raises it when it
            reaches that line.
    """
    if path != STANDARD_INPUT and (os.path.isdir(path) or not os.path.exists(path)):
        raise InputError(f"{path}: {'is a folder' if os.path.isdir(path) else 'no such file'}")
    is_small_file = path != STANDARD_INPUT and os.path.isfile(path) and os.path.getsize(path) <= LIST_BYTES
    return list(_read_prompts(path)) if is_small_file else _read_prompts(path)


def _read_prompts(path: str) -> Iterator[str]:
    name = "standard input" if path == STANDARD_INPUT else path
    opened = contextlib.nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else open(path, "rb")  # noqa: SIM115
    number = 0
    with opened as file:
        for number, line in enumerate(file, start=1):
            text = decode_utf8(line, f"{name}:{number}").removesuffix("\n").removesuffix("\r")
            try:
                prompt = _prompt_of_json(text) if path.endswith(".jsonl") else text
                check_prompt(prompt)
            except InputError as error:
                raise InputError(f"{name}:{number}: {error}") from None
            yield prompt
    if number == 0:
        raise InputError(f"{name}: is empty; expected a prompt in each line")


def _prompt_of_json(line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {str(error).split(':')[0]}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError('expected an object with a text named "prompt"')
    return str(row["prompt"])
