"""The connections of a storage to SQLite, for its threads, and during forks.

SQLite records in each process the locks that the process has on a file. A forked child inherits
the records, but none of the locks: so no connection may be open during a fork. Before it, all are
closed, once unused; after it, the parent opens new ones. The child does not use the storage, but
opens a new one.
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

_FORK_SECONDS = 5.0  # the time that a fork waits for running calls
_REST_SECONDS = 0.01  # the time that the clock waits for a link
_AHEAD_OBJECTS, _NEAR = 31, 4
_MAX_OID = 2**63 - 1


class Link:
    """A connection to the database, and the last transaction known when its read transaction
    began. `lock` is held during each call of SQLite, and while closing it; so no connection is
    closed during a call. `end` marks a link in use, and the thread that uses it closes it.

    `ahead` has rows read ahead: objects loaded in the order of their oids are read some at a time.
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
        """Return the row of an object that is not in `ahead`."""
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
        """Note that *tid* is visible now."""
        self.tid = tid
        self.ahead = {}

    def renew(self, tid: Tid) -> None:
        """Begin a read transaction in which *tid* is visible."""
        if self.connection.in_transaction:
            self.connection.execute("COMMIT")
        self.connection.execute("BEGIN")
        self.see(tid)

    def rest(self, seconds: float) -> None:
        """End the read transaction, unless the link is in use for *seconds*. The next read begins
        another one."""
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
        """Close the connection if another thread called `end` while it was in use."""
        if self.is_ending:
            self.end()

    def end(self, seconds: float = 0) -> bool:
        """Close the connection; if it is in use for longer than *seconds*, let its user close it.
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
    """The links of all threads; opened with *connect*, and using *statements*. `_lock` is held
    while the list changes, and during a fork. `local` has each thread's `link`, None while it has
    a `lent` one, with that one's lock in `borrowed`."""

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
        """Open the link of this thread; None after `close`."""
        with self._lock:
            if self._is_closed:
                return None
            link = Link(self._connect(), self._statements)
            self._all.add(link)
            self.local.own = _Own(link)
            self.local.link = link
            return link

    def lend(self, link: Link) -> None:
        """Let this thread use *link* exclusively until `give_back`."""
        local = self.local
        if not hasattr(local, "borrowed"):
            local.borrowed = []
        hold(link.lock, local.borrowed)
        local.link, local.lent = None, link

    def give_back(self) -> None:
        """Return a lent link, so that this thread uses its own again. Repeated if interrupted."""
        local = self.local
        borrowed: list[Any] = getattr(local, "borrowed", [])
        if not any(borrowed):
            return
        lent: Link | None = getattr(local, "lent", None)
        local.lent = None
        if hasattr(local, "own"):
            local.link = local.own.link
            local.link.tid = None  # the lent link may have seen later transactions
        let_go(borrowed)
        if lent is not None:
            lent.end_if_told()

    @contextmanager
    def using(self, link: Link) -> Iterator[None]:
        """Use *link*, a shared one, whether or not it is lent to this thread."""
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
        """Close all links. Running calls are interrupted; a thread still in one after *seconds*
        closes its link itself."""
        links = self._listed()
        self._is_closed = True
        for link in links:
            with suppress(sqlite3.Error):
                link.connection.interrupt()
        _end_all(links, seconds)

    def pause(self, seconds: float) -> bool:
        """Close all links, once unused, and open none until `go_on`. Return whether all were
        closed within *seconds*."""
        self._lock.acquire()
        return _end_all(list(self._all), seconds)

    def go_on(self) -> None:
        """Allow opening links again."""
        self._lock.release()


def _end_all(links: Iterable[Link], seconds: float) -> bool:
    until = time.monotonic() + seconds
    are_closed = True
    for link in links:
        are_closed &= link.end(max(until - time.monotonic(), 0))
    return are_closed


class Forkable(Protocol):
    """A storage with connections that must not be open during a fork."""

    def before_fork(self, seconds: float) -> bool:
        """Close all connections; False if some are still in use after *seconds*."""

    def after_fork(self) -> None:
        """Go on, in the parent."""

    def leave_to_parent(self) -> None:
        """Release, in the child, handles that would outlive the parent."""

    def real_path(self) -> str:
        """Return the path of the file, absolute and without links."""


_open: WeakSet[Forkable] = WeakSet()
_paused: list[Forkable] = []
_in_use: set[str] = set()  # files with connections that could not be closed before the fork
_not_here: frozenset[str] = frozenset()  # the same, in the child and its children


def watch(storage: Forkable) -> None:
    """Close the connections of *storage* during forks, from now on."""
    _open.add(storage)


def unwatch(storage: Forkable) -> None:
    """Forget a closed storage."""
    _open.discard(storage)


def is_open_in_parent(path: str) -> bool:
    """Whether this process was forked while another thread used the file *path*, so that it
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


_abandoned: list[Any] = []  # the parent's connections: closing them here would harm it

at_fork(
    Stage.STORAGES, before=_before, in_parent=_in_parent, in_child=_in_child
)
