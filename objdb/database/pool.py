"""The pool: at most so many connections are out at once; those that come back keep their caches.

The connection that came back last is handed out first: its cache is the freshest. Threads and
asyncio tasks wait in one line.
"""

from __future__ import annotations

import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from objdb.connection.connection import Connection
from objdb.connection.loops import running_loop
from objdb.connection.tasks import TaskTransactions, current_task
from objdb.errors import PoolTimeoutError, StorageClosedError

if TYPE_CHECKING:
    import asyncio

# How often a waiter looks for connections of threads and tasks that have ended.
_LOOK_SECONDS = 1.0


class LeakedConnectionWarning(ResourceWarning):
    """A thread or task ended without closing its connection."""


class Holder(NamedTuple):
    """The holder of a connection that is out: the thread, since when (monotonic seconds), and the
    stack of the call that opened it, if that is recorded; of a task, the task and its name."""

    thread: threading.Thread
    since: float
    stack: str
    task: weakref.ref[asyncio.Task[Any]] | None = None
    task_name: str = ""

    @property
    def name(self) -> str:
        """The name of the task, or else of the thread."""
        return self.task_name or self.thread.name

    def has_lost(self, connection: Connection) -> bool:
        """Whether the thread or task has ended, and no other can use the connection."""
        if isinstance(connection.transaction_manager, TaskTransactions):
            return connection.transaction_manager.has_ended
        return connection.is_bound_to_thread and not self.thread.is_alive()

    def is_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is a task of the event loop *loop*."""
        task = None if self.task is None else self.task()
        return task is not None and task.get_loop() is loop

    def describe(self) -> str:
        """Return a line about the holder, and the stack below it."""
        held = time.monotonic() - self.since
        task = f"task {self.task_name!r} in " if self.task_name else ""
        return f"{task}thread {self.thread.name!r} for {held:.1f} s" + (
            f", opened at:\n{self.stack}" if self.stack else ""
        )


class _Waiter:
    """A thread or task that waits for a connection. `is_served` is set with `connection`, or when
    the pool is closed."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.is_served = False
        self.connection: Connection | None = None

    def is_gone(self) -> bool:
        """Whether it cannot be served any more."""
        return False

    def tell(self) -> None:
        """Let it go on, since it is served."""


class _ThreadWaiter(_Waiter):
    """A thread that waits for a connection."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self._told = threading.Event()

    def tell(self) -> None:
        self._told.set()

    def wait(self, seconds: float) -> None:
        """Return when it was told, or after *seconds*."""
        self._told.wait(seconds)


class _TaskWaiter(_Waiter):
    """A task that waits for a connection. `_future` is what it awaits at the moment."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        from asyncio import get_running_loop

        self._loop = get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def is_gone(self) -> bool:
        return self._loop.is_closed()

    def tell(self) -> None:
        try:
            if running_loop() is self._loop:
                self._wake()
            else:
                self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed just now: a coroutine that ends gives back
            return

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when it was told, or after *seconds*."""
        self._future = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake)
        try:
            if not self.is_served:  # it may have been told before there was a future
                await self._future
        finally:
            timer.cancel()


class ConnectionPool:
    """At most *size* connections, made by *make*; `take` waits up to *wait* seconds for one.

    The waiter that waits longest is served first: a connection that comes back is handed to it, and
    no later one can take it. `_lock` covers the attributes below it.
    """

    _WAITED = (
        "all {} connections were out for {:g} s. Close them when done (with db.transaction() "
        "does), or raise {}."
    )
    _BLOCKS = (
        "all {} connections are out, with tasks of this event loop, which cannot give them back "
        "while the loop waits. Use `await db.aopen()`, or `async with db.transaction()`."
    )

    def __init__(
        self, size: int, wait: float, make: Callable[[], Connection], option: str = "pool_size"
    ) -> None:
        self._option = option
        self.size = size
        self.wait = wait
        self.record_stacks = False
        self._make_connection = make
        self._lock = threading.Lock()
        self._free: list[Connection] = []
        self._out: dict[Connection, Holder] = {}
        self._waiting: deque[_Waiter] = deque()
        self._is_closed = False

    def _make(self) -> Connection:
        connection = self._make_connection()
        connection.pool = self
        return connection

    def take(self) -> Connection:
        """Return a connection that is free; `PoolTimeoutError` when none comes free, and
        at once where waiting would keep those who hold them from giving them back."""
        holder, taken, waiter = self.holder(), None, None
        try:
            with self._lock:
                if self._free and not self._waiting:
                    taken = self._free.pop()
                    self._out[taken] = holder
                    return taken
                waiter = _ThreadWaiter(holder)
                self._waiting.append(waiter)
                self._serve()
            return self._wait_for(waiter)
        except PoolTimeoutError:
            raise
        except BaseException:
            if taken is not None:
                self.give_back(taken)
            elif waiter is not None:
                self._withdraw(waiter)
            raise

    def _wait_for(self, waiter: _ThreadWaiter) -> Connection:
        leaked: list[Holder] = []
        deadline = time.monotonic() + self.wait
        while not waiter.is_served:
            leaked += self._take_from_the_dead()
            if self._blocks_holders():
                return self._end_wait(waiter, leaked, self._BLOCKS)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            waiter.wait(min(_LOOK_SECONDS, left))
        return self._end_wait(waiter, leaked)

    async def atake(self, holder: Holder) -> Connection:
        """Return a connection for *holder*, like `take`, without blocking its loop."""
        waiter = _TaskWaiter(holder)
        leaked: list[Holder] = []
        try:
            with self._lock:
                self._waiting.append(waiter)
                self._serve()
            deadline = time.monotonic() + self.wait
            while not waiter.is_served:
                left = deadline - time.monotonic()
                if left <= 0 or self._is_first(waiter):  # one of a thousand is enough to look
                    leaked += self._take_from_the_dead()
                if left <= 0:
                    break
                await waiter.wait(min(_LOOK_SECONDS, left))
        except BaseException:
            self._withdraw(waiter)
            raise
        return self._end_wait(waiter, leaked)

    def _is_first(self, waiter: _Waiter) -> bool:
        with self._lock:
            return bool(self._waiting) and self._waiting[0] is waiter

    def _withdraw(self, waiter: _Waiter) -> None:
        """Take a waiter out of the line, and what it was given at this moment back."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        connection, waiter.connection = waiter.connection, None
        if connection is not None:
            self.give_back(connection)

    def _end_wait(
        self, waiter: _Waiter, leaked: list[Holder], why_not: str = _WAITED
    ) -> Connection:
        """Return what the waiter was given, or raise why it was not given anything."""
        with self._lock:
            if waiter.connection is None:
                if self._is_closed:
                    raise StorageClosedError("the database is closed")
                self._waiting.remove(waiter)
                raise self._timeout(why_not)
        try:
            for holder in leaked:
                _warn_leaked(holder)
        except LeakedConnectionWarning:  # where warnings are errors
            self._withdraw(waiter)
            raise
        return waiter.connection

    def _blocks_holders(self) -> bool:
        """Whether every connection is held by a task that cannot go on while this thread waits."""
        loop = running_loop()
        if loop is None:
            return False
        with self._lock:
            return all(holder.is_in(loop) for holder in self._out.values())

    def _serve(self) -> None:
        """Hand free connections to waiters; wake all waiters when the pool is closed."""
        while self._waiting:
            waiter = self._waiting[0]
            if not self._is_closed and not waiter.is_gone():
                if not self._free and len(self._out) >= self.size:
                    return
                connection = self._free.pop() if self._free else self._make()
                waiter.connection = connection
                self._out[connection] = waiter.holder
            waiter.is_served = True
            self._waiting.popleft().tell()

    def _take_from_the_dead(self) -> list[Holder]:
        """Drop connections whose thread or task has ended; return their holders."""
        with self._lock:
            leaked = {
                connection: holder for connection, holder in self._out.items()
                if holder.has_lost(connection)
            }
            for connection in leaked:
                del self._out[connection]
            self._serve()
        for connection in leaked:
            connection.abandon()
        return list(leaked.values())

    def holder(self, frames: int = 3) -> Holder:
        """Return the caller as a holder; its stack leaves out the last *frames* calls."""
        stack = ""
        if self.record_stacks:
            stack = "".join(traceback.format_stack()[:-frames])
        thread, task, now = threading.current_thread(), current_task(), time.monotonic()
        if task is None:
            return Holder(thread, now, stack)
        return Holder(thread, now, stack, weakref.ref(task), task.get_name())

    def _timeout(self, what: str) -> PoolTimeoutError:
        holders = tuple(holder.describe() for holder in self._out.values())
        hint = "" if self.record_stacks else " DB(record_stacks=True) tells where they were opened."
        what = what.format(self.size, self.wait, self._option)
        return PoolTimeoutError(
            f"{what}{hint} Held by:\n  " + "\n  ".join(holders), holders=holders
        )

    def holder_of(self, connection: Connection) -> Holder | None:
        """Return the holder of *connection*, None if it is free."""
        return self._out.get(connection)

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
            self.size = size
            del self._free[: max(0, len(self._free) + len(self._out) - size)]
            self._serve()

    def connections(self) -> list[tuple[Connection, Holder | None]]:
        """Return every connection, with its holder if it is out."""
        with self._lock:
            free = [(connection, None) for connection in self._free]
            return [*self._out.items(), *free]

    def for_each(self, action: Callable[[Connection], None]) -> None:
        """Call *action* with every connection: now with those in the pool and those that this
        thread or task has; with the others when their next view begins, in the holder's thread."""
        holder = self.holder()
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
            is_mine = other.task == holder.task or connection.is_bound_to_thread
            if other.thread is holder.thread and is_mine:
                action(connection)
            else:
                connection.postpone(action)

    def is_idle(self) -> bool:
        """Whether no connection is out."""
        with self._lock:
            return not self._out and not self._waiting

    def close(self) -> list[Connection]:
        """Hand out no more; return the connections that are still out."""
        with self._lock:
            self._is_closed = True
            self._free.clear()
            self._serve()
            return list(self._out)


def _warn_leaked(holder: Holder) -> None:
    hint = "" if holder.stack else " DB(record_stacks=True) tells where it was opened."
    who = "task" if holder.task_name else "thread"
    warnings.warn(
        f"a connection was not closed before its {who} ended; what it had not committed is lost. "
        f"Use db.transaction(), or close it.{hint} It was held by {holder.describe()}",
        LeakedConnectionWarning, stacklevel=5,
    )
