"""The table of commands. The module of a command, and Lightning with it, is imported only when the command runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator

from gpt_lightning import __version__
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError, MachineError, raising_on_stop_signals, report_errors

LIGHTNING = "lightning_cli"
# Packages that torchmetrics, which Lightning imports, imports if they are installed, for metrics that no run computes.
UNUSED = ("matplotlib", "scipy", "torchvision", "transformers")
# Command -> its help line and its module in gpt_lightning.cli.
COMMANDS = {
    "fit": ("train a model from a YAML file", LIGHTNING),
    "check": ("estimate the cost of a run and check its config", LIGHTNING),
    "prepare": ("write a text as token shards to an object store or a folder", "commands.prepare"),
    "validate": ("loss and perplexity of a checkpoint on its validation split, or on a text", LIGHTNING),
    "test": ("loss and perplexity of a checkpoint on data.test_text", LIGHTNING),
    "evaluate": ("loss and bits per byte of checkpoints on texts, beside baselines", "commands.evaluate"),
    "predict": ("complete prompts with a checkpoint", "commands.predict"),
    "verify-resume": ("check that a killed and resumed run is bit-identical", "commands.verify_resume"),
    "import": ("convert GPT-2 weights of Hugging Face, the book or nanoGPT", "commands.import_weights"),
    "export": ("write a checkpoint's weights for transformers, the book or llama.cpp", "commands.export"),
    "configs": ("list the configs that come with the package, or copy one", "commands.configs"),
    "plot": ("draw the loss curves of runs", "commands.plot"),
    "report": ("write a report of runs as an HTML page", "commands.report"),
    "explain": ("worked examples of windows, loss and sampling", "commands.explain"),
    "info": ("what a checkpoint contains, or what differs between two", "commands.info"),
    "inspect": ("the candidates for the next token, or how hard each token of a text is", "commands.inspect"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None for those of the process.

    Raises:
        SystemExit: The command failed; its exit code is one of `errors`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if sys.stdout is None or sys.stderr is None:  # the shell closed it (`>&-`)
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the end
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115  open until the end
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # the terminal may not support UTF-8
    # In `--prompt --debug`, --debug is the text of the prompt.
    flags = [i for i, one in enumerate(arguments) if one == "--debug" and arguments[i - 1] != "--prompt"]
    with report_errors(debug=bool(flags)), raising_on_stop_signals():
        _dispatch([argument for i, argument in enumerate(arguments) if i not in flags])


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise InputError(f"expected one of {', '.join(COMMANDS)}")
        lines = [f"usage: python -m {PROGRAM} COMMAND [options]", "", "commands:"]
        lines += [f"  {name:<13} {help_line}" for name, (help_line, _) in COMMANDS.items()]
        lines += ["", f"  python -m {PROGRAM} COMMAND --help lists the options of a command", "  --version"]
        print("\n".join(lines))
    elif arguments[0] == "--version":
        print(f"{PROGRAM} {__version__}")
    elif arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"expected one of {', '.join(COMMANDS)}; got {arguments[0]!r}{hint}")
    elif not _current_folder_exists():
        raise MachineError("the current folder was deleted; change to an existing one (cd)")
    else:
        _check_threads()
        _limit_spinning()
        name = COMMANDS[arguments[0]][1]
        from gpt_lightning.cli.arguments import ALLOW_CLASSES, was_passed  # imports yaml, which --help does without

        # A class of the user's own may need them.
        with _hiding(() if was_passed(arguments, ALLOW_CLASSES) else UNUSED):
            module = importlib.import_module(f"{PROGRAM}.cli.{name}")
        if name == LIGHTNING:
            module.run_command(arguments[0], arguments[1:])
        else:
            module.run(arguments[1:])


def _check_threads() -> None:
    """Raise `InputError` if torch could not read the number of threads, and would run one per core and warn."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", threads.strip()) is None:
        raise InputError(f"the environment variable OMP_NUM_THREADS ({threads}) must be an int of at least 1")


def _limit_spinning() -> None:
    """Let a thread of GNU OpenMP that waits for work sleep after some 20 microseconds instead of milliseconds.

    A thread that spins keeps a core from other programs, and is in the way of the thread that it waits for: beside two
    busy programs on two cores, training a small model takes a third less time this way, and alone as long as before
    (benchmarks/busy.py). libgomp reads the variable when torch loads it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextlib.contextmanager
def _hiding(packages: tuple[str, ...]) -> Iterator[None]:
    """Let packages seem not to be installed to modules that are imported meanwhile.

    Importing transformers alone takes nearly as long as importing torch. A module may ask for a package's version or
    look for the package itself, so both are hidden.
    """
    distribution = importlib.metadata.Distribution
    find = vars(distribution)["from_name"]

    def find_others(cls: type[importlib.metadata.Distribution], name: str) -> importlib.metadata.Distribution:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        found: importlib.metadata.Distribution = find.__get__(None, cls)(name)
        return found

    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import fails, `find_spec` is None
    distribution.from_name = classmethod(find_others)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        distribution.from_name = find  # type: ignore[method-assign]
        for name in hidden:
            sys.modules.pop(name, None)


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
