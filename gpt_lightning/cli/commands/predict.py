"""`predict`: where prompts come from, and where completions go."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8
from gpt_lightning.inference.batch import Completer, check_done, check_new, job_name, open_output, write_rows
from gpt_lightning.inference.completion import check_prompt
from gpt_lightning.inference.sampling import SamplingConfig

STANDARD_INPUT = "-"


def read_prompts(path: str) -> Iterator[str]:
    """The prompts of a file, one after the other.

    Args:
        path: A text file, a prompt in each line; or a `.jsonl` file; or - for lines of standard input.

    Raises:
        InputError: No such file, none in it, not UTF-8; or a line that is no prompt, by its number.
    """
    name = "standard input" if path == STANDARD_INPUT else path
    if path != STANDARD_INPUT and (os.path.isdir(path) or not os.path.exists(path)):
        raise InputError(f"{path}: {'is a folder' if os.path.isdir(path) else 'no such file'}")
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


def is_stream(path: str) -> bool:
    """Whether it can be read only once: standard input, a pipe."""
    if path == STANDARD_INPUT or path.startswith("/dev/"):
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def count_lines(path: str) -> int | None:
    """Lines of a file; None for a stream."""
    if is_stream(path):
        return None
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def write_texts(completer: Completer, prompts: Iterable[str], is_single: bool) -> None:
    """Writes each prompt and its completion to stdout.

    Args:
        completer: Makes them.
        prompts: All of them.
        is_single: Whether it is one completion of one prompt; its pieces are written as they come.
    """
    if is_single:
        (prompt,) = prompts
        _show(prompt)
        for _ in completer([prompt], show=_show):
            _show("\n")
    else:
        for one in completer(prompts):
            print(one.text, flush=True)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def converse(completer: Completer, context: str) -> None:
    """Completes what is typed, line by line; what was said before stays before it, as far as the model looks.

    An empty line lets the model go on. The end of the input (Ctrl-D) ends it.

    Args:
        completer: Makes one completion each.
        context: What to begin with, may be empty.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        line = line.removesuffix("\n")
        if line:
            context += ("\n" if context else "") + line
        if not context:
            continue
        for one in completer([context], show=_show, warns=False):
            context += one.completion
        _show("\n")


def predict(completer: Completer, settings: Any, checkpoint: Path, weights: str) -> None:
    """What the command does.

    Args:
        completer: `complete_all` of the checkpoint's model.
        settings: All settings of the command; see `check_sources`.
        checkpoint: The file.
        weights: Their type and device.
    """
    typed, path = settings["prompt"], settings["prompts_file"]
    sampling: SamplingConfig = settings["sampling"]
    if settings["interactive"]:
        converse(completer, "\n".join(typed))
        return
    prompts = typed if path is None else read_prompts(path)
    if not settings["jsonl"] and settings["output"] is None:
        write_texts(completer, prompts, len(typed) * sampling.num_samples == 1)
        return
    job = job_name(checkpoint, sampling, weights)
    count = len(typed) if path is None else count_lines(path)
    total = None if count is None else count * sampling.num_samples
    if settings["output"] is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # JSON is
        write_rows(completer, prompts, sys.stdout, job, 0, sampling.batch_size, total)
        return
    output = Path(settings["output"])
    file, done = open_output(output, settings["resume"], job)
    with file:
        all_prompts = check_done(prompts, done, sampling.num_samples, output)
        write_rows(completer, all_prompts, file, job, len(done), sampling.batch_size, total)


def check_sources(settings: Any) -> None:
    """Raises `InputError` unless there is one source of good prompts, and one place for completions that it fits."""
    typed, path, output = settings["prompt"], settings["prompts_file"], settings["output"]
    if path is not None and typed:
        raise InputError("prompts come from --prompt or from --prompts_file; give one of them")
    if settings["interactive"]:
        for name in ("prompts_file", "output", "jsonl"):
            if settings[name]:
                raise InputError(f"--interactive reads from the terminal and writes to it; leave --{name} out")
        if settings["sampling"]["num_samples"] > 1:
            raise InputError("--interactive makes one completion at a time; leave sampling.num_samples out")
    elif path is None and not typed:
        raise InputError("predict needs --prompt TEXT, --prompts_file FILE (- for standard input) or --interactive")
    if output is not None and settings["jsonl"]:
        raise InputError("--output FILE is always JSON lines; leave --jsonl out")
    if settings["resume"] and output is None:
        raise InputError("--resume goes on with a file of completions; name it with --output FILE")
    if output is not None:
        if path not in (None, STANDARD_INPUT) and os.path.realpath(path) == os.path.realpath(output):
            raise InputError(f"{path}: is the prompts' file; name another --output")
        if not output or os.path.isdir(output):
            raise InputError(f"--output must name a file, got {output!r}")
        if not os.path.isdir(Path(output).parent):
            raise InputError(f"--output {output}: there is no folder {Path(output).parent}")
        if not settings["resume"]:
            check_new(Path(output))
    if path is not None and not is_stream(path):
        for _ in read_prompts(path):  # all of them, before the model is built
            pass
