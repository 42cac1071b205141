"""Completions as JSON lines, in jobs that can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO

from tqdm import tqdm

from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import CompletedText
from gpt_lightning.inference.sampling import SamplingConfig

ROW_START = b'{"prompt": "'
Completer = Callable[..., Iterator[CompletedText]]  # `complete_all` of a model


def job_name(checkpoint: Path, sampling: SamplingConfig, weights: str) -> str:
    """What two jobs share that give the same completions of the same prompts: 12 hexadecimal digits.

    Args:
        checkpoint: The file.
        sampling: All settings.
        weights: Their type and device.
    """
    with open(checkpoint, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([sha256, asdict(sampling), weights], sort_keys=True).encode()).hexdigest()[:12]


def open_output(path: Path, resume: bool, job: str) -> tuple[IO[str], list[str]]:
    """Opens a file of completions to append to.

    Args:
        path: The file.
        resume: Whether it may be there already; a last line that was not finished is cut off.
        job: Of these completions.

    Returns:
        The file, and the prompts of the completions that it holds.

    Raises:
        InputError: It is there and `resume` is false, or it is another job's.
    """
    done: list[str] = []
    if not resume:
        check_new(path)
    elif path.exists():
        with open(path, "r+b") as old:
            end = 0
            for number, line in enumerate(old, start=1):
                try:
                    if not line.endswith(b"\n") and line.startswith(ROW_START[: len(line)]):
                        break  # cut short
                    row = json.loads(line)
                    prompt, other = str(row["prompt"]), row["job"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise InputError(f"{path}:{number}: is no completion that predict wrote") from None
                end += len(line)
                done.append(prompt)
                if other != job:
                    raise InputError(
                        f"{path}:{number}: is of another checkpoint or other settings (job {other}, not {job})"
                    )
            old.truncate(end)
    return open(path, "a", encoding="utf-8"), done


def check_new(path: Path) -> None:
    """Raises `InputError` where there is such a file already."""
    if path.exists():
        raise InputError(f"{path}: exists; --resume goes on with it")


def check_done(prompts: Iterable[str], done: list[str], samples: int, path: Path) -> Iterator[str]:
    """The prompts again; raises `InputError` where those that were done are others.

    Args:
        prompts: Of the job.
        done: A prompt for each completion in the file.
        samples: Completions of each prompt.
        path: Of the file.
    """
    rows = 0
    for prompt in prompts:
        if rows < len(done) and done[rows] != prompt:
            raise InputError(f"{path}:{rows + 1}: is of another prompt than the job's")
        rows += samples
        yield prompt
    if rows < len(done):
        raise InputError(f"{path}: holds {len(done)} completions, the job has {rows}")


def write_rows(
    completer: Completer, prompts: Iterable[str], file: IO[str], job: str, done: int, batch_size: int, total: int | None
) -> None:
    """Writes a JSON line for each completion.

    Args:
        completer: Makes them.
        prompts: All of the job.
        file: Where to.
        job: See `job_name`.
        done: Completions that are there already.
        batch_size: Of the completer. A batch that was stopped is made anew as a whole: alone, its rows' last digits
            could be others.
        total: How many there will be, for the progress bar on stderr; None if that is not known.
    """
    again = done % batch_size
    rows = islice(completer(prompts, skip=done - again), again, None)
    with tqdm(total=total, initial=done, desc="completing", unit="text", file=sys.stderr, disable=None) as bar:
        for one in rows:
            file.write(json.dumps({**asdict(one), "job": job}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
