from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.console import one_line, quote, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, \u00e9, \U0001f600, \u0633", "plain text, \u00e9, \U0001f600, \u0633"),
        ("\x1b[31mred\x00", r"\x1b[31mred\x00"),
        ("a\u202eb\x9bc\udc80", r"a\u202eb\x9bc\udc80"),
        ("two\n\tlines\r", "two\n\tlines\\r"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert one_line(text) == shown.replace("\n", "\\n")


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("Every effort", "'Every effort'"),
        ("Q: who?\nA:", r"$'Q: who?\nA:'"),
        ("it's \\ \x1b[31m\t", r"$'it\'s \\ \x1b[31m\t'"),
        ("x\udc80\u202e", r"$'x\x80\xe2\x80\xae'"),
    ],
)
def test_an_argument_is_quoted_in_one_line(argument: str, quoted: str) -> None:
    assert quote(argument) == quoted


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@given(
    st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20), max_size=5)
)
def test_a_shell_reads_a_quoted_argument_as_it_was(arguments: list[str]) -> None:
    command = " ".join(map(quote, arguments))

    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)

    assert "\n" not in command
    assert done.stdout == b"".join(os.fsencode(one) + b"\0" for one in arguments or [""])
