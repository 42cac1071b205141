"""Every command in the README runs, or is what CI runs."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, STORY, Result, tiny_settings
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_lightning.cli.main import COMMANDS, LIGHTNING

Command = Callable[..., Result]
README = (ROOT / "README.md").read_text()
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()
]
OURS = [line for line in LINES if line.startswith("python -m gpt_lightning ")]


def test_every_command_is_known() -> None:
    others = [line for line in LINES if line not in OURS]

    assert others == [
        "pip install -c constraints.txt -e . && python -m gpt_lightning fit --config configs/verdict.yaml",
        "pip install -c constraints.txt -e '.[dev]' && pytest",
        "pytest -m slow",
        "tensorboard --logdir runs",
    ]
    assert len(OURS) >= 9


def test_ci_runs_the_readmes_test_commands() -> None:
    commands = (ROOT / ".ci" / "run").read_text()

    assert "pip install -q -c constraints.txt -e '.[dev]' && pytest\npytest -m slow\n" in commands


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like the repository, with configs of the same names that train in a second."""
    folder = tmp_path
    (folder / "configs").mkdir()
    (folder / "configs" / "documents").symlink_to(ROOT / "configs" / "documents")
    (folder / "data").mkdir()
    (folder / "data" / STORY.name).write_text(STORY.read_text())
    (folder / "prompts.txt").write_text("Every effort\nI had always\n")
    (folder / "my_text.txt").write_text(STORY.read_text().upper())
    for name in ("verdict", "debug"):
        settings = tiny_settings()
        settings["trainer"]["max_epochs"] = 2
        settings["evaluate_every"] = 20
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    settings["model"] = {"context_length": 32}
    settings["data"] |= {"tokenizer": "gpt2", "batch_size": 2}
    limits = {"max_steps": 2, "limit_val_batches": 2}
    tuned = settings | {"init_from": "gpt2.ckpt", "evaluate_batches": 2, "trainer": settings["trainer"] | limits}
    (folder / "configs" / "finetune_gpt2.yaml").write_text(yaml.safe_dump(tuned))
    config = GPT2Config(n_positions=40, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "openai-community" / "gpt2")  # found before the hub is asked
    return folder


PROVED = [line for line in OURS if " verify-resume " in line]  # starts and kills real processes
SCENES = {
    "quick": ["pip && " + OURS[0].replace("debug", "verdict"), *(line for line in OURS if line not in PROVED)],
    "slow": PROVED,
}


@pytest.mark.parametrize("scene", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_command_of_ours_runs(clone: Path, command: Command, monkeypatch: pytest.MonkeyPatch, scene: str) -> None:
    """In the order of the README: what one writes, the next reads."""
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Every effort\n")))
    assert SCENES[scene]
    for line in SCENES[scene]:
        arguments = shlex.split(line.split("python -m gpt_lightning ")[1])
        if "--sampling.top_k" not in arguments and COMMANDS[arguments[0]][1] == LIGHTNING:
            arguments += ["--sampling.max_new_tokens=4"]

        result = command(*arguments)

        assert result.code == 0, (line, result.err)
        assert result.out or "--output completions.jsonl" in line


def test_the_readmes_output_has_the_lines_that_a_run_prints(clone: Path, command: Command) -> None:
    """Each line of a run, its numbers left out, is in the README in the same words."""
    settings = tiny_settings()
    settings["data"]["batch_size"] = 50
    (clone / "tiny.yaml").write_text(yaml.safe_dump(settings))
    printed = command("fit", "--config", clone / "tiny.yaml", "--run_dir", clone / "run").out
    (block,) = [one for one in re.findall(r"```text\n(.*?)```", README, re.DOTALL) if one.startswith("text  ")]

    for start in (
        "device  ",
        "run folder  ",
        "Untrained ",
        "Training completed ",
        r"[\d,]+ tokens seen",
        "best.ckpt is ",
    ):
        shapes = []
        for text in (block, printed):
            (line,) = re.findall(rf"^{start}.*$", text, re.MULTILINE)
            line = re.sub(r"folder  .*?;|\((no CUDA|as|bf16|matrix) .*?\)", "()", line)  # of the machine and the run
            shapes.append(re.sub(r"[\d.,]*\d|[GMk]B\b|threads?|bf16-mixed|32-true", "#", line))
        assert shapes[0] == shapes[1]


def test_the_python_in_the_readme_runs(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}

    exec(block, names)

    assert Path(str(names["run"])).is_dir()


def test_every_named_setting_exists(command: Command) -> None:
    shown = command("fit", "--help=all").out
    table = README[README.index("| setting |") : README.index("If you come from elsewhere")]

    names: set[str] = set()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        section = ""
        for name in re.findall(r"`([a-z_.]+)`", cell):
            section = name.rpartition(".")[0] or section
            names.add(name if "." in name or not section else f"{section}.{name}")
    names.discard("sampling.")
    assert len(names) > 25
    for name in names:
        assert f"--{name} " in shown, name
