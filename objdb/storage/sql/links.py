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
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from objdb.ids import Tid
from objdb.storage.sql.storage import AHEAD, CURRENT, CurrentRow

_FORK_SECONDS = 5.0  # how long a fork waits for what is under way
_LOOK_SECONDS = 0.0001
_AHEAD_OBJECTS, _NEAR = 31, 4
_MAX_OID = 2**63 - 1


class Link:
    """A connection to the database, and the last transaction known when its read transaction
    began. One thread uses it, which sets `is_busy` meanwhile; another one may end its read
    transaction, or close it while it is not busy.

    `ahead` has rows that were not asked for yet: what is loaded in the order it was stored in is
    read some objects at a time.
    """

    __slots__ = (
        "__weakref__", "_last_oid", "ahead", "connection", "execute", "is_busy", "is_closed", "tid",
    )

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.execute = connection.cursor().execute
        self.is_busy = self.is_closed = False
        self.ahead: dict[int, CurrentRow] = {}
        self._last_oid = 0
        self.tid: Tid | None = None

    def find(self, oid: int) -> CurrentRow | None:
        """Return an object's row, which is not in `ahead`."""
        is_next = 0 < oid - self._last_oid <= _NEAR
        self._last_oid = oid
        if is_next:
            last = min(oid + _AHEAD_OBJECTS, _MAX_OID)
            rows: list[CurrentRow] = self.execute(AHEAD, (oid, last)).fetchall()
            if rows:
                self._last_oid = rows[-1][0]
                self.ahead = {row[0]: row for row in rows}
                if rows[0][0] == oid:
                    return self.ahead.pop(oid)
        found: CurrentRow | None = self.execute(CURRENT, (oid,)).fetchone()
        return found

    def see(self, tid: Tid) -> None:
        """Note that *tid* can be seen now."""
        self.tid = tid
        self.ahead = {}

    def renew(self, tid: Tid) -> None:
        """Begin a read transaction in which *tid* can be seen."""
        with suppress(sqlite3.OperationalError):  # it was ended meanwhile
            if self.connection.in_transaction:
                self.connection.execute("COMMIT")
            self.connection.execute("BEGIN")
        self.see(tid)

    def rest(self) -> None:
        """End the read transaction. Reading goes on, and begins another one."""
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("COMMIT")
        self.tid = None

    def close(self) -> None:
        """Close the connection."""
        self.is_closed = True
        self.connection.close()

    __del__ = close


class Links:
    """The links of all threads; made with *connect*. `_lock` is held while the list changes, and
    during a fork."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._all: WeakSet[Link] = WeakSet()
        self.local = threading.local()  # `link` is that of the thread

    def open(self) -> Link:
        """Return a link for this thread, which becomes its own."""
        with self._lock:
            link = Link(self._connect())
            self._all.add(link)
            self.local.link = link
            return link

    def lend(self, link: Link) -> None:
        """Let this thread use *link*, until `give_back`."""
        local = self.local
        local.own = getattr(local, "link", None)
        local.link = link

    def give_back(self) -> None:
        """Let this thread use its own link again, if it was lent another."""
        local = self.local
        if hasattr(local, "own"):
            local.link = local.own
            del local.own
            if local.link is not None:
                local.link.tid = None  # what was lent may have seen more

    def rest(self) -> None:
        """End all read transactions."""
        with self._lock:
            links = list(self._all)
        for link in links:
            link.rest()

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            links, self._all, self.local = list(self._all), WeakSet(), threading.local()
        for link in links:
            link.close()

    def pause(self, seconds: float) -> bool:
        """Close all links, when they are not busy; nobody gets one until `go_on`. Return whether
        all were closed: after so many seconds it is given up."""
        self._lock.acquire()
        links, self._all, self.local = list(self._all), WeakSet(), threading.local()
        until = time.monotonic() + seconds
        for link in links:
            while link.is_busy and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)
            if link.is_busy:
                return False
            link.close()
        return True

    def go_on(self) -> None:
        """Let everybody have links again."""
        self._lock.release()


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


_abandoned: list[Forkable] = []  # the parent's: closing what they have open would harm it

os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
