"""The sources of prompts, the destinations of completions, and interrupted jobs."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, STORY, Result

from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.memorization import describe_copied
from gpt_lightning.files import read_rows
from gpt_lightning.inference.pretrained import load
from gpt_lightning.inference.prompts import open_prompts
from gpt_lightning.inference.sampling import SamplingConfig

Command = Callable[..., Result]
SETTINGS = ("--sampling.max_new_tokens=5", "--sampling.temperature=1", "--sampling.num_samples=2")


@pytest.fixture
def checkpoint(trained: Path, in_tmp: Path) -> Path:
    """A trained checkpoint; the current directory is empty."""
    return trained / "checkpoints/last.ckpt"


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Stdin(io.TextIOWrapper):
    """Standard input with the given content."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


def test_a_file_of_prompts_gives_the_same_as_prompts_on_the_command_line(command: Command, checkpoint: Path) -> None:
    Path("prompts.txt").write_text("The lamp\n  an é \nlast", encoding="utf-8")
    prompts = ("--prompt=The lamp", "--prompt=  an é ", "--prompt=last")

    from_file = command("predict", "--ckpt_path", checkpoint, "--prompts_file=prompts.txt", *SETTINGS)

    assert from_file.code == 0, from_file.err
    assert from_file.out == command("predict", "--ckpt_path", checkpoint, *prompts, *SETTINGS).out
    assert from_file.out.count("The lamp") == 2
    assert from_file.err == ""


def test_standard_input_and_json_lines(command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "one\ntwo", "more": 1}, {"prompt": "The"}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(sys, "stdin", Stdin(b"The lamp\r\nThe\n"))

    piped = command("predict", "--ckpt_path", checkpoint, "--prompts_file=-", "--jsonl", *SETTINGS)
    read = command("predict", "--ckpt_path", checkpoint, "--prompts_file=prompts.jsonl", "--jsonl", *SETTINGS)

    assert [row["prompt"] for row in rows_of(piped.out)] == ["The lamp", "The lamp", "The", "The"]
    assert [(row["prompt"], row["seed"]) for row in rows_of(read.out)] == [
        ("one\ntwo", 123), ("one\ntwo", 124), ("The", 123), ("The", 124),
    ]  # fmt: skip
    one, other = rows_of(piped.out)[2], rows_of(read.out)[2]
    assert one | {"log_probs": 0} == other | {"log_probs": 0}
    assert one["log_probs"] == pytest.approx(other["log_probs"], abs=1e-4)
    assert one["finish_reason"] == "length"
    gpt = load(checkpoint)
    assert one["completion"] == gpt.complete("The", max_new_tokens=5, temperature=1.0)
    assert one["completion"] == gpt.tokenizer.decode(one["completion_ids"])


def test_a_resumed_job_writes_the_same_file_as_an_uninterrupted_one(command: Command, checkpoint: Path) -> None:
    Path("prompts.txt").write_text("\n".join(f"prompt {n}" for n in range(7)))
    job = ("predict", "--ckpt_path", checkpoint, "--prompts_file=prompts.txt", "--sampling.batch_size=4", *SETTINGS)
    assert command(*job, "--output=straight.jsonl").code == 0
    straight = Path("straight.jsonl").read_bytes()
    assert len(straight.splitlines()) == 14
    for cut in (0, 1, len(straight) // 3, len(straight) // 2, len(straight) - 1, len(straight)):
        Path("again.jsonl").write_bytes(straight[:cut])

        result = command(*job, "--output=again.jsonl", "--resume")

        assert (result.code, result.out) == (0, "")
        assert Path("again.jsonl").read_bytes() == straight, cut


@pytest.mark.slow
def test_a_killed_job_keeps_what_it_wrote(checkpoint: Path) -> None:
    """A real process is killed once it has written its first lines."""
    Path("prompts.txt").write_text("\n".join(f"prompt {n}" for n in range(400)))
    arguments = ["--ckpt_path", str(checkpoint), "--prompts_file=prompts.txt", *SETTINGS, "--output=out.jsonl"]
    command = [sys.executable, "-m", "gpt_lightning", "predict", *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not Path("out.jsonl").exists() or not Path("out.jsonl").read_bytes().count(b"\n"):
            assert process.poll() is None
        process.kill()
    kept = Path("out.jsonl").read_bytes().rpartition(b"\n")[0]

    done = subprocess.run([*command, "--resume"], capture_output=True, timeout=100)

    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert Path("out.jsonl").read_bytes().startswith(kept)
    prompts = [row["prompt"] for row in rows_of(Path("out.jsonl").read_text())]
    assert prompts == [f"prompt {n}" for n in range(400) for _ in range(2)]


def test_a_single_completion_is_written_while_it_is_generated(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[str] = []
    write = io.TextIOWrapper.write
    arguments = ("predict", "--ckpt_path", checkpoint, "--prompt=The", "--sampling.max_new_tokens=9")
    expected = command(*arguments, "--jsonl").out
    monkeypatch.setattr(sys.stdout, "write", lambda text: (pieces.append(text), write(sys.stdout, text))[1])

    out = command(*arguments).out

    assert out == "The" + rows_of(expected)[0]["completion"] + "\n" == "".join(pieces)
    assert len([piece for piece in pieces if piece]) >= 9


def test_a_conversation_keeps_all_earlier_text(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"The lamp\n\nsecond\n"))
    settings = {"max_new_tokens": 6, "temperature": 1.0}

    result = command(
        "predict", "--ckpt_path", checkpoint, "--interactive",
        "--sampling.max_new_tokens=6", "--sampling.temperature=1",
    )  # fmt: skip

    gpt = load(checkpoint)
    first = gpt.complete("The lamp", **settings)
    second = gpt.complete("The lamp" + first, **settings)
    third = gpt.complete("The lamp" + first + second + "\nsecond", **settings)
    assert result.code == 0
    assert result.out == f"{first}\n{second}\n{third}\n"


def test_a_conversation_longer_than_the_context_continues_without_a_warning(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"a" * 300 + b"\nb\n"))

    result = command("predict", "--ckpt_path", checkpoint, "--interactive", "--sampling.max_new_tokens=2")

    assert load(checkpoint).model.context_length < 300
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) >= 2


def test_copied_parts_are_reported_as_in_the_run(
    command: Command, trained: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = read_rows(trained / "samples.jsonl")[-1]
    arguments = ("predict", "--ckpt_path", checkpoint, "--prompt", "Every effort", "--sampling.max_new_tokens=8")
    line = f"copied      {describe_copied(sample['copied'], sample['completion'])}\n"

    plain, shown, read = (
        command(*arguments),
        command(*arguments, "--copied"),
        command(*arguments, "--copied", "--jsonl"),
    )
    twice = command(*arguments, "--prompt", "Every effort", "--copied")

    assert (shown.out, shown.err) == (plain.out, line)
    assert (twice.out, twice.err) == (plain.out * 2, line * 2)
    assert (rows_of(read.out)[0]["copied"], read.err) == (sample["copied"], "")
    assert "copied" not in rows_of(command(*arguments, "--jsonl").out)[0]
    monkeypatch.setattr(sys, "stdin", Stdin(b"Every effort\n"))
    spoken = command(*arguments[:3], "--interactive", "--copied", "--sampling.max_new_tokens=8")
    assert (spoken.out, spoken.err) == (sample["completion"] + "\n", line)


def test_a_job_with_copied_parts_is_another_job(command: Command, checkpoint: Path) -> None:
    job = ("predict", "--ckpt_path", checkpoint, "--prompt=a", "--output=out.jsonl")
    assert command(*job, "--copied").code == 0

    assert "written with another checkpoint or other settings" in command(*job, "--resume").error
    assert command(*job, "--resume", "--copied").code == 0


def test_copied_parts_need_the_training_text(command: Command, config: Path) -> None:
    text = Path("story.txt").absolute()
    text.write_text(STORY.read_text())
    fit = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=1", "--data.text", text)
    assert command(*fit).code == 0
    arguments = ("predict", "--ckpt_path=run/checkpoints/last.ckpt", "--prompt=a", "--copied")
    text.write_text(STORY.read_text().upper())

    changed = command(*arguments)
    text.unlink()
    missing = command(*arguments)

    assert (changed.code, changed.out) == (2, "")
    assert changed.error.startswith(
        f"{text}: is not the text that run/checkpoints/last.ckpt was trained on (story.txt, sha256 "
    )
    assert (missing.code, missing.out, missing.error) == (2, "", f"{text}: no such file")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("none.txt", None, "none.txt: no such file"),
        ("empty.txt", b"", "empty.txt: is empty; expected a prompt in each line"),
        ("a.txt", b"The\n\nlast\n", "a.txt:2: prompt is empty; use <|endoftext|> to generate without a prompt"),
        ("a.txt", b"The\nla\xffmp\n", "a.txt:2: not UTF-8 text (byte 0xff at offset 2)"),
        ("a.jsonl", b'{"prompt": "The"}\n{"prompt": "la', "a.jsonl:2: not valid JSON: Unterminated string starting at"),
        ("a.jsonl", b'{"prompt": "The"}\n[1]\n', 'a.jsonl:2: expected an object with a text named "prompt"'),
        ("a.jsonl", b'{"prompt": 3}\n', 'a.jsonl:1: expected an object with a text named "prompt"'),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', "a.jsonl:1: prompt is not UTF-8 text (at character 0)"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not valid JSON: "),
    ],
)
def test_invalid_files_are_reported_with_their_line_before_anything_is_written(
    command: Command,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes | None,
    error: str,
) -> None:
    monkeypatch.setattr("gpt_lightning.cli.commands.predict.build_network", None)
    if content is not None:
        Path(name).write_bytes(content)

    result = command("predict", "--ckpt_path", checkpoint, "--prompts_file", name, "--output=out.jsonl", *SETTINGS)

    assert result.code == 2
    assert result.error.startswith(error)
    assert not Path("out.jsonl").exists()


def test_a_pipe_is_read_once(command: Command, checkpoint: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("The\nlamp\n",))
    writer.start()

    result = command("predict", "--ckpt_path", checkpoint, "--prompts_file=pipe", "--jsonl", *SETTINGS)
    writer.join()

    assert [row["prompt"] for row in rows_of(result.out)] == ["The", "The", "lamp", "lamp"]


def test_completions_before_an_invalid_line_of_standard_input_are_kept(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"The\nlamp\n\nlast\n"))

    result = command("predict", "--ckpt_path", checkpoint, "--prompts_file=-", "--output=out.jsonl", *SETTINGS)

    assert (result.code, result.error.partition(": prompt")[0]) == (2, "standard input:3")
    assert [row["prompt"] for row in rows_of(Path("out.jsonl").read_text())] == ["The", "The", "lamp", "lamp"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--prompts_file=p.txt", "--prompt=a"], "prompts come from --prompt or from --prompts_file; give one of them"),
        (["--prompts_file=p.txt", "--output=there.jsonl"], "there.jsonl: already exists; add --resume to resume"),
        (["--prompts_file=p.txt", "--output=p.txt"], "p.txt: is the --prompts_file; name another --output"),
        (["--prompts_file=."], ".: is a folder"),
        (["--prompt=a", "--output=."], "--output must name a file, got '.'"),
        (["--prompt=a", "--output="], "--output must name a file, got ''"),
        (["--prompt=a", "--output=there.jsonl", "--resume"], "there.jsonl:1: not a line written by predict"),
        (
            ["--prompt=a", "--output=other.jsonl", "--resume"],
            "other.jsonl:1: written with another checkpoint or other settings",
        ),
        (["--prompt=a", "--output=no/such.jsonl"], "--output no/such.jsonl: folder no does not exist"),
        (["--prompt=a", "--resume"], "--resume needs --output FILE, the file of the interrupted job"),
        (["--prompt=a", "--output=x", "--jsonl"], "--output FILE is always JSON lines; leave --jsonl out"),
        (["--interactive", "--jsonl"], "--interactive reads from and writes to the terminal; leave --jsonl out"),
        (
            ["--interactive", "--sampling.temperature=1", "--sampling.num_samples=2"],
            "--interactive makes one completion at a time; leave sampling.num_samples out",
        ),
        (["--prompt=a", "--sampling.stop_strings"], "--sampling.stop_strings needs a text"),
        (
            ["--prompt=a", "--sampling.stop_strings="],
            "sampling.stop_strings must be a list of texts, none of them empty",
        ),
        (["--prompt=a", "--sampling.top_p=2"], "sampling.top_p must be above 0 and at most 1, got 2.0"),
        (["--prompt=a", "--sampling.eos_id=[1,999]"], "sampling.eos_id must be an int from 0 to 256, got 999"),
    ],
)
def test_wrong_arguments(command: Command, checkpoint: Path, arguments: list[str], error: str) -> None:
    Path("p.txt").write_text("The\n")
    Path("there.jsonl").write_text("{}\n")
    Path("other.jsonl").write_text('{"prompt": "a", "job": "0123456789ab"}\n')

    result = command("predict", "--ckpt_path", checkpoint, *arguments)

    assert result.code == 2
    assert result.error.startswith(error)
    assert Path("there.jsonl").read_text() == "{}\n"


def test_stop_strings_of_the_command_line_are_texts(command: Command, checkpoint: Path) -> None:
    arguments = ("predict", "--ckpt_path", checkpoint, "--prompt=The", "--jsonl", "--sampling.max_new_tokens=20")
    (free,) = rows_of(command(*arguments).out)
    stop = free["completion"][5:7]

    (one,) = rows_of(command(*arguments, "--sampling.stop_strings", stop, "--sampling.stop_strings", "null").out)

    assert one["completion"] == free["completion"][: free["completion"].index(stop)]
    assert one["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("there", "prompts", "error"),
    [
        ("my notes, no newline", "a\nb\n", "out.jsonl:1: not a line written by predict"),
        (None, "a\nx\nb\n", "out.jsonl:3: completes another prompt than this job"),
    ],
)
def test_a_file_of_another_job_is_unchanged(
    command: Command, checkpoint: Path, there: str | None, prompts: str, error: str
) -> None:
    job = ("predict", "--ckpt_path", checkpoint, "--prompts_file=p.txt", "--output=out.jsonl", *SETTINGS)
    if there is None:
        Path("p.txt").write_text("a\nb\n")
        assert command(*job).code == 0
    else:
        Path("out.jsonl").write_text(there)
    before = Path("out.jsonl").read_bytes()
    Path("p.txt").write_text(prompts)

    result = command(*job, "--resume")

    assert (result.code, result.error) == (2, error)
    assert Path("out.jsonl").read_bytes() == before


def test_weights_of_another_type_are_another_job(command: Command, checkpoint: Path) -> None:
    job = ("predict", "--ckpt_path", checkpoint, "--prompt=a", "--output=out.jsonl")
    assert command(*job, "--trainer.precision=bf16-true").code == 0

    assert "written with another checkpoint or other settings" in command(*job, "--resume").error


@pytest.mark.slow
def test_json_is_written_as_utf8_in_any_locale(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "gpt_lightning", "predict", "--ckpt_path", str(checkpoint), "--prompts_file=-"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run([*command, "--jsonl"], input="h\u00e9\n".encode(), capture_output=True, env=environment)
    closed = subprocess.run(f"{shlex.join(command)} <&-", shell=True, capture_output=True, text=True, check=False)

    assert rows_of(done.stdout.decode("utf-8"))[0]["prompt"] == "h\u00e9"
    assert closed.stderr == "gpt_lightning: error: standard input: is empty; expected a prompt in each line\n"


# ---- settings


def test_it_starts_without_lightning_and_torchs_compiler(checkpoint: Path) -> None:
    code = (
        "import sys; from gpt_lightning.cli.main import main\n"
        f"main(['predict', '--ckpt_path', {str(checkpoint)!r}, '--prompt=The', '--copied'])\n"
        "print({'lightning', 'pandas', 'matplotlib', 'sympy', 'torch._dynamo'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("\nset()\n")


def test_help_lists_its_own_settings_only(command: Command) -> None:
    shown = command("predict", "--help").out

    options = set(re.findall(r"--[\w.]+", shown))
    assert {one for one in options if not one.startswith("--sampling.")} == {
        "--config", "--ckpt_path", "--prompt", "--prompts_file", "--jsonl", "--output", "--resume",
        "--interactive", "--copied", "--trainer.accelerator", "--trainer.precision",
    }  # fmt: skip
    assert {f"--sampling.{one.name}" for one in fields(SamplingConfig)} <= options


def test_the_command_line_wins_over_yaml_files_and_later_files_over_earlier_ones(
    command: Command, checkpoint: Path
) -> None:
    Path("a.yaml").write_text("prompt: [one, '1.50']\nsampling: {max_new_tokens: 3, seed: 4, temperature: 1}\n")
    Path("b.yaml").write_text("sampling: {seed: 5}\nsampling.top_k: 9\ntrainer: {accelerator: cpu, max_epochs: 2}\n")
    arguments = ("predict", "--ckpt_path", checkpoint)
    explicit = ("--sampling.max_new_tokens=4", "--sampling.seed=5", "--sampling.temperature=1", "--sampling.top_k=9")

    merged = command(*arguments, "--sampling.max_new_tokens=4", "-c", "a.yaml", "--config=b.yaml", "--jsonl")

    assert merged.code == 0, merged.err
    assert merged.out == command(*arguments, *explicit, "--prompt=one", "--prompt=1.50", "--jsonl").out


@pytest.mark.parametrize("config", [*sorted((ROOT / "configs").glob("*.yaml")), None], ids=lambda path: str(path)[-20:])
def test_configs_of_runs_are_accepted(command: Command, trained: Path, config: Path | None) -> None:
    """The configs of the repository, which have other models and texts, and the checkpoint's own config."""
    checkpoint = trained / "checkpoints/last.ckpt"
    config = config or trained / "tiny.yaml"

    prompts = yaml.safe_load(config.read_text()).get("prompt") or ["The"]
    arguments = () if "prompt:" in config.read_text() else ("--prompt=The",)

    result = command("predict", "--config", config, "--ckpt_path", checkpoint, *arguments)

    assert result.code == 0, result.err
    assert result.out.startswith(prompts[0])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("promt: [a]\n", "unknown setting 'promt'; did you mean 'prompt'?"),
        ("sampling: {topk: 3}\n", "unknown setting 'sampling.topk'; did you mean 'sampling.top_k'?"),
        ("sampling: {top_p: 2}\n", "sampling.top_p must be above 0 and at most 1, got 2.0"),
        ("sampling: {top_k: two}\n", "sampling.top_k must be an int or null, not 'two'"),
        ("prompt: ['']\n", "prompt is empty"),
        ("trainer: {precision: bf61}\n", "trainer.precision must be one of auto, 32-true"),
        ("trainer: {accelerator: gpuu}\n", "trainer.accelerator must be one of auto, cpu"),
        ("trainer: {precision: 16-true, accelerator: cpu}\n", "trainer.precision 16-true does not run on cpu"),
        ("jsonl: true\n", "a.yaml: jsonl is given on the command line only (--jsonl)"),
    ],
)
def test_wrong_yaml(command: Command, checkpoint: Path, content: str, error: str) -> None:
    Path("a.yaml").write_text(content)
    prompt = [] if "prompt" in content else ["--prompt=a"]

    result = command("predict", "--ckpt_path", checkpoint, "--config", "a.yaml", *prompt)

    assert (result.code, result.out) == (2, "")
    assert result.error.startswith(error)


def test_weights_have_the_runs_precision_unless_another_is_given(command: Command, config: Path) -> None:
    fit = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=1", "--trainer.precision=bf16-true")
    assert command(*fit).code == 0

    def out(*arguments: str) -> str:
        return command("predict", "--ckpt_path=run/checkpoints/last.ckpt", "--prompt=a", "--jsonl", *arguments).out

    assert out() == out("--trainer.precision=bf16-true")
    assert rows_of(out())[0]["job"] != rows_of(out("--trainer.precision=32-true"))[0]["job"]


def test_a_large_file_is_read_while_its_prompts_are_completed(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("The\nlamp\n\nlast\n")
    with pytest.raises(InputError, match="p.txt:3: prompt is empty"):
        open_prompts("p.txt")
    monkeypatch.setattr("gpt_lightning.inference.prompts.LIST_BYTES", 3)

    prompts = open_prompts("p.txt")

    assert isinstance(prompts, Iterator)
    assert [next(prompts), next(prompts)] == ["The", "lamp"]
    with pytest.raises(InputError, match="p.txt:3: prompt is empty"):
        next(prompts)


def test_a_file_of_prompts_is_read_once(command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("The\nlamp\n")
    opened: list[str] = []
    real_open = builtins.open

    def noting(name: Any, *arguments: Any, **keywords: Any) -> Any:
        opened.append(str(name))
        return real_open(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", noting)

    assert command("predict", "--ckpt_path", checkpoint, "--prompts_file=p.txt", "--jsonl", *SETTINGS).code == 0

    assert opened.count("p.txt") == 1


@pytest.mark.parametrize(
    ("yaml_text", "error"),
    [
        ("prompt:\n", "prompt must be a list of texts, not null; put each text in quotes"),
        ("trainer: {accelerator: null}\n", "trainer.accelerator must be a text, not null"),
        ("trainer: {precison: bf16-true}\n", "unknown setting 'trainer.precison'; did you mean 'trainer.precision'?"),
    ],
)
def test_yaml_that_predict_refuses(command: Command, checkpoint: Path, yaml_text: str, error: str) -> None:
    Path("a.yaml").write_text(yaml_text)

    result = command("predict", "--ckpt_path", checkpoint, "-c", "a.yaml")

    assert (result.code, result.error) == (2, error)
