"""What a client has read, in memory, bounded in bytes.

    oid ─► current    record, tid it is current from
        ╰► old        record, tid from which ─ tid up to which (exclusive)

The cache is right for every moment up to the last transaction that its owner took in: an
invalidation by T ends the current entry at T. The least recently used records go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from objdb.ids import Oid, Tid

Found = tuple[bytes, Tid, "Tid | None"]
_OVERHEAD_BYTES = 200  # of an entry


class ICache(Protocol):
    """What a client asks of its cache."""

    def load(self, oid: Oid, before: Tid) -> Found | None:
        """Return (record, tid, next tid or None) of the last revision before a tid, if known."""

    def store(self, oid: Oid, record: bytes, tid: Tid, end: Tid | None) -> None:
        """Keep a revision; with *end* None it is current."""

    def invalidate(self, tid: Tid, oids: Iterable[Oid]) -> None:
        """End the current revisions of *oids* at *tid*."""

    def forget(self, oids: Iterable[Oid] | None) -> None:
        """Forget the current revisions of *oids*, changed at an unknown time; all, of all objects,
        if None."""


class _Entry(NamedTuple):
    record: bytes
    tid: Tid
    end: Tid | None


class MemoryCache:
    """A cache of at most *limit* bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._size = 0
        self._entries: OrderedDict[tuple[Oid, Tid], _Entry] = OrderedDict()
        self._current: dict[Oid, Tid] = {}
        self._old: dict[Oid, list[Tid]] = {}  # the tids of the old entries, in no order

    def load(self, oid: Oid, before: Tid) -> Found | None:
        """See `ICache`."""
        with self._lock:
            tid = self._current.get(oid)
            if tid is not None and tid < before:
                return self._use(oid, tid)
            for tid in self._old.get(oid, ()):
                entry = self._entries[oid, tid]
                if tid < before and entry.end is not None and before <= entry.end:
                    return self._use(oid, tid)
        return None

    def _use(self, oid: Oid, tid: Tid) -> Found:
        self._entries.move_to_end((oid, tid))
        return tuple(self._entries[oid, tid])  # type: ignore[return-value]

    def store(self, oid: Oid, record: bytes, tid: Tid, end: Tid | None) -> None:
        """See `ICache`."""
        with self._lock:
            if (oid, tid) in self._entries:
                self._drop(oid, tid)
            if end is None and oid in self._current:
                if self._current[oid] > tid:  # it is not current any more
                    return
                self._drop(oid, self._current[oid])
            self._entries[oid, tid] = _Entry(record, tid, end)
            if end is None:
                self._current[oid] = tid
            else:
                self._old.setdefault(oid, []).append(tid)
            self._size += len(record) + _OVERHEAD_BYTES
            while self._size > self._limit:
                self._drop(*next(iter(self._entries)))

    def _drop(self, oid: Oid, tid: Tid) -> None:
        entry = self._entries.pop((oid, tid))
        self._size -= len(entry.record) + _OVERHEAD_BYTES
        if entry.end is None:
            del self._current[oid]
            return
        self._old[oid].remove(tid)
        if not self._old[oid]:
            del self._old[oid]

    def invalidate(self, tid: Tid, oids: Iterable[Oid]) -> None:
        """See `ICache`."""
        with self._lock:
            for oid in oids:
                since = self._current.get(oid)
                if since is not None and since < tid:
                    del self._current[oid]
                    self._entries[oid, since] = self._entries[oid, since]._replace(end=tid)
                    self._old.setdefault(oid, []).append(since)

    def forget(self, oids: Iterable[Oid] | None) -> None:
        """See `ICache`."""
        with self._lock:
            if oids is None:
                self._entries.clear()
                self._current.clear()
                self._old.clear()
                self._size = 0
                return
            for oid in oids:
                tid = self._current.get(oid)
                if tid is not None:
                    self._drop(oid, tid)
