"""The conflicts of a database: how many of which class, and what the last ones were about."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from typing import Any, NamedTuple

from objdb.errors import ConflictError, ObjdbError
from objdb.ids import Oid, Tid
from objdb.interfaces import IStorageHistory
from objdb.records.differences import differences
from objdb.storage.foreign import provides, readable

MOST_KEPT = 300


class Conflict(NamedTuple):
    """One conflict: when (seconds since 1970), the error's class, and what it says."""

    time: float
    kind: str
    oid: Oid | None
    class_name: str | None
    serials: tuple[Tid, Tid] | None


class ConflictLog:
    """`count` of all conflicts, `by_class` (class name: count), and the `last` few hundred,
    oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.by_class: Counter[str] = Counter()
        self.last: deque[Conflict] = deque(maxlen=MOST_KEPT)

    def add(self, error: ConflictError) -> None:
        """Note a conflict."""
        with self._lock:
            self.count += 1
            self.by_class[error.class_name or "unknown"] += 1
            self.last.append(
                Conflict(
                    time.time(), type(error).__name__, error.oid, error.class_name, error.serials
                )
            )


class LookUp:
    """Answers what an error is asked later, as long as the storage is there and open."""

    def __init__(self, storage: Any) -> None:
        self._storage = weakref.ref(storage)

    def __call__(
        self, error: ConflictError
    ) -> tuple[dict[str, Any] | None, dict[str, tuple[Any, Any, Any]]]:
        storage = self._storage()
        if storage is None or error.oid is None or error.serials is None:
            return None, {}
        committed, base = error.serials
        try:
            old = self._record(storage, error.oid, base)
            theirs = self._record(storage, error.oid, committed)
            return self._transaction(storage, error.oid, committed), (
                {} if theirs is None else differences(error.oid, old, theirs, error.record)
            )
        except (ObjdbError, OSError):
            return None, {}

    def _record(self, storage: Any, oid: Oid, tid: Tid) -> bytes | None:
        try:
            record: bytes = storage.loadSerial(oid, tid)
            return record
        except KeyError:
            return None

    def _transaction(self, storage: Any, oid: Oid, tid: Tid) -> dict[str, Any] | None:
        if not provides(storage, IStorageHistory):
            return None
        entries = readable(storage, storage.history(oid, size=100))
        return next((entry for entry in entries if entry["tid"] == tid), None)
