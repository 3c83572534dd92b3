"""A historical view of a storage: only the transactions before a moment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from objdb.errors import POSKeyError, Unsupported, UsageError
from objdb.ids import NO_TID, Oid, Tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePacked,
    IStorageVersions,
)
from objdb.storage.layers.layer import Layer
from objdb.storage.layers.readonly import ReadOnlyStorage
from objdb.storage.times import bound
from objdb.storage.versions import require_name


class BeforeStorage(Layer):
    """Shows *base* as it was *before* a moment, read-only.

    *before*: a tid (8 bytes), seconds since 1970, a datetime with a time zone, or text in ISO
    form; exclusive. Later transactions of *base* are never visible. *base* must list its
    transactions (`Unsupported`). Revisions that it has packed away are gone here too.

    `UsageError` for a moment in the future, or any other value.
    """

    honours = (IStorage, IStorageHistory, IStorageIteration, IStorageVersions, IStoragePacked)

    def __init__(self, base: Any, before: Any) -> None:
        super().__init__(base)
        self.go_through(ReadOnlyStorage(base))
        if not IStorageIteration.providedBy(base):
            raise Unsupported(
                f"{base.getName()} does not list its transactions, so it is not known which are "
                "before a moment"
            )
        found = bound(None, before, base.lastTransaction())
        if found is None:
            raise UsageError("give the moment: a tid, a time, a datetime or ISO text")
        self.before: Tid = found
        self._last_tid = _last_before(base, found)

    def registerDB(self, db: Any) -> None:
        """Do nothing: there are no invalidations here."""

    def lastTransaction(self) -> Tid:
        """Return the tid of the last transaction before the moment, 8 zero bytes if none."""
        return self._last_tid

    # -- objects

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IStorage`."""
        bounds = (oid, min(tid, self.before))
        found = self.base.loadBefore(*bounds, *([version] if version else []))
        if found is None:
            if tid >= self.before:  # the object was created later
                raise POSKeyError(oid, database=self.getName())
            return None
        record, serial, end = found
        return record, serial, end if end is not None and end < self.before else None

    def load(self, oid: Oid, version: str = "") -> tuple[bytes, Tid]:
        """See `IStorage`."""
        found = self.loadBefore(oid, self.before, version)
        assert found is not None  # else POSKeyError
        return found[0], found[1]

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IStorage`."""
        if serial >= self.before:
            raise POSKeyError(oid, database=self.getName())
        record: bytes = self.base.loadSerial(oid, serial)
        return record

    def getTid(self, oid: Oid) -> Tid:
        """See `IStorage`."""
        return self.load(oid)[1]

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        entries = self.base.history(oid, sys.maxsize)
        found = [entry for entry in entries if entry["tid"] < self.before]
        if not found:
            raise POSKeyError(oid, database=self.getName())
        return found[:size]

    def iterator(self, start: Tid | None = None, stop: Tid | None = None) -> Iterator[Any]:
        """See `IStorageIteration`."""
        stop = self._last_tid if stop is None else min(stop, self._last_tid)
        transactions: Iterator[Any] = self.base.iterator(start, stop)
        return transactions

    # -- versions, which need a scan of all transactions, once

    @cached_property
    def _versions(self) -> dict[Oid, str]:
        """The version of each object's current revision, "" for none."""
        found: dict[Oid, str] = {}
        for transaction in self.iterator():
            for revision in transaction:
                if revision.data is None:
                    found.pop(revision.oid, None)
                else:
                    found[revision.oid] = revision.version
        return found

    def __len__(self) -> int:
        return len(self._versions)

    def versions(self, max: int | None = None) -> list[str]:
        """See `IStorageVersions`."""
        return sorted({version for version in self._versions.values() if version})[:max]

    def versionEmpty(self, version: str) -> bool:
        """See `IStorageVersions`."""
        return not self.objects_in_version(version)

    def objects_in_version(self, version: str) -> list[Oid]:
        """See `IStorageVersions`."""
        require_name(version)
        return [oid for oid, own in self._versions.items() if own == version]

    def modifiedInVersion(self, oid: Oid) -> str:
        """See `IStorageVersions`."""
        if oid not in self._versions:
            raise POSKeyError(oid, database=self.getName())
        return self._versions[oid]


def _last_before(base: Any, before: Tid) -> Tid:
    """Return the last tid before a bound, by binary search."""
    last: Tid = base.lastTransaction()
    if last < before:
        return last
    low, high = 0, int.from_bytes(before, "big") - 1  # the tid is low, or after it
    while low < high:
        middle = (low + high + 1) // 2
        bounds = middle.to_bytes(8, "big"), high.to_bytes(8, "big")
        found = next(iter(base.iterator(*bounds)), None)
        if found is None:
            high = middle - 1
        else:
            low = int.from_bytes(found.tid, "big")
    return low.to_bytes(8, "big") if high > 0 else NO_TID
