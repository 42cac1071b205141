from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpt_lightning.errors import InputError
from gpt_lightning.inference.batch import check_done, job_name, open_output, write_rows
from gpt_lightning.inference.completion import CompletedText
from gpt_lightning.inference.sampling import SamplingConfig

JOB = "0123456789ab"


def rows(*prompts: str, job: str = JOB) -> str:
    return "".join(json.dumps({"prompt": prompt, "job": job}) + "\n" for prompt in prompts)


def test_a_file_that_was_created_meanwhile_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("{}\n")

    with pytest.raises(InputError, match="already exists; add --resume to resume the job that wrote it"):
        open_output(path, resume=False, job=JOB)


@pytest.mark.parametrize("cut", ["", "{", '{"prompt": "', '{"prompt": "c", "jo'])
def test_an_incomplete_last_line_is_removed(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(rows("a", "b") + cut)

    file, done = open_output(path, resume=True, job=JOB)
    with file:
        file.write(rows("c"))

    assert done == ["a", "b"]
    assert path.read_text() == rows("a", "b", "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes, no newline", "out.jsonl:1: not a line written by predict"),
        (rows("a") + "[1]\n", "out.jsonl:2: not a line written by predict"),
        ("[" * 100_000 + "\n", "out.jsonl:1: not a line written by predict"),
        (
            rows("a") + rows("b", job="another"),
            rf"out.jsonl:2: written with another checkpoint or other settings \(job another, not {JOB}\)",
        ),
    ],
)
def test_a_file_of_another_job_is_refused_and_unchanged(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)

    with pytest.raises(InputError, match=message):
        open_output(path, resume=True, job=JOB)

    assert path.read_text() == content


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "x", "b"], "out.jsonl:3: completes another prompt than this job"),
        (["a"], "out.jsonl: contains 4 completions, but the job has only 2"),
        (["a", "b"], None),
        (["a", "b", "c"], None),
    ],
)
def test_prompts_are_compared_with_the_completed_ones(prompts: list[str], message: str | None) -> None:
    checked = check_done(prompts, ["a", "a", "b", "b"], 2, Path("out.jsonl"))

    if message is None:
        assert list(checked) == prompts
    else:
        with pytest.raises(InputError, match=message):
            list(checked)


def test_all_rows_of_an_interrupted_batch_are_completed_again(tmp_path: Path) -> None:
    skipped: list[int] = []

    def completer(prompts: Sequence[str], skip: int) -> Iterator[CompletedText]:
        skipped.append(skip)
        return (CompletedText(prompt, "", [], [], "length", 1) for prompt in prompts[skip:])

    with open(tmp_path / "out.jsonl", "w") as file:
        write_rows(completer, list("abcdefg"), file, JOB, 5, 4, None, lambda one: {"more": one.prompt.upper()})

    assert skipped == [4]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["more"], row["job"]) for row in written] == [("f", "F", JOB), ("g", "G", JOB)]


def test_the_fingerprint_of_a_job_depends_on_checkpoint_settings_and_weights(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    settings = SamplingConfig()
    names = [
        job_name(one, settings, "float32 cpu"),
        job_name(other, settings, "float32 cpu"),
        job_name(one, SamplingConfig(seed=1), "float32 cpu"),
        job_name(one, settings, "bfloat16 cpu"),
    ]

    assert len(set(names)) == 4
    assert names[0] == job_name(one, settings, "float32 cpu")
