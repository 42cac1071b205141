"""Draw the loss curves of one or more runs in one figure.

    python -m gpt_lightning plot RUN [RUN ...]

A RUN is a run folder, or a file in the format of its metrics.jsonl.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt_lightning.cli.arguments import Parser, check_distinct
from gpt_lightning.console import say, warn
from gpt_lightning.errors import InputError
from gpt_lightning.files import check_absent, check_folder
from gpt_lightning.runs.figures import FORMATS, loss_figure, read_curve, save_figure
from gpt_lightning.runs.folder import display_path, find_run, resolve_latest

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
    runs = [display_path(find_run(path)) if os.path.isdir(resolve_latest(path)) else path for path in options.run]
    check_distinct("RUN", runs)
    curves = [read_curve(run) for run in runs]
    alone = len(curves) == 1 and os.path.isdir(runs[0])
    stem, suffix = os.path.splitext(options.output or (os.path.join(runs[0], "loss") if alone else "loss"))
    if suffix.removeprefix(".") not in FORMATS:
        stem += suffix
    check_folder(Path(stem))
    if not alone or options.output is not None:  # else it is the run's own figure
        for one in FORMATS:
            check_absent(Path(f"{stem}.{one}"))
    tokenizers = sorted({curve.tokenizer for curve in curves if curve.tokenizer is not None})
    if len(tokenizers) > 1:
        warn(f"the tokenizers of these runs differ ({', '.join(tokenizers)}), so their losses cannot be compared")
    for path in save_figure(loss_figure(curves), stem):
        say(str(path))
