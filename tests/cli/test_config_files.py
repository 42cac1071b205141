from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import yaml
from conftest import Result
from hypothesis import example, given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from gpt_lightning.cli.arguments import CLI_ONLY, prepare_arguments, was_passed
from gpt_lightning.cli.config_files import SECTIONS, ConfigFile, Quoting, read_config

Command = Callable[..., Result]


def test_aliases_are_read(in_tmp: Path) -> None:
    Path("a.yaml").write_text("a: &a [x, x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(3)))

    assert read_config("a.yaml")[0]["b2"] == [["x"] * 3] * 2


@given(st.dictionaries(st.text(string.ascii_letters, min_size=1), st.integers() | st.text()))
def test_yaml_values_are_read_unchanged(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    others = {*SECTIONS, *CLI_ONLY, "prompt"}
    content = {key: value for key, value in content.items() if key not in others}
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(yaml.safe_dump({"one": 1, **content}))

    assert read_config(str(path))[0] == {"one": 1, **content}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=3))
@example(["[Chapter 1]"])
@example(["[]", "123", "a: b", "--prompt", "null", "{x: 1}", "&a", "# b", "\x85\ufeff\n"])
def test_prompts_are_texts_whatever_they_look_like(prompts: list[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--prompt", type=list[str], default=["of the config"])
    arguments = [part for prompt in prompts for part in ("--prompt", prompt)]

    assert parser.parse_args(prepare_arguments(arguments)).prompt == prompts


def parse_yaml(folder: Path, *contents: str) -> Any:
    """Return the settings that jsonargparse reads from YAML files."""
    paths = [folder / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content, encoding="utf-8")
    parser = ArgumentParser()
    parser.add_argument("--config", action=ConfigFile)
    parser.add_argument("--prompt", type=list[str])
    parser.add_argument("--evaluate_every", type=int)
    parser.add_argument("--sampling.stop_strings", type=list[str])
    parser.add_argument("--expected.sha256", type=str | None)
    return parser.parse_args([f"--config={path}" for path in paths])


@pytest.mark.parametrize(
    ("written", "prompts"),
    [
        ("['123', \"null\", 'a: b', plain words]", ["123", "null", "a: b", "plain words"]),
        ("\n- |\n  two\n  lines", ["two\nlines"]),
        ("[]", []),
    ],
)
def test_prompts_in_yaml_are_lists_of_texts(tmp_path: Path, written: str, prompts: list[str]) -> None:
    settings = parse_yaml(tmp_path, f"prompt: {written}")

    assert settings.prompt == prompts
    assert settings.config == [str(tmp_path / "0.yaml")]
    nested = parse_yaml(tmp_path, "sampling:\n" + indent(f"stop_strings: {written}", "  "))
    dotted = parse_yaml(tmp_path, f"sampling.stop_strings: {written}")
    assert dotted.sampling.stop_strings == nested.sampling.stop_strings == prompts


@pytest.mark.parametrize("name", ["prompt", "sampling.stop_strings"])
@pytest.mark.parametrize("written", ["[1.50]", "[null]", "[yes]", "[[1, 2]]", "[1e3]", "{a: 1}", "abc", "3"])
def test_values_that_yaml_does_not_read_as_texts_must_be_quoted(
    command: Command, config: Path, name: str, written: str
) -> None:
    Path("more.yaml").write_text(f"{name}: {written}\n")

    result = command("fit", "--config", config, "--config", "more.yaml")

    assert result.code == 2
    assert result.error.startswith(f"{name} must be a list of texts, not ")
    hint = f"write {name}: ['abc']" if written == "abc" else "put each text in quotes"
    assert result.error.endswith(f"; {hint}")


LOOKS_LIKE_YAML = [
    "1",
    "-1.5",
    "1e3",
    "null",
    "~",
    "yes",
    "2024-01-01",
    "12:30:45",
    "a: b",
    "- a",
    "#",
    "'",
    '"',
    "\n",
    "<<",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(LOOKS_LIKE_YAML)).map("".join)


@given(st.lists(TEXTS))
@example(["\U0001f600 \x85\u2028\ufeff\0", " ", "\r\n"])
def test_prompts_in_a_runs_config_are_read_back(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    kept = yaml.dump({"prompt": prompts, "evaluate_every": 3}, Dumper=Quoting, sort_keys=False)  # as CLI writes it

    assert parse_yaml(tmp_path_factory.mktemp("yaml"), kept).prompt == prompts


def test_a_text_of_the_command_line_resets_the_fallback_of_yaml() -> None:
    prepared = prepare_arguments(["--data.text", "a.txt", "--data.url=http://b"])

    assert prepared == [
        "--data.fallback_text=null",
        "--data.text",
        "a.txt",
        "--data.url=http://b",
    ]


@pytest.mark.parametrize(
    ("argument", "is_reset"),
    [
        ("--model.drop_rate=0.3", True),
        ("--init_from=a.ckpt", True),
        ("--trainer.max_epochs=3", True),
        ("--trainer.precision=32-true", False),
        ("--data.num_workers=2", False),
        ("--sampling.top_k=3", False),
        ("--resume", False),
    ],
)
def test_options_that_change_the_losses_reset_what_the_config_expects(argument: str, is_reset: bool) -> None:
    assert prepare_arguments([argument]) == [argument, *(["--expected.sha256=null"] if is_reset else [])]
    own = [argument, "--expected.steps=3"]
    assert prepare_arguments(own) == own


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("evaluate_every: 3\n", None),
        ("prompt: [It]\n", "a"),
        ("evaluate_every: 3\nexpected: {sha256: b}\n", "b"),
    ],
)
def test_a_later_file_that_changes_the_losses_resets_what_an_earlier_one_expects(
    tmp_path: Path, content: str, kept: str | None
) -> None:
    assert parse_yaml(tmp_path, "evaluate_every: 5\nexpected: {sha256: a}\n", content).expected.sha256 == kept


@pytest.mark.parametrize("name", ["fit", "predict"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt"], "--prompt needs a text"),
        (["--prompt", ""], "prompt is empty; use <|endoftext|> to generate without a prompt"),
        (["--prompt=\udcff"], "prompt is not UTF-8 text (at character 0)"),
    ],
)
def test_invalid_prompts_are_refused(
    command: Command, config: Path, trained: Path, name: str, arguments: list[str], message: str
) -> None:
    own = ["--config", config] if name == "fit" else ["--ckpt_path", trained / "checkpoints/last.ckpt"]

    result = command(name, *own, *arguments)

    assert (result.code, result.error) == (2, message)


def test_was_passed() -> None:
    assert was_passed(["--a.b", "1"], "--a.b")
    assert was_passed(["--a.b=1"], "--a.b")
    assert not was_passed(["--a.bc=1", "a.b"], "--a.b")
