"""jsonargparse's error messages as one line that names the setting."""

from __future__ import annotations

import difflib
import re
from typing import NoReturn

from jsonargparse import ArgumentParser

from gpt_lightning.cli.arguments import TEXT_LISTS
from gpt_lightning.cli.trainer_options import CLASS_SETTINGS, why_refused
from gpt_lightning.errors import InputError

TYPES = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "settings",
    "NoneType": "null",
}
UNKNOWN = (
    r"does not accept (?:option|nested key) '([\w.+-]+)'|[Uu]nrecognized arguments: (?:--)?([\w.+-]+)"
    r"|Key '([\w.+-]+)' is not expected|No action for key \"([\w.+-]+)\""
)
UNION_TYPE = r'Parser key "([\w.]+)": (.*)Given value type: .*Given value:(.*)'
WRONG_TYPE = r'Parser key "([\w.]+)": (.*?)(?:Got|Given) value:(.*)'
WORDS = {
    r"[Uu]nrecognized arguments: (?!-)(\S+)": "'{0}' belongs to no option; options begin with --",
    r"Parser key \"(\w+)\": Unable to load config ['\"](.*?)['\"]": (
        "{0} must be settings (--{0}.NAME VALUE), not '{1}'"
    ),
    r"Parser key \"([\w.]+)\": .*Importing '([\w.]+)' is not allowed": (
        "{0}: class_path '{1}' is not allowed; only classes of Lightning that take no code may be named"
    ),
    r"Parser key \"([\w.]+)\": .*given class_path '([\w.]+)': ": "{0}: class_path '{1}' not found",
    r"Parser key \"([\w.]+)\": .*Option '(\w+)' is not accepted": "{0}: unknown option '{1}'",
    r"Parser key \"([\w.]+)\": .*arguments are required: (\w+)": "{0}: option '{1}' is missing",
}


class ParserError(InputError):
    """A message of jsonargparse, see `explain_parser_error`."""


class RaisingParser(ArgumentParser):
    """A parser that raises its errors instead of printing every option there is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ParserError(message)


def unknown_setting(name: str, known: list[str]) -> str:
    """Return that a setting is unknown, and which of the known ones may have been meant."""
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown setting '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")


def explain_parser_error(message: str, known: list[str]) -> str:
    """Return a message of jsonargparse as one line that names the setting, its value and its limit.

    Args:
        message: Of jsonargparse.
        known: The names of all settings.
    """
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    for pattern, words in WORDS.items():
        if found := re.search(pattern, message):
            return words.format(*found.groups())
    if unknown := re.search(UNKNOWN, message):
        return unknown_setting(next(filter(None, unknown.groups())), known)
    wrong = re.search(UNION_TYPE, message) or re.search(WRONG_TYPE, message)
    if wrong is None:
        return message
    name, expected, value = (group.strip() for group in wrong.groups())
    types = [words for one, words in TYPES.items() if f"<class '{one}'>" in expected.partition(" Errors: ")[0]]
    given = "null" if value == "None" and "null" not in types else f"'{value}'"
    if f"--{name}" in TEXT_LISTS:
        return f"{name} must be a list of texts, not {given}; quote what YAML reads as something else"
    if name in CLASS_SETTINGS:
        classes = re.findall(r"'class_path': '(?:\w+\.)*(\w+)'", value)
        reasons = [f"{name}: {one} {reason}" for one in classes if (reason := why_refused(one))]
        return next(iter(reasons), f"{name} must name a class of Lightning (class_path: NAME), not '{value}'")
    return f"{name} must be {' or '.join(types)}, not {given}" if types else message


def explain_class_error(error: BaseException) -> str:
    """Return why a class that YAML names could not be made, as one line.

    Args:
        error: Of jsonargparse, whose causes are the class's own error.
    """
    name = "trainer"
    while True:
        if found := re.search(r"class_path '([\w.]+)'", str(error)):
            name = f"trainer: {found[1].rpartition('.')[2]}"
        if error.__cause__ is None:
            return f"{name}: {' '.join(str(error).split())}"
        error = error.__cause__
