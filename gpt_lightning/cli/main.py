"""`python -m gpt_lightning COMMAND`: the table of commands, answered without importing Lightning."""

from __future__ import annotations

import difflib
import importlib
import keyword
import os
import sys

from gpt_lightning import __version__
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError, MachineError, raising_on_sigterm, report_errors

# Command -> what it is for. Those of OWN_MODULES load a module of their own, the others Lightning.
COMMANDS = {
    "fit": "train a model from a YAML file",
    "check": "say what a run would come to, from its config and a few steps",
    "validate": "loss and perplexity of a checkpoint on its validation split, or on a text",
    "test": "loss and perplexity of a checkpoint on data.test_text",
    "predict": "continue prompts with a checkpoint",
    "verify-resume": "prove on a config that an interrupted run ends as a straight one does",
    "import": "make a checkpoint of GPT-2's weights: Hugging Face's, the book's, nanoGPT's",
    "export": "write a checkpoint's weights for transformers, the book, llama.cpp",
    "plot": "draw the loss curves of runs",
    "explain": "the documents' worked examples: windows, loss, sampling",
    "look": "what a checkpoint would say next, and what the settings of sampling make of it",
}
OWN_MODULES = {
    "import": "cli.commands.import_weights",
    "export": "cli.commands.export",
    "plot": "cli.commands.plot",
    "explain": "cli.commands.explain",
    "look": "cli.commands.inspect",
    "verify-resume": "cli.commands.verify_resume",
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; ends with `SystemExit` where anything but success is to be reported.

    Args:
        argv: Arguments after the program's name; None takes the process's.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if sys.stdout is None or sys.stderr is None:  # closed by the shell's >&-
        nowhere = open(os.devnull, "w")  # noqa: SIM115  open until the end
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  open until the end
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that cannot show a character
    # `--prompt --debug` is a text.
    flags = [i for i, one in enumerate(arguments) if one == "--debug" and arguments[i - 1] != "--prompt"]
    with report_errors(debug=bool(flags)), raising_on_sigterm():
        _dispatch([argument for i, argument in enumerate(arguments) if i not in flags])


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise InputError(f"expected one of {', '.join(COMMANDS)}")
        lines = [f"usage: python -m {PROGRAM} COMMAND [options]", "", "commands:"]
        lines += [f"  {name:<13} {help_line}" for name, help_line in COMMANDS.items()]
        lines += ["", f"  python -m {PROGRAM} COMMAND --help lists the options of a command", "  --version"]
        print("\n".join(lines))
    elif arguments[0] == "--version":
        print(f"{PROGRAM} {__version__}")
    elif arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"expected one of {', '.join(COMMANDS)}; got {arguments[0]!r}{hint}")
    elif not _current_folder_exists():
        raise MachineError("the current folder was deleted; change to one that is there (cd)")
    elif arguments[0] in OWN_MODULES:
        module = importlib.import_module(f"{PROGRAM}.{OWN_MODULES[arguments[0]]}")
        name = arguments[0].replace("-", "_")
        getattr(module, f"{name}_" if keyword.iskeyword(name) else name)(arguments[1:])
    else:
        from gpt_lightning.cli.lightning_cli import run_command  # loads Lightning: seconds

        run_command(arguments[0], arguments[1:])


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
