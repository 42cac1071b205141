"""What can go wrong, whose fault it is, and the exit code that says so.

    InputError      2   the user: a setting, a text, a prompt, a checkpoint
    MachineError    1   the machine: permission, disk, network, memory
    DivergedError   3   the training: a gradient, loss or weight that is no longer a number
    anything else  70   this program: a bug; its traceback is written to a file

`report_errors` turns each of them into one line on stderr. A line always names the setting or
the file, its value and the limit. `assert` is for what only a bug can break.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator

from gpt_lightning.console import PROGRAM, format_bytes

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_DIVERGED = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


class InputError(ValueError):
    """Something that the user gave cannot be used."""

    exit_code = EXIT_INPUT


class MachineError(RuntimeError):
    """Something that the machine should do, it refused."""

    exit_code = EXIT_MACHINE


class DivergedError(RuntimeError):
    """The training left the numbers: a gradient, a loss or a weight is infinite or not a number."""

    exit_code = EXIT_DIVERGED


class Stopped(Exception):
    """A signal ended the run after its last step was saved; all has been said.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


class Terminated(BaseException):
    """SIGTERM where there is no step to finish: like `KeyboardInterrupt`, no `except Exception` is meant for it."""


def describe_os_error(error: OSError) -> tuple[str, int]:
    """One line and the exit code for an operating-system error, named by its file."""
    name = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else None
    what = (error.strerror or str(error)).lower()
    if isinstance(error, FileNotFoundError) and name:
        return f"{name}: no such file", EXIT_INPUT
    if isinstance(error, (IsADirectoryError, NotADirectoryError)) and name:
        return f"{name}: {what}", EXIT_INPUT
    return (f"{name}: {what}" if name else what), EXIT_MACHINE


def memory_bytes() -> int:
    """Of this machine, whatever uses it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def why_out_of_memory(error: BaseException) -> str | None:
    """What was asked for and what is there; None where the error is another one."""
    message = str(error)
    # torch has a class for a GPU's memory only; on a CPU its allocator's name is all there is.
    by_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in message
    if not isinstance(error, MemoryError) and not by_torch:
        return None
    there = f"this machine has {format_bytes(memory_bytes())}"
    if asked := re.search(r"tried to allocate (\d+) bytes", message):
        return f"{format_bytes(int(asked[1]))} were asked for at once, {there}"
    return message or there  # a GPU's names its own numbers


def describe_expected(error: BaseException) -> tuple[str, int] | None:
    """The line and exit code of an expected error; None for a bug."""
    if isinstance(error, (InputError, MachineError, DivergedError)):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return describe_os_error(error)
    if (reason := why_out_of_memory(error)) is not None:
        return f"out of memory ({reason}); take a smaller batch_size or model", EXIT_MACHINE
    if isinstance(error, ModuleNotFoundError):  # of what Lightning needs for some of its classes, or of ours
        return f"{error}; install what is missing with pip", EXIT_INPUT
    if type(error).__name__ == "MisconfigurationException":  # by name: Lightning is not imported here
        return str(error), EXIT_INPUT
    return None


def fail(message: str, exit_code: int) -> SystemExit:
    """Prints one error line to stderr and returns the exit to raise."""
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return SystemExit(exit_code)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Has SIGTERM raise `Terminated`, so that what was begun is cleared away; `callbacks/signals.py` takes it over."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and clearing away is under way
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def report_errors(debug: bool = False) -> Iterator[None]:
    """Ends the program with one line and the right exit code, whatever goes wrong inside.

    Args:
        debug: Let every error through with its traceback.
    """
    try:
        yield
        sys.stdout.flush()  # here, where a closed pipe is still an error with a name
    except BrokenPipeError:
        # stdout was closed by its reader (`| head`): nobody is left to tell, and the interpreter must
        # not try to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise fail("interrupted", EXIT_INTERRUPTED) from None
    except Terminated:
        raise fail("terminated", EXIT_TERMINATED) from None
    except Exception as error:
        if debug:
            raise
        known = describe_expected(error)
        if known is not None:
            raise fail(*known) from None
        with tempfile.NamedTemporaryFile("w", prefix=f"{PROGRAM}-", suffix=".traceback", delete=False) as file:
            file.write(traceback.format_exc())
        first_line = str(error).split("\n", 1)[0][:300]
        raise fail(
            f"internal error: {type(error).__name__}: {first_line} (a bug; traceback in {file.name})", EXIT_BUG
        ) from None
