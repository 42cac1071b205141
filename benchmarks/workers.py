"""Contenders in processes of their own, which do a piece of work for each message that they get."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """A contender in its process.

    Args:
        work: Sends a message when it is ready, then an answer for each message that it gets.
        contender: What it is told.
    """

    def __init__(self, work: Callable[[Any, Connection], None], contender: Any) -> None:
        self.contender = contender
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(contender, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()  # it is ready

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise SystemExit(f"{self.contender} ended before it was measured") from None

    def __call__(self, message: Any = None) -> Any:
        """Its answer to a message."""
        self.connection.send(message)
        return self._receive()

    def peak_bytes(self) -> int:
        """The most memory it has had in use so far (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.join()
