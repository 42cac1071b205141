"""Write completions as JSON lines in a job that can be interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import CompletedText
from gpt_lightning.inference.sampling import SamplingConfig

ROW_START = b'{"prompt": "'
Completer = Callable[..., Iterator[CompletedText]]  # `complete_all` with a model, its tokenizer and the settings


def job_name(checkpoint: Path, sampling: SamplingConfig, rest: str) -> str:
    """Return a fingerprint of checkpoint and settings: 12 hexadecimal digits.

    Jobs with the same fingerprint write the same rows for the same prompts.

    Args:
        checkpoint: The checkpoint's file.
        sampling: All settings of sampling.
        rest: Type and device of the weights, and further fields of the rows.
    """
    with open(checkpoint, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([sha256, asdict(sampling), rest], sort_keys=True).encode()).hexdigest()[:12]


def open_output(path: Path, resume: bool, job: str) -> tuple[IO[str], list[str]]:
    """Open a file of completions to append to.

    Args:
        path: The file.
        resume: Whether the file may exist; an incomplete last line is removed.
        job: Fingerprint of the job, see `job_name`.

    Returns:
        The file, and the prompt of each completion in it.

    Raises:
        InputError: The file exists and `resume` is false, or it was written by another job.
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
                        break  # an incomplete last line
                    row = json.loads(line)
                    prompt, other = str(row["prompt"]), row["job"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise InputError(f"{path}:{number}: not a line written by predict") from None
                end += len(line)
                done.append(prompt)
                if other != job:
                    raise InputError(
                        f"{path}:{number}: written with another checkpoint or other settings (job {other}, not {job})"
                    )
            old.truncate(end)
    return open(path, "a", encoding="utf-8"), done


def check_new(path: Path) -> None:
    """Raise `InputError` if the file exists."""
    if path.exists():
        raise InputError(f"{path}: already exists; add --resume to resume the job that wrote it")


def check_done(prompts: Iterable[str], done: list[str], samples: int, path: Path) -> Iterator[str]:
    """Yield the prompts of a job, after comparing those that are already completed with the file.

    Args:
        prompts: All prompts of the job.
        done: The prompt of each completion in the file.
        samples: Number of completions of each prompt.
        path: The file, for the error message.

    Raises:
        InputError: The file contains a completion of another prompt, or more completions than the job.
    """
    rows = 0
    for prompt in prompts:
        if rows < len(done) and done[rows] != prompt:
            raise InputError(f"{path}:{rows + 1}: completes another prompt than this job")
        rows += samples
        yield prompt
    if rows < len(done):
        raise InputError(f"{path}: contains {len(done)} completions, but the job has only {rows}")


def write_rows(
    completer: Completer,
    prompts: Iterable[str],
    file: IO[str],
    job: str,
    done: int,
    batch_size: int,
    total: int | None,
    describe: Callable[[CompletedText], dict[str, Any]],
) -> None:
    """Write a JSON line for each completion that is still missing.

    Args:
        completer: Completes the prompts.
        prompts: All prompts of the job.
        file: The file to write to.
        job: Fingerprint of the job, see `job_name`.
        done: Number of completions already in the file.
        batch_size: Batch size of the completer. All rows of an interrupted batch are completed again, because the
            last digits of a row's logits depend on the batch size.
        total: Completions of the whole job, for the progress bar on stderr; None if unknown.
        describe: Returns further fields of a row.
    """
    again = done % batch_size
    rows = islice(completer(prompts, skip=done - again), again, None)
    with tqdm(total=total, initial=done, desc="completing", unit="text", file=sys.stderr, disable=None) as bar:
        for one in rows:
            file.write(json.dumps({**asdict(one), **describe(one), "job": job}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
