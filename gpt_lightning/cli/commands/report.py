"""Write a report of one or more runs: an HTML page that needs no other file.

    python -m gpt_lightning report RUN [RUN ...] [--output FILE]

A RUN is a run folder, its checkpoints folder, or runs/NAME/latest. The report of one run is report.html in its folder,
which `fit` also writes when a run ends. The report of several runs compares them.
"""

from __future__ import annotations

from pathlib import Path

from gpt_lightning.cli.arguments import Parser
from gpt_lightning.console import say
from gpt_lightning.errors import InputError
from gpt_lightning.files import check_absent, check_folder
from gpt_lightning.runs.folder import REPORT, display_path, find_run
from gpt_lightning.runs.html_report import write_report
from gpt_lightning.runs.records import read_run
from gpt_lightning.runs.svg import MOST_RUNS


def run(arguments: list[str]) -> None:
    """Run `report` with these arguments."""
    parser = Parser("report", __doc__)
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--output", metavar="FILE", help=f"file to write; default: {REPORT}, in a single run's folder (rewritten there)"
    )
    options = parser.parse_args(arguments)
    if len(options.run) > MOST_RUNS:
        raise InputError(f"report compares at most {MOST_RUNS} runs, got {len(options.run)}")
    folders: list[Path] = []
    for name in options.run:
        folder = find_run(name)
        if folder in folders:
            raise InputError(f"{name}: is given twice")
        folders.append(folder)
    own = Path(display_path(folders[0]), REPORT) if len(folders) == 1 else None
    output = choose_output(options.output, own)
    records = [read_run(folder) for folder in folders]
    write_report(records, output)
    say(str(output))


def choose_output(given: str | None, own: Path | None) -> Path:
    """Return the file to write: the given one, that of a single run, or report.html in the current folder.

    Args:
        given: The value of --output.
        own: The report of a single run, which may be rewritten; None for several runs.

    Raises:
        InputError: The file already exists, or its folder does not exist or is a file.
    """
    if given is None and own is not None:
        return own
    output = Path(REPORT if given is None else given)
    if given == "" or output.is_dir():
        raise InputError(f"--output must name a file, got {given!r}")
    check_folder(output)
    if own is not None and output.resolve() == own.resolve():
        return own
    check_absent(output)
    return output
