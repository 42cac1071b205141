"""jsonargparse's error messages as one line."""

from __future__ import annotations

import difflib
import re

from gpt_lightning.cli.trainer_options import CLASS_SETTINGS, why_refused
from gpt_lightning.errors import InputError


class ParserError(InputError):
    """What jsonargparse says; `CLI` puts it into words."""


TYPE_WORDS = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "settings",
    "NoneType": "null",
}
CLASS_ERRORS = {
    r"Importing '([\w.]+)' is not allowed": (
        "class_path '{}' is not allowed; only classes of Lightning that take no code may be named"
    ),
    r"given class_path '([\w.]+)': ": "class_path '{}' not found",
    r"Option '(\w+)' is not accepted": "unknown option '{}'",
    r"arguments are required: (\w+)": "option '{}' is missing",
}


def explain_parser_error(message: str, known: list[str]) -> str:
    """The message of jsonargparse as one line that names the setting and says what was probably meant.

    Args:
        message: What jsonargparse says.
        known: The names of all settings.
    """
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    if stray := re.search(r"[Uu]nrecognized arguments: (?!-)(\S+)", message):
        return f"'{stray[1]}' belongs to no option; options begin with --"
    if section := re.search(r"Parser key \"(\w+)\": Unable to load config ['\"](.*?)['\"]", message):
        return f"{section[1]} must be settings (--{section[1]}.NAME VALUE), not '{section[2]}'"
    unknown = re.search(
        r"does not accept (?:option|nested key) '([\w.+-]+)'|[Uu]nrecognized arguments: (?:--)?([\w.+-]+)"
        r"|Key '([\w.+-]+)' is not expected|No action for key \"([\w.+-]+)\"",
        message,
    )
    if unknown:
        name = next(group for group in unknown.groups() if group)
        close = difflib.get_close_matches(name, known, 1)
        return f"unknown setting '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    wrong_type = re.search(r'Parser key "([\w.]+)": (.*)Given value type: .*Given value:(.*)', message) or re.search(
        r'Parser key "([\w.]+)": (.*?)(?:Got|Given) value:(.*)', message
    )
    if wrong_type:
        name, expected, value = (group.strip() for group in wrong_type.groups())
        for pattern, words in CLASS_ERRORS.items():
            if found := re.search(pattern, expected):
                return f"{name}: {words.format(found[1])}"
        expected = expected.partition(" Errors: ")[0]
        if name in CLASS_SETTINGS:
            for one in re.findall(r"'class_path': '(?:\w+\.)*(\w+)'", value):
                if reason := why_refused(one):
                    return f"{name}: {one} {reason}"
            return f"{name} must name a class of Lightning (class_path: NAME), not '{value}'"
        types = [TYPE_WORDS[one] for one in TYPE_WORDS if f"<class '{one}'>" in expected]
        if types:
            return f"{name} must be {' or '.join(types)}, not " + (
                "null" if value == "None" and "null" not in types else f"'{value}'"
            )
    return message


def explain_class_error(error: BaseException) -> str:
    """What went wrong, in one line, where a class that YAML names could not be made.

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
