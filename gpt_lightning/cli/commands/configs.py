"""List the configs that come with the package, or copy one to edit it.

    python -m gpt_lightning configs
    python -m gpt_lightning configs --copy verdict

A listed name can be given to `--config` as it is.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from gpt_lightning.cli.arguments import Parser
from gpt_lightning.cli.config_files import find_config, packaged_configs
from gpt_lightning.errors import InputError
from gpt_lightning.files import replace_bytes


def run(arguments: list[str]) -> None:
    """Run `configs` with these arguments."""
    parser = Parser("configs", __doc__)
    parser.add_argument("--copy", metavar="NAME", help="write NAME.yaml to the current folder")
    options = parser.parse_args(arguments)
    if options.copy is None:
        for name, path in packaged_configs().items():
            lines = takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
            header = " ".join(line.removeprefix("# ") for line in lines)
            print(f"{name:<15} {header.partition('. ')[0].rstrip('.:')}")
        return
    copy = Path(f"{options.copy}.yaml")
    if copy.exists():
        raise InputError(f"{copy}: already exists; remove it first, or edit it")
    replace_bytes(copy, Path(find_config(options.copy)).read_bytes())
    print(copy)
