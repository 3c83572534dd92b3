"""Which objects the last transactions changed.

One log for all connections of a database. Each connection knows the tid its view is at; when its
next transaction begins, it asks what changed from there to the last transaction:

    tid    T1     T2        T3       T4
    oids   a b    c         a        d        a view moving from T1 to T3 drops c and a

What was changed in a version is for those who work in it.

Entries are in tid order, and added before `lastTransaction()` moves to their tid, so what a view
asks for is always complete. (A storage that learns later that an own transaction was committed has
told of it before, as of another's.) The log keeps a limited number of oids; a connection whose view
is older than it reaches drops its whole cache.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from objdb.ids import Oid, Tid

_MOST_OIDS = 500_000

# The objects, the connection that changed them, and the versions that they were changed in; none
# for a change that all see.
_Change = tuple[list[Oid], Any, tuple[str, ...]]


class InvalidationLog:
    """`_lock` covers adding; readers take the lists as they are, since entries are only
    appended, and shortening puts new lists in their place."""

    def __init__(self, start: Tid) -> None:
        self._lock = threading.Lock()
        self._entries: tuple[list[Tid], list[_Change]] = ([], [])
        self._start = start  # everything after this tid is in the log
        self._count = 0
        self.epoch = 0  # grows each time that everything is forgotten

    def add(
        self, tid: Tid, oids: Iterable[Oid], origin: Any = None, versions: tuple[str, ...] = ()
    ) -> None:
        """Note that the transaction *tid* changed *oids*, through the connection *origin*; seen
        in *versions* only, if any are given."""
        oids = list(oids)
        with self._lock:
            tids, changes = self._entries
            del changes[len(tids) :]  # of a call that was interrupted
            at = len(tids)
            while at and tids[at - 1] == tid:
                at -= 1
                if changes[at][1] is origin and changes[at][0] == oids:
                    return  # it is called again
            change = oids, origin, versions
            at = bisect_right(tids, tid)
            if at < len(tids):  # it is told late
                changes = [*changes[:at], change, *changes[at:]]
                self._entries = [*tids[:at], tid, *tids[at:]], changes
            else:
                changes.append(change)
                tids.append(tid)
            self._count += len(oids) + 1
            if self._count > _MOST_OIDS:
                self._shorten()

    def forget(self, tid: Tid) -> None:
        """Forget everything up to *tid*: every connection drops its cache when its next
        transaction begins."""
        with self._lock:
            self._start = tid
            self._entries = [], []
            self._count = 0
            self.epoch += 1

    def _shorten(self) -> None:
        """Forget the older half."""
        tids, changes = self._entries
        half = len(tids) // 2 or 1
        self._start = tids[half - 1]
        self._entries = tids[half:], changes[half:]
        self._count = sum(len(oids) + 1 for oids, _, _ in changes[half:])

    def between(
        self, after: Tid, upto: Tid, origin: Any, version: str = ""
    ) -> list[Oid] | None:
        """Return the oids changed by transactions with *after* < tid <= *upto* through other
        connections than *origin*, as far as it is seen in *version*; None when the log does not
        reach back that far."""
        tids, changes = self._entries
        found: list[Oid] = []
        for i in range(len(tids) - 1, -1, -1):
            tid = tids[i]
            if tid <= after:
                return found
            oids, changer, versions = changes[i]
            if tid <= upto and changer is not origin and (not versions or version in versions):
                found += oids
        return found if after >= self._start else None
