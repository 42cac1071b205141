"""Console output: lines, warnings, tables and sizes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

PROGRAM = "gpt_lightning"


def warn(message: str) -> None:
    """Print a one-line warning to stderr."""
    print(f"{PROGRAM}: warning: {message}", file=sys.stderr, flush=True)


def format_bytes(size: int) -> str:
    """Format a number of bytes in GB, MB or kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def say(line: str) -> None:
    """Print a line to stdout, above the progress bar if one is shown."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def line(label: str, text: str) -> str:
    """Return a line of text after its label, which is padded to a column."""
    return f"{label:<12}{text}"


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
