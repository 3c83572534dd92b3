"""The pool: at most so many connections are out at once; those that come back keep their caches.

The connection that came back last is handed out first: its cache is the freshest.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from objdb.connection.connection import Connection
from objdb.errors import PoolTimeoutError, StorageClosedError, UsageError


class Holder(NamedTuple):
    """Who has a connection out: the thread, since when (monotonic seconds), and the stack of
    the call that opened it, if that is recorded."""

    thread_name: str
    since: float
    stack: str

    def describe(self) -> str:
        """Return a line about the holder, and the stack below it."""
        held = time.monotonic() - self.since
        return f"thread {self.thread_name!r} for {held:.1f} s" + (
            f", opened at:\n{self.stack}" if self.stack else ""
        )


class ConnectionPool:
    """At most *size* connections, made by *make*; `take` waits up to *wait* seconds for one.

    `_changed` is the condition under which the attributes below it change.
    """

    def __init__(self, size: int, wait: float, make: Callable[[], Connection]) -> None:
        self.size = _positive(size)
        self.wait = wait
        self.record_stacks = False
        self._make = make
        self._changed = threading.Condition(threading.Lock())
        self._free: list[Connection] = []
        self._out: dict[Connection, Holder] = {}
        self._is_closed = False

    def take(self) -> Connection:
        """Return a connection that nobody else has; `PoolTimeoutError` when none comes free."""
        deadline = time.monotonic() + self.wait
        with self._changed:
            while True:
                if self._is_closed:
                    raise StorageClosedError("the database is closed")
                if self._free or len(self._out) < self.size:
                    connection = self._free.pop() if self._free else self._make()
                    self._out[connection] = self._holder()
                    return connection
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and (
                    time.monotonic() >= deadline
                ):
                    raise self._timeout()

    def _holder(self) -> Holder:
        stack = ""
        if self.record_stacks:
            stack = "".join(traceback.format_stack()[:-4])
        return Holder(threading.current_thread().name, time.monotonic(), stack)

    def _timeout(self) -> PoolTimeoutError:
        holders = tuple(holder.describe() for holder in self._out.values())
        hint = "" if self.record_stacks else " DB(record_stacks=True) tells where they were opened."
        return PoolTimeoutError(
            f"all {self.size} connections were out for {self.wait:g} s. Close them when done "
            f"(with db.transaction() does), or raise pool_size.{hint} Held by:\n  "
            + "\n  ".join(holders), holders=holders,
        )

    def give_back(self, connection: Connection) -> bool:
        """Take a connection back; False if it is not one of this pool's."""
        with self._changed:
            if self._out.pop(connection, None) is None:
                return False
            if len(self._free) + len(self._out) < self.size:
                self._free.append(connection)
            self._changed.notify()
            return True

    def resize(self, size: int) -> None:
        """Let *size* connections be out at once."""
        with self._changed:
            self.size = _positive(size)
            del self._free[: max(0, len(self._free) + len(self._out) - size)]
            self._changed.notify_all()

    def connections(self) -> list[tuple[Connection, Holder | None]]:
        """Return every connection, with its holder if it is out."""
        with self._changed:
            free = [(connection, None) for connection in self._free]
            return [*self._out.items(), *free]

    def close(self) -> list[Connection]:
        """Hand out no more; return the connections that are still out."""
        with self._changed:
            self._is_closed = True
            self._free.clear()
            self._changed.notify_all()
            return list(self._out)


def _positive(size: int) -> int:
    if size < 1:
        raise UsageError(f"pool_size is {size}; at least 1 connection must be possible")
    return size
