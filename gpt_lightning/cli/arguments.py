"""The command line before jsonargparse reads it."""

from __future__ import annotations

import argparse
import math
import re
from typing import NoReturn

import yaml

from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `InputError`s.

    Args:
        command: Name of the command.
        description: Its help text, printed as it is.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            f"python -m {PROGRAM} {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` instead of printing the usage."""
        raise InputError(message)


ALLOW_CLASSES = "--allow_classes_of"


def allowed_modules(arguments: list[str]) -> list[str]:
    """The modules named by --allow_classes_of.

    Raises:
        InputError: One is no module's name.
    """
    modules = []
    for i, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name == ALLOW_CLASSES:
            module = value if has_value else "".join(arguments[i + 1 : i + 2])
            if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module) is None:
                raise InputError(f"{ALLOW_CLASSES} must be a module's name, got {module!r}")
            modules.append(module)
    return modules


CLI_ONLY = (
    "run_dir",
    "resume",
    "ckpt_path",
    "config",
    "allow_data_change",
    "allow_classes_of",
    "prompts_file",
    "jsonl",
    "output",
    "interactive",
)
# Settings that are given as another one: source -> target.
LINKS = {
    "model.context_length": "data.context_length",
    "seed_everything": "data.seed",
    "evaluate_batches": "data.evaluate_batches",
}
TEXT_OPTIONS = ("--data.text", "--data.val_text", "--data.test_text")
TEXT_LISTS = ("--prompt", "--sampling.stop_strings")
# What belongs to one text: whoever names another text does not mean these.
TEXT_SETTINGS = ("url", "fallback_text")


def was_passed(arguments: list[str], option: str) -> bool:
    """Whether an option (`--name value` or `--name=value`) is among the arguments."""
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def literal_texts(arguments: list[str]) -> list[str]:
    """Collect each `--prompt TEXT` and `--sampling.stop_strings TEXT` into one option with a list of quoted texts.

    jsonargparse would read each of them as YAML.

    Raises:
        InputError: The last option lacks its text, or a text is not UTF-8.
    """
    prepared: list[str] = []
    texts: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name not in TEXT_LISTS:
            prepared.append(argument)
            continue
        if not has_value:
            following = next(rest, None)
            if following is None:
                raise InputError(f"{name} needs a text")
            value = following
        try:
            value.encode()
        except UnicodeEncodeError as error:  # which YAML could not hold
            raise InputError(f"{name.removeprefix('--')} is not UTF-8 text (at character {error.start})") from None
        texts.setdefault(name, []).append(value)
    for name, values in texts.items():
        prepared.append(f"{name}=" + yaml.safe_dump(values, default_style='"', width=math.inf).strip())
    return prepared


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Rewrite two options for jsonargparse: the texts of `literal_texts`, and `--data.text FILE`.

    The URL and fallback of a YAML file's text do not apply to a text of the command line.
    """
    prepared: list[str] = []
    seen: set[str] = set()
    for argument in literal_texts(arguments):
        name = argument.partition("=")[0]
        if name in TEXT_OPTIONS and name in seen:
            raise InputError(f"{name} is given twice; many documents are a folder, a glob or a .jsonl file")
        seen.add(name)
        if name == "--data.text":
            prepared += [f"--data.{one}=null" for one in TEXT_SETTINGS if not was_passed(arguments, f"--data.{one}")]
        prepared.append(argument)
    return prepared
