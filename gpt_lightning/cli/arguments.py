"""Prepare the command line for jsonargparse."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml

from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `InputError`s, and for which an empty text is one, except as a prompt.

    Args:
        command: Name of the command.
        description: Its help text, printed without reformatting.
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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments; `parse_args` calls this method."""
        options, rest = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            if name != "prompt" and "" in (value if isinstance(value, list) else [value]):
                is_option = any(one.partition("=")[0] == f"--{name}" for one in args)
                raise InputError(f"{f'--{name}' if is_option else name.upper()} is empty")
        return options, rest


def check_distinct(option: str, values: Sequence[str] | None) -> None:
    """Raise `InputError` if an option that may be repeated has the same value twice."""
    for i, value in enumerate(values or ()):
        if value in (values or ())[:i]:
            raise InputError(f"{option} {value} is given twice")


ALLOW_CLASSES = "--allow_classes_of"


def allowed_modules(arguments: list[str]) -> list[str]:
    """Return the modules named by --allow_classes_of.

    Raises:
        InputError: A value is not a valid module name.
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
    "copied",
    "devices",
    "strategy",
)
# Settings that cannot be set, because they are copies of another one: source -> copy.
LINKS = {
    "model.context_length": "data.context_length",
    "seed_everything": "data.seed",
    "evaluate_batches": "data.evaluate_batches",
}
TEXT_OPTIONS = ("--data.text", "--data.val_text", "--data.test_text")
TEXT_LISTS = ("--prompt", "--sampling.stop_strings")
# Settings that belong to `data.text`: they are reset when another text is named.
TEXT_SETTINGS = ("url", "fallback_text")
# `expected` is dropped by this setting, and is dropped if another file or the command line changes the run's losses.
EXPECTED_TEXT = "expected.sha256"
SAME_LOSSES = (
    "data.cache_dir",
    "data.fallback_text",
    "data.num_workers",
    "data.test_text",
    "data.text",  # compared by its checksum
    "data.url",
    "model.activation_checkpointing",
    "model.compile",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.precision",
)


def changes_losses(setting: str) -> bool:
    """Return whether another value of a setting makes the losses of a run incomparable with those expected.

    Args:
        setting: Full name of the setting, in any section.
    """
    section = setting.partition(".")[0]
    others = ("seed_everything", "init_from", "evaluate_every", "evaluate_batches", "early_stopping_patience")
    return section in ("data", "model", "trainer", *others) and setting not in SAME_LOSSES


def was_passed(arguments: list[str], option: str) -> bool:
    """Return whether an option (`--name value` or `--name=value`) is among the arguments."""
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def literal_texts(arguments: list[str]) -> list[str]:
    """Collect all `--prompt TEXT`, and all `--sampling.stop_strings TEXT`, into one option with a list of quoted texts.

    Without the quotes, jsonargparse would read each text as YAML.

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
        except UnicodeEncodeError as error:  # YAML cannot represent it
            raise InputError(f"{name.removeprefix('--')} is not UTF-8 text (at character {error.start})") from None
        texts.setdefault(name, []).append(value)
    for name, values in texts.items():
        prepared.append(f"{name}=" + yaml.safe_dump(values, default_style='"', width=math.inf).strip())
    return prepared


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Rewrite the command line for jsonargparse.

    Texts are quoted by `literal_texts`. `--data.text FILE` also resets the URL and the fallback, which belong to the
    text that a YAML file names, and options that change the losses reset `expected`.

    Raises:
        InputError: See `literal_texts`; or a text option is repeated.
    """
    prepared: list[str] = []
    seen: set[str] = set()
    for argument in literal_texts(arguments):
        name = argument.partition("=")[0]
        if name in TEXT_OPTIONS and name in seen:
            raise InputError(f"{name} is given twice; for several documents name a folder, a glob or a .jsonl file")
        seen.add(name)
        if name == "--data.text":
            prepared += [f"--data.{one}=null" for one in TEXT_SETTINGS if not was_passed(arguments, f"--data.{one}")]
        prepared.append(argument)
    names = [name.removeprefix("--") for name in seen]
    if any(map(changes_losses, names)) and not any(name.startswith("expected") for name in names):
        prepared.append(f"--{EXPECTED_TEXT}=null")
    return prepared
