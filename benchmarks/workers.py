"""Worker processes, one per contender, that do one unit of work per message."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """A process that measures one contender.

    Args:
        work: Function that runs in the process with the contender and a connection. It sends one message when it is
            ready, then one answer per message received.
        contender: First argument of `work`.
    """

    def __init__(self, work: Callable[[Any, Connection], None], contender: Any) -> None:
        self.contender = contender
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(contender, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()  # the message that it is ready

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise SystemExit(f"{self.contender} ended before it was measured") from None

    def __call__(self, message: Any = None) -> Any:
        """Send a message and return the answer."""
        self.connection.send(message)
        return self._receive()

    def peak_bytes(self) -> int:
        """Return the process's peak resident memory so far (Linux only)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def stop(self) -> None:
        """Kill the process and wait for it."""
        self.process.kill()
        self.process.join()
