"""Draw the loss curves of one or more runs in one figure.

    python -m gpt_lightning plot RUN [RUN ...]

A RUN is a run folder, or a file in the format of its metrics.jsonl.
"""

from __future__ import annotations

import os

from gpt_lightning.cli.arguments import Parser
from gpt_lightning.errors import InputError
from gpt_lightning.runs.figures import FORMATS, loss_figure, read_curve, save_figure

MOST_CURVES = 10  # matplotlib's number of default colours


def run(arguments: list[str]) -> None:
    """Run `plot` with these arguments."""
    parser = Parser("plot", __doc__)
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run folder, or a file like its metrics.jsonl")
    parser.add_argument(
        "--output", metavar="STEM", help="write STEM.pdf and STEM.png; default: loss, in a single run's folder"
    )
    options = parser.parse_args(arguments)
    if len(options.run) > MOST_CURVES:
        raise InputError(f"plot draws at most {MOST_CURVES} runs at once, got {len(options.run)}")
    curves = [read_curve(run) for run in options.run]
    alone = len(curves) == 1 and os.path.isdir(options.run[0])
    stem, suffix = os.path.splitext(options.output or (os.path.join(options.run[0], "loss") if alone else "loss"))
    if suffix.removeprefix(".") not in FORMATS:
        stem += suffix
    for path in save_figure(loss_figure(curves), stem):
        print(path)
