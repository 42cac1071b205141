"""Console output: lines, warnings, tables and sizes."""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Sequence

from tqdm import tqdm

PROGRAM = "gpt_lightning"
ESCAPES = {"\n": r"\n", "\t": r"\t", "\\": r"\\", "'": r"\'"}  # in the shell's $'...'
KEPT = "\n\t\u200c\u200d"  # joiners and non-joiners are parts of words and of emoji


def visible(text: str) -> str:
    r"""Replace control characters, which could change how other text is shown, by escapes such as \x1b."""
    return "".join(
        one
        if one.isprintable() or one in KEPT or unicodedata.category(one) == "Zs"
        else repr(one)[1:-1]  # also of half surrogates, in the names of files
        for one in text
    )


def one_line(text: str) -> str:
    """Replace control characters and newlines, which can be in the name of a file, by escapes."""
    return visible(text).replace("\n", "\\n")


def quote(argument: str) -> str:
    """Quote an argument for a shell (bash, zsh or ksh), so that a command with it is one line that can be pasted."""
    if argument.isprintable():
        return shlex.quote(argument)
    escaped = "".join(
        ESCAPES.get(one) or (one if one.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(one)))
        for one in argument
    )
    return f"$'{escaped}'"


def warn(message: str) -> None:
    """Print a one-line warning to stderr, with control characters escaped."""
    print(f"{PROGRAM}: warning: {one_line(message)}", file=sys.stderr, flush=True)


def format_bytes(size: int) -> str:
    """Format a number of bytes in GB, MB or kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def plural(count: int, noun: str) -> str:
    """Return a count and a noun, which gets an s unless the count is 1."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def labeled(label: str, text: str) -> str:
    """Return a line of text after its label, which is padded to a column."""
    return f"{label:<12}{text}"


def say(line: str) -> None:
    """Print a line to stdout, above the progress bar if one is shown, with control characters escaped."""
    tqdm.write(one_line(line), file=sys.stdout)
    sys.stdout.flush()


def table(align: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a table with aligned columns.

    Args:
        align: One character per column: < (left) or > (right).
        header: The column names.
        rows: Rows of cells, one cell per column.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
