"""The connections of a storage to SQLite, for its threads, and what becomes of them in a fork.

SQLite keeps in each process which of the locks on a file the process has. A fork inherits that
knowledge, and the system gives it none of the locks: so no connection may be open while a process
forks. Before a fork all are closed, when nobody uses them; after it the parent opens new ones. In
the child the storage is left alone: a new one is opened there.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from weakref import WeakSet

from objdb.forks import Stage, at_fork
from objdb.ids import Tid
from objdb.storage.holding import hold, let_go
from objdb.storage.sql.rows import CurrentRow
from objdb.storage.sql.statements import Statements

_FORK_SECONDS = 5.0  # how long a fork waits for what is under way
_REST_SECONDS = 0.01  # how long the clock waits for a link
_AHEAD_OBJECTS, _NEAR = 31, 4
_MAX_OID = 2**63 - 1


class Link:
    """A connection to the database, and the last transaction known when its read transaction
    began. `lock` is held during each call of SQLite, and by who closes it; so no connection is
    closed under a call. Who meets a link in use marks it (`end`), and its user closes it.

    `ahead` has rows that were not asked for yet: what is loaded in the order it was stored in is
    read some objects at a time.
    """

    __slots__ = (
        "_last_oid", "_pid", "_statements", "ahead", "connection", "execute", "is_closed",
        "is_ending", "lock", "tid",
    )

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        self._pid = os.getpid()
        self.lock = threading.Lock()
        self.is_ending = self.is_closed = False
        self.connection = connection
        self._statements = statements
        self.execute = connection.cursor().execute
        self.ahead: dict[int, CurrentRow] = {}
        self._last_oid = 0
        self.tid: Tid | None = None

    def find(self, oid: int) -> CurrentRow | None:
        """Return an object's row, which is not in `ahead`."""
        is_next = 0 < oid - self._last_oid <= _NEAR
        self._last_oid = oid
        if is_next:
            last = min(oid + _AHEAD_OBJECTS, _MAX_OID)
            rows: list[CurrentRow] = self.execute(self._statements.ahead, (oid, last)).fetchall()
            if rows:
                self._last_oid = rows[-1][0]
                self.ahead = {row[0]: row for row in rows}
                if rows[0][0] == oid:
                    return self.ahead.pop(oid)
        found: CurrentRow | None = self.execute(self._statements.current, (oid,)).fetchone()
        return found

    def see(self, tid: Tid) -> None:
        """Note that *tid* can be seen now."""
        self.tid = tid
        self.ahead = {}

    def renew(self, tid: Tid) -> None:
        """Begin a read transaction in which *tid* can be seen."""
        if self.connection.in_transaction:
            self.connection.execute("COMMIT")
        self.connection.execute("BEGIN")
        self.see(tid)

    def rest(self, seconds: float) -> None:
        """End the read transaction, unless the link is in use for *seconds*. Reading goes on, and
        begins another one."""
        if self.lock.acquire(timeout=seconds):
            try:
                with suppress(sqlite3.Error):
                    if self.connection.in_transaction:
                        self.connection.execute("COMMIT")
                self.tid = None
            finally:
                self.lock.release()
            self.end_if_told()

    def end_if_told(self) -> None:
        """Close the connection if another thread wanted to while it was in use."""
        if self.is_ending:
            self.end()

    def end(self, seconds: float = 0) -> bool:
        """Close the connection, or let its user do it, if it is in use for longer than *seconds*.
        Return whether it is closed."""
        self.is_ending = True
        if self._pid != os.getpid():
            _abandoned.append(self.connection)
            return False
        if not self.lock.acquire(timeout=seconds):
            return False
        try:
            if not self.is_closed:
                self.is_closed = True
                self.connection.close()
        finally:
            self.lock.release()
        return True

    def __del__(self) -> None:
        if hasattr(self, "connection"):  # else its constructor was interrupted
            self.end()


class _Own:
    """A thread's hold on its link, which is closed when the thread ends."""

    __slots__ = ("link",)

    def __init__(self, link: Link) -> None:
        self.link = link

    def __del__(self) -> None:
        self.link.end()


class Links:
    """The links of all threads; made with *connect*, and using *statements*. `_lock` is held while
    the list changes, and during a fork. `local` has of each thread its `link`, None while another
    is `lent` to it, and that one's lock in `borrowed`."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], statements: Statements
    ) -> None:
        self._connect = connect
        self._statements = statements
        self._lock = threading.Lock()
        self._all: set[Link] = set()
        self._is_closed = False
        self.local = threading.local()

    def open(self) -> Link | None:
        """Return a link for this thread, which becomes its own; None after `close`."""
        with self._lock:
            if self._is_closed:
                return None
            link = Link(self._connect(), self._statements)
            self._all.add(link)
            self.local.own = _Own(link)
            self.local.link = link
            return link

    def lend(self, link: Link) -> None:
        """Let this thread use *link*, which nobody else can use until `give_back`."""
        local = self.local
        if not hasattr(local, "borrowed"):
            local.borrowed = []
        hold(link.lock, local.borrowed)
        local.link, local.lent = None, link

    def give_back(self) -> None:
        """Let this thread use its own link again, if it was lent another; again, if that was
        interrupted."""
        local = self.local
        borrowed: list[Any] = getattr(local, "borrowed", [])
        if not any(borrowed):
            return
        lent: Link | None = getattr(local, "lent", None)
        local.lent = None
        if hasattr(local, "own"):
            local.link = local.own.link
            local.link.tid = None  # what was lent may have seen more
        let_go(borrowed)
        if lent is not None:
            lent.end_if_told()

    @contextmanager
    def using(self, link: Link) -> Iterator[None]:
        """Use *link*, which is no thread's own, whether it is lent to this thread or not."""
        if link.lock in getattr(self.local, "borrowed", ()):
            yield
            return
        with link.lock:
            yield
        link.end_if_told()

    def rest(self) -> None:
        """End all read transactions that are not in use."""
        for link in self._listed():
            link.rest(_REST_SECONDS)

    def _listed(self) -> list[Link]:
        with self._lock:
            self._all = {link for link in self._all if not link.is_closed}
            links = list(self._all)
        return links

    def close(self, seconds: float) -> None:
        """Close all links. Who is in a call is interrupted, and waited for: after so many seconds
        it closes its link itself."""
        links = self._listed()
        self._is_closed = True
        for link in links:
            with suppress(sqlite3.Error):
                link.connection.interrupt()
        _end_all(links, seconds)

    def pause(self, seconds: float) -> bool:
        """Close all links, when they are not in use; nobody gets one until `go_on`. Return
        whether all were closed: after so many seconds it is given up."""
        self._lock.acquire()
        return _end_all(list(self._all), seconds)

    def go_on(self) -> None:
        """Let everybody have links again."""
        self._lock.release()


def _end_all(links: Iterable[Link], seconds: float) -> bool:
    until = time.monotonic() + seconds
    are_closed = True
    for link in links:
        are_closed &= link.end(max(until - time.monotonic(), 0))
    return are_closed


class Forkable(Protocol):
    """What has connections that must not be open during a fork."""

    def before_fork(self, seconds: float) -> bool:
        """Close all connections; False if some are still in use after so many seconds."""

    def after_fork(self) -> None:
        """Go on, in the parent."""

    def leave_to_parent(self) -> None:
        """Let go, in the child, of what would outlive the parent there."""

    def real_path(self) -> str:
        """Return the path of the file, absolute and without links."""


_open: WeakSet[Forkable] = WeakSet()
_paused: list[Forkable] = []
_in_use: set[str] = set()  # files whose connections could not all be closed before the fork
_not_here: frozenset[str] = frozenset()  # those, in the child and its children


def watch(storage: Forkable) -> None:
    """Close the connections of *storage* during forks, from now on."""
    _open.add(storage)


def unwatch(storage: Forkable) -> None:
    """Forget a storage that was closed."""
    _open.discard(storage)


def is_open_in_parent(path: str) -> bool:
    """Whether this process was forked while another thread was using the file *path*, so that it
    cannot be opened here."""
    return os.path.realpath(path) in _not_here


def _before() -> None:
    for storage in list(_open):
        if not storage.before_fork(_FORK_SECONDS):
            _in_use.add(storage.real_path())
        _paused.append(storage)


def _in_parent() -> None:
    while _paused:
        _paused.pop().after_fork()
    _in_use.clear()


def _in_child() -> None:
    global _not_here
    _not_here |= _in_use
    _in_use.clear()
    _open.clear()
    for storage in _paused:
        storage.leave_to_parent()
    _abandoned.extend(_paused)
    _paused.clear()


_abandoned: list[Any] = []  # the parent's: closing what they have open would harm it

at_fork(
    Stage.STORAGES, before=_before, in_parent=_in_parent, in_child=_in_child
)
