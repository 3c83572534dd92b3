"""Threads stepped through gates, and storages that stop where a test says."""

from __future__ import annotations

import faulthandler
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from objdb.storage.memory import MappingStorage

PATIENCE_SECONDS = 60


class Gate:
    """Stops whoever passes until it is opened; tells that somebody is there."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._opened.wait(PATIENCE_SECONDS), "nobody opened the gate"

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE_SECONDS), "nobody came to the gate"

    def look(self, seconds: float) -> bool:
        """Whether somebody comes within so many seconds."""
        return self._reached.wait(seconds)

    def open(self) -> None:
        self._opened.set()


class Worker(threading.Thread):
    """A thread whose result or error is had by `finish`."""

    def __init__(self, work: Callable[[], Any], name: str | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._work(), None
        except BaseException as error:
            self._outcome = None, error

    def finish(self, seconds: float = PATIENCE_SECONDS) -> Any:
        """Return the result, or raise the error. A thread that does not end is a deadlock:
        all stacks are told."""
        self.join(seconds)
        if self.is_alive():
            raise AssertionError(f"thread {self.name} does not end. Stacks:\n{all_stacks()}")
        result, error = self._outcome
        if error is not None:
            raise error
        return result


def in_thread(work: Callable[[], Any], name: str | None = None) -> Any:
    """Do *work* in another thread, and return its result."""
    return Worker(work, name).finish()


def all_stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


class GatedStorage(MappingStorage):
    """Stops in `loadBefore` of the oid that has a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[bytes, Gate] = {}

    def loadBefore(self, oid: bytes, tid: bytes) -> Any:
        gate = self.gates.pop(oid, None)
        if gate is not None:
            gate.pass_through()
        return super().loadBefore(oid, tid)
