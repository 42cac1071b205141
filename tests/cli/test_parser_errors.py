"""jsonargparse's errors, reworded: how values are shown, and what is suggested for unknown settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Result

from gpt_lightning.cli.parser_errors import OTHER_NAMES, explain_parser_error, show_value, unknown_setting
from gpt_lightning.cli.trainer_options import TRAINER_OWNED

Command = Callable[..., Result]
KNOWN = [
    "model",
    "model.vocab_size",
    "model.context_length",
    "model.drop_rate",
    "data.context_length",
    "evaluate_every",
]


def test_an_unknown_message_is_kept() -> None:
    assert explain_parser_error("something \n else", []) == "something else"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two", "'two'"),
        ("a: [b", "'a: [b'"),
        ("2024-10-10", "'2024-10-10'"),
        ("nan", "'nan'"),
        ("", "''"),
        ("3", "3"),
        ("-3.5", "-3.5"),
        ("True", "true"),
        ("true", "true"),
        ("None", "null"),
        ("null", "null"),
        ("[1, None, 'x']", "[1, null, x]"),
        ("{'b': 1, 'a': [True]}", "{b: 1, a: [true]}"),
        ("['é']", "[é]"),
        ("[1j]", "[1j]"),
        ("[" * 10_000, f"'{'[' * 10_000}'"),
    ],
)
def test_values_are_shown_as_in_yaml_with_quotes_around_texts_only(text: str, shown: str) -> None:
    assert show_value(text) == shown


def test_a_long_list_is_shown_on_one_line() -> None:
    assert show_value(str(list(range(100)))) == str(list(range(100)))


@pytest.mark.parametrize("section", ["", "model.", "train.", "trainer.", "a.b."])
def test_settings_of_other_programs_are_suggested_in_any_section(section: str) -> None:
    message = f"unknown setting '{section}block_size'; did you mean 'model.context_length'?"

    assert unknown_setting(f"{section}block_size", KNOWN) == message


def test_nothing_is_suggested_that_the_command_does_not_have() -> None:
    assert unknown_setting("block_size", ["model.vocab_size"]) == "unknown setting 'block_size'"
    assert unknown_setting("trainer.val_check_interval", ["trainer.accelerator"]) == (
        "trainer.val_check_interval is not used here; leave it out"
    )


def test_a_setting_that_cannot_be_set_is_not_suggested() -> None:
    message = "unknown setting 'context_length'; did you mean 'model.context_length'?"

    assert unknown_setting("context_length", KNOWN) == message


def test_every_suggestion_is_a_setting_of_fit(command: Command) -> None:
    shown = command("fit", "--help=all").out

    suggestions = {*OTHER_NAMES.values(), *(name for name in TRAINER_OWNED.values() if name)}
    assert len(suggestions) > 15
    for name in suggestions:
        assert f"  --{name.removeprefix('--')} " in shown, name
