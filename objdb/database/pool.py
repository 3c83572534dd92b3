"""The pool: at most so many connections are out at once; those that come back keep their caches.

The connection that came back last is handed out first: its cache is the freshest.
"""

from __future__ import annotations

import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from objdb.connection.connection import Connection
from objdb.errors import PoolTimeoutError, StorageClosedError, UsageError

# How often a thread that waits looks for connections of threads that have ended.
_LOOK_SECONDS = 1.0


class LeakedConnectionWarning(ResourceWarning):
    """A thread ended without closing its connection."""


class Holder(NamedTuple):
    """Who has a connection out: the thread, since when (monotonic seconds), and the stack of
    the call that opened it, if that is recorded."""

    thread: threading.Thread
    since: float
    stack: str

    @property
    def thread_name(self) -> str:
        """The name of the thread."""
        return self.thread.name

    def describe(self) -> str:
        """Return a line about the holder, and the stack below it."""
        held = time.monotonic() - self.since
        return f"thread {self.thread_name!r} for {held:.1f} s" + (
            f", opened at:\n{self.stack}" if self.stack else ""
        )


class _Waiter:
    """A thread that waits for a connection."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.served = threading.Event()
        self.connection: Connection | None = None


class ConnectionPool:
    """At most *size* connections, made by *make*; `take` waits up to *wait* seconds for one.

    Who waits longest is served first: a connection that comes back is handed to that thread, and
    nobody who comes later can take it. `_lock` covers the attributes below it.
    """

    def __init__(self, size: int, wait: float, make: Callable[[], Connection]) -> None:
        self.size = _positive(size)
        if not (isinstance(wait, (int, float)) and wait >= 0):
            raise UsageError(f"pool_wait is {wait!r}; it is a number of seconds, 0 or more")
        self.wait = wait
        self.record_stacks = False
        self._make = make
        self._lock = threading.Lock()
        self._free: list[Connection] = []
        self._out: dict[Connection, Holder] = {}
        self._waiting: deque[_Waiter] = deque()
        self._is_closed = False

    def take(self) -> Connection:
        """Return a connection that nobody else has; `PoolTimeoutError` when none comes free."""
        waiter = _Waiter(self._holder())
        with self._lock:
            self._waiting.append(waiter)
            self._serve()
        leaked: list[Holder] = []
        deadline = time.monotonic() + self.wait
        while not waiter.served.is_set():
            leaked += self._take_from_the_dead()
            left = deadline - time.monotonic()
            if waiter.served.wait(max(0.0, min(_LOOK_SECONDS, left))) or left <= 0:
                break
        with self._lock:
            if waiter.connection is None:
                if self._is_closed:
                    raise StorageClosedError("the database is closed")
                self._waiting.remove(waiter)
                raise self._timeout()
        try:
            for holder in leaked:
                _warn_leaked(holder)
        except LeakedConnectionWarning:  # where warnings are errors
            self.give_back(waiter.connection)
            raise
        return waiter.connection

    def _serve(self) -> None:
        """Hand what is free to those who wait; they are told as well when the pool is closed."""
        while self._waiting:
            if not self._is_closed:
                if not self._free and len(self._out) >= self.size:
                    return
                connection = self._free.pop() if self._free else self._make()
                self._waiting[0].connection = connection
                self._out[connection] = self._waiting[0].holder
            self._waiting.popleft().served.set()

    def _take_from_the_dead(self) -> list[Holder]:
        """Drop connections that only a thread which has ended could use; return who had them."""
        with self._lock:
            leaked = {
                connection: holder for connection, holder in self._out.items()
                if connection.is_bound_to_thread and not holder.thread.is_alive()
            }
            for connection in leaked:
                del self._out[connection]
            self._serve()
        for connection in leaked:
            connection.abandon()
        return list(leaked.values())

    def _holder(self) -> Holder:
        stack = ""
        if self.record_stacks:
            stack = "".join(traceback.format_stack()[:-3])
        return Holder(threading.current_thread(), time.monotonic(), stack)

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
        with self._lock:
            if self._out.pop(connection, None) is None:
                return False
            if len(self._free) + len(self._out) < self.size:
                self._free.append(connection)
            self._serve()
            return True

    def resize(self, size: int) -> None:
        """Let *size* connections be out at once."""
        with self._lock:
            self.size = _positive(size)
            del self._free[: max(0, len(self._free) + len(self._out) - size)]
            self._serve()

    def connections(self) -> list[tuple[Connection, Holder | None]]:
        """Return every connection, with its holder if it is out."""
        with self._lock:
            free = [(connection, None) for connection in self._free]
            return [*self._out.items(), *free]

    def for_each(self, action: Callable[[Connection], None]) -> None:
        """Call *action* with every connection: now with those in the pool and those that this
        thread has; with the others when their next view begins, by the thread that has them."""
        holder = self._holder()
        with self._lock:
            held = list(self._out.items())
            free, self._free = self._free, []
            self._out.update(dict.fromkeys(free, holder))
        try:
            for connection in free:
                action(connection)
        finally:
            for connection in free:
                self.give_back(connection)
        for connection, other in held:
            if other.thread is holder.thread:
                action(connection)
            else:
                connection.postpone(action)

    def close(self) -> list[Connection]:
        """Hand out no more; return the connections that are still out."""
        with self._lock:
            self._is_closed = True
            self._free.clear()
            self._serve()
            return list(self._out)


def _warn_leaked(holder: Holder) -> None:
    hint = "" if holder.stack else " DB(record_stacks=True) tells where it was opened."
    warnings.warn(
        "a connection was not closed before its thread ended; what it had not committed is lost. "
        f"Use db.transaction(), or close it.{hint} It was held by {holder.describe()}",
        LeakedConnectionWarning, stacklevel=4,
    )


def _positive(size: int) -> int:
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"pool_size is {size}; at least 1 connection must be possible")
    return size
