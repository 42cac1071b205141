"""The command line before jsonargparse reads it."""

from __future__ import annotations

import argparse
import math
import re
from typing import NoReturn

import yaml

from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import check_prompt


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


def typed_modules(arguments: list[str]) -> list[str]:
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


TYPED_ONLY = (
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


def is_typed(arguments: list[str], option: str) -> bool:
    """Whether an option (`--name value` or `--name=value`) is among the arguments."""
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Rewrites two options into what jsonargparse understands by them.

    `--prompt TEXT` (and `--sampling.stop_strings TEXT`) adds a text, taken literally, to a list that replaces the
    YAML's; `--data.text FILE` stands for itself: the URL and fallback of the YAML's text do not apply to it.
    """
    prepared: list[str] = []
    texts: dict[str, list[str]] = {}
    seen: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name in TEXT_LISTS:
            if not has_value:
                following = next(rest, None)
                if following is None:
                    raise InputError(f"{name} needs a text")
                value = following
            if name == "--prompt":
                check_prompt(value)
            texts.setdefault(name, []).append(value)
            continue
        if name in TEXT_OPTIONS and name in seen:
            raise InputError(f"{name} is given twice; many documents are a folder, a glob or a .jsonl file")
        seen.add(name)
        if name == "--data.text":
            prepared += [f"--data.{one}=null" for one in TEXT_SETTINGS if not is_typed(arguments, f"--data.{one}")]
        prepared.append(argument)
    for name, values in texts.items():  # quoted, so that one that looks like YAML stays a text
        prepared.append(f"{name}=" + yaml.safe_dump(values, default_style='"', width=math.inf).strip())
    return prepared
