"""Every command in the README and in docs/ runs; the names in them exist; the shown run is one of this program."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, STORY, Result, tiny_settings
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_lightning.cli.main import COMMANDS, LIGHTNING, main
from gpt_lightning.cli.parser_errors import OTHER_NAMES

Command = Callable[..., Result]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = "python -m gpt_lightning "
OTHERS = {
    "pip install -c constraints.txt -e .",
    "pip install -c constraints.txt -e . && python -m gpt_lightning fit --config configs/verdict.yaml",
    "pip install -c constraints.txt -e '.[dev]' && pytest",
    "pip install -c constraints.txt -e '.[hub]'",
    "pytest -m slow",
    "python benchmarks/training.py --json --pairs 7",
    "python benchmarks/generation.py --json",
    "python benchmarks/busy.py --configs debug",
    "python benchmarks/shards.py --steps 400 --seeds 1 2 3",
    "python benchmarks/scaling.py",
    "python benchmarks/busy.py --configs classroom --trainer.max_epochs 9",
    "python benchmarks/speedrun.py --jobs 2 --figure speedrun.png",
    "python benchmarks/speedrun.py --minutes 4 --seeds 1 2 3 --jobs 2 --rounds 2 --points 4 --recipes nanogpt ours "
    '"nanogpt, a third" "with muon" "with batch" "with sampled softmax" "without muon" '
    '"without batch" "without sampled softmax"',
    "python benchmarks/start.py",
    "python benchmarks/window.py runs/ours/1/checkpoints/best.ckpt validation.txt",
    "pytest tests/checkpoints/conversion",
    "tensorboard --logdir runs",
}


def lines_of(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def commands_of(page: Path) -> list[str]:
    """The commands of a page, in order; those that start and kill real processes are slow and left out."""
    lines = [line[line.index(OURS) :] for line in lines_of(page) if OURS in line]
    return [line for line in lines if " verify-resume " not in line]


def test_every_command_is_known() -> None:
    lines = [line for page in PAGES for line in lines_of(page)]

    assert {line for line in lines if not line.startswith(OURS)} == OTHERS
    assert {shlex.split(line)[3] for line in lines if line.startswith(OURS)} == set(COMMANDS)


def test_ci_runs_the_readmes_test_commands() -> None:
    commands = (ROOT / ".ci" / "run").read_text()

    assert "pip install -q -c constraints.txt -e '.[dev]' && pytest\npytest -m slow\n" in commands


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, with small configs of the same names and a run of verdict.yaml."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").mkdir()
    (folder / "configs" / "reference").symlink_to(ROOT / "configs" / "reference")
    (folder / "data").mkdir()
    (folder / "texts").mkdir()
    text = STORY.read_text()[:4000]
    (folder / "data" / STORY.name).write_text(text)
    (folder / "prompts.txt").write_text("Every effort\nI had always\n")
    (folder / "my_text.txt").write_text(text.upper())
    for name in ("notes", "more"):
        (folder / "texts" / f"{name}.md").write_text(text)
    settings = tiny_settings()
    settings["trainer"]["max_epochs"] = 2
    settings["evaluate_every"] = 20
    settings["data"] |= {"text": f"data/{STORY.name}", "batch_size": 8}
    (folder / "configs" / "debug.yaml").write_text(yaml.safe_dump(settings))
    settings["data"] |= {"tokenizer": "gpt2"}  # bytes cannot be exported for transformers
    for name in ("verdict", "classroom"):
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    settings["model"] = {"context_length": 32}
    limits = {"max_steps": 2, "limit_val_batches": 2}
    tuned = settings | {"init_from": "gpt2.ckpt", "evaluate_batches": 2, "trainer": settings["trainer"] | limits}
    (folder / "configs" / "finetune_gpt2.yaml").write_text(yaml.safe_dump(tuned))
    config = GPT2Config(n_positions=40, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "openai-community" / "gpt2")  # found before the hub is asked
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(["fit", "--config", "configs/verdict.yaml"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def clone(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained` as the current folder."""
    folder = tmp_path / "clone"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def run_lines(lines: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in lines:
        arguments = shlex.split(line.removeprefix(OURS))
        if "--sampling.top_k" not in arguments and COMMANDS[arguments[0]][1] == LIGHTNING:
            arguments += ["--sampling.max_new_tokens=4"]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Every effort\n")))

        result = command(*arguments)

        assert result.code == 0, (line, result.err)
        assert result.out or "--output completions.jsonl" in line, line


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(
    page: Path, clone: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the page: what one command writes, the next ones read."""
    run_lines(commands_of(page), command, monkeypatch)


@pytest.mark.slow
def test_the_resumed_run_of_the_docs_is_identical(
    clone: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = [line for page in PAGES for line in lines_of(page) if " verify-resume " in line]
    (clone / "data" / STORY.name).write_text(STORY.read_text())  # long enough to be killed on the way

    run_lines([line], command, monkeypatch)


def test_the_shown_output_has_the_lines_that_a_run_prints(clone: Path, command: Command) -> None:
    """Each line of a run, its numbers left out, is in docs/verdict.txt in the same words."""
    settings = tiny_settings()
    settings["data"]["batch_size"] = 50
    (clone / "tiny.yaml").write_text(yaml.safe_dump(settings))
    printed = command("fit", "--config", "tiny.yaml", "--run_dir", clone / "run").out
    shown = (ROOT / "docs" / "verdict.txt").read_text()

    for start in (
        "device  ",
        "run folder  ",
        "Untrained ",
        "Training completed ",
        r"[\d,]+ tokens seen",
        "best.ckpt is ",
    ):
        shapes = []
        for text in (shown, printed):
            (line,) = re.findall(rf"^{start}.*$", text, re.MULTILINE)
            line = re.sub(r"folder  .*?;|\((no CUDA|as|bf16|matrix) .*?\)", "()", line)  # of the machine and the run
            shapes.append(re.sub(r"[\d.,]*\d|[GMk]B\b|threads?|bf16-mixed|32-true", "#", line))
        assert shapes[0] == shapes[1]


def test_the_readme_quotes_the_shown_output() -> None:
    shown = (ROOT / "docs" / "verdict.txt").read_text().splitlines()
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "Untrained" in block]

    quoted = [line for line in block.splitlines() if line != "..."]
    assert len(quoted) > 10
    for line in quoted:
        start = line.removesuffix(" ...")
        assert any(other == line or (line != start and other.startswith(start)) for other in shown), line


def test_the_python_in_the_readme_runs(clone: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}

    exec(block, names)

    assert Path(str(names["run"])).is_dir()


def test_the_page_of_settings_is_up_to_date(command: Command) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()

    assert command("fit", "--help=markdown").out == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src(?:set)?=\"([^\"]+)\"", page.read_text())

    for link in (first or second for first, second in links):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_named_file_exists() -> None:
    text = "".join(page.read_text() for page in PAGES)
    paths = re.findall(r"`((?:tests|benchmarks|configs|docs)/[\w./]+\.\w+)`", text)
    paths += re.findall(r"(?:pytest|python) ((?:tests|benchmarks|docs)/[\w./]+)", text)

    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_named_setting_exists() -> None:
    rows = (ROOT / "docs" / "settings.md").read_text()
    known = set(re.findall(r"^\| `([\w.]+)` \|", rows, re.MULTILINE))
    text = "".join(page.read_text() for page in PAGES if page.stem != "settings")
    dotted = re.findall(r"`-{0,2}((?:data|model|sampling|trainer)\.[a-z_]+)[:` ]", text)
    single = re.findall(
        r"`-{0,2}((?:evaluate|save|sample)_(?!model)[a-z]+|early_stopping_patience|init_from)[:` ]", text
    )
    tables = (ROOT / "docs" / "sampling.md").read_text().partition("## Files")[0]
    sampling = re.findall(r"^\| `([a-z_]+)` \|", tables, re.MULTILINE)

    names = {*dotted, *single, *(f"sampling.{name}" for name in sampling)}
    names -= {"model.json", "model.pth", "model.safetensors"}
    assert len(sampling) == 8
    assert len(names) > 25
    assert names <= known


def test_names_of_other_trainers_are_suggested() -> None:
    """A setting that the page names for another trainer leads to the one in the same row."""
    rows = (ROOT / "docs" / "settings.md").read_text().partition("| here |")[2].partition("\n\n")[0].splitlines()[2:]
    others = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.partition("|")[2].partition("|")[2])}

    missing = {"batch_size", "lr_scheduler_type", "warmup_steps"}  # the same name here, or another thing
    assert len(rows) == 9
    assert others - missing <= set(OTHER_NAMES)


def test_the_quoted_example_is_what_explain_prints(command: Command) -> None:
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "book.md").read_text(), re.DOTALL)
    printed = command("explain", "sampling").out.splitlines()

    assert set("".join(blocks).splitlines()) <= set(printed)


def test_the_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
