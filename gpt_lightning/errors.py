"""Exceptions and exit codes.

    InputError      2   invalid input: a setting, text, prompt or checkpoint
    MachineError    1   the system refused an operation: permission, disk, network, memory
    DivergedError   3   training diverged: a gradient, loss or weight is infinite or NaN
    anything else  70   a bug in this program; its traceback is written to a file

`report_errors` turns each of them into one line on stderr. The line names the setting or file, its
value and the limit. `assert` is reserved for conditions that only a bug can violate.
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

from gpt_lightning.console import PROGRAM, format_bytes, visible

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_DIVERGED = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
LONG_NAME = re.compile(r"([^\s/\\]{40})[^\s/\\]{41,}([^\s/\\]{40})")  # of a file, or a value
# SIGTERM; a terminal that closes; a batch system's limit of processor time. Windows has the first only.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name)]


class InputError(ValueError):
    """An invalid setting, text, prompt or checkpoint."""

    exit_code = EXIT_INPUT


class MachineError(RuntimeError):
    """The system refused an operation: permission, disk, network or memory."""

    exit_code = EXIT_MACHINE


class DivergedError(RuntimeError):
    """Training diverged: a gradient, loss or weight is infinite or NaN."""

    exit_code = EXIT_DIVERGED


class Stopped(Exception):
    """A signal stopped the run and its last step was saved; all messages have been printed.

    Args:
        signal_number: The number of the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


class Terminated(BaseException):
    """A stop signal outside of training; like `KeyboardInterrupt`, it is not caught by `except Exception`.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"terminated by signal {signal_number}")
        self.signal_number = signal_number


def not_finite() -> DivergedError:
    """Return the error for a checkpoint whose network computes infinite or NaN values."""
    return DivergedError("the model's logits are not finite; its training may have diverged")


def describe_os_error(error: OSError) -> tuple[str, int]:
    """Return a one-line message that names the file, and the exit code, for an operating-system error."""
    name = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else None
    what = (error.strerror or str(error)).lower()
    if isinstance(error, FileNotFoundError) and name:
        return f"{name}: no such file", EXIT_INPUT
    if isinstance(error, (IsADirectoryError, NotADirectoryError)) and name:
        return f"{name}: {what}", EXIT_INPUT
    return (f"{name}: {what}" if name else what), EXIT_MACHINE


def memory_bytes() -> int:
    """Return this machine's total memory in bytes, used or not."""
    import psutil  # a quarter of the start-up of commands that do not need it

    return int(psutil.virtual_memory().total)


def why_out_of_memory(error: BaseException) -> str | None:
    """Describe the allocation that failed and the memory size; None if the error is not an out-of-memory error."""
    message = str(error)
    # torch raises OutOfMemoryError only for GPUs; CPU failures are recognized by the allocator's name.
    by_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in message
    if not isinstance(error, MemoryError) and not by_torch:
        return None
    there = f"this machine has {format_bytes(memory_bytes())}"
    if asked := re.search(r"tried to allocate (\d+) bytes", message):
        return f"tried to allocate {format_bytes(int(asked[1]))}, {there}"
    return message or there  # CUDA's message already contains the sizes


def describe_expected(error: BaseException) -> tuple[str, int] | None:
    """Return the message and exit code of an expected error, or None for a bug."""
    if isinstance(error, (InputError, MachineError, DivergedError)):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return describe_os_error(error)
    if (reason := why_out_of_memory(error)) is not None:
        return f"out of memory ({reason}); use a smaller batch_size or model", EXIT_MACHINE
    if isinstance(error, ModuleNotFoundError):  # an optional dependency, of a Lightning class or of this package
        return f"{error}; install the missing package with pip", EXIT_INPUT
    if type(error).__name__ == "MisconfigurationException":  # by name, so that Lightning need not be imported
        return str(error), EXIT_INPUT
    return None


def fail(message: str, exit_code: int) -> SystemExit:
    """Print a one-line error to stderr, and return the `SystemExit` to raise.

    Newlines become spaces, long names are shortened, and control characters are escaped.
    """
    line = visible(LONG_NAME.sub(r"\1...\2", " ".join(message.split())))
    print(f"{PROGRAM}: error: {line}", file=sys.stderr, flush=True)
    return SystemExit(exit_code)


@contextlib.contextmanager
def raising_on_stop_signals() -> Iterator[None]:
    """Make signals that ask for an end raise `Terminated`, so that `finally` blocks run.

    An ignored signal stays ignored, as SIGHUP is under nohup. In training `callbacks/signals.py` handles them.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread():
        handled = {}

    def terminate(number: int, _: object) -> None:
        for one in handled:
            signal.signal(one, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
        raise Terminated(number)

    for number in handled:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def report_errors(debug: bool = False) -> Iterator[None]:
    """Exit with a one-line message and the matching exit code if the body raises.

    Args:
        debug: Re-raise errors, except interrupts and closed pipes, so that Python prints the traceback.
    """
    try:
        yield
        sys.stdout.flush()  # raises BrokenPipeError here rather than at interpreter exit
    except BrokenPipeError:
        # The reader of stdout is gone (`| head`). Without /dev/null in its place, the interpreter's own
        # flush at exit would fail and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise fail("interrupted", EXIT_INTERRUPTED) from None
    except Terminated as terminated:
        raise fail("terminated", 128 + terminated.signal_number) from None
    except Exception as error:
        if debug:
            raise
        known = describe_expected(error)
        if known is not None:
            raise fail(*known) from None
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=f"{PROGRAM}-", suffix=".traceback", delete=False
        ) as file:
            file.write(traceback.format_exc())
        first_line = str(error).split("\n", 1)[0][:300]
        raise fail(
            f"internal error: {type(error).__name__}: {first_line} (a bug; traceback in {file.name})", EXIT_BUG
        ) from None
