"""Versions of a database: connections that work in one, and requests to commit or abort one.

    db.open(version="plan") ─► a pool for each version ─► connections that see and change it
    db.commitVersion("plan") ─► VersionRequest joins the transaction ─► storage.commitVersion
                             ─► with all others of the database ─► connections are told

The pool of a version goes when the version is committed or aborted, unless a connection is out;
once there are many pools, those of versions without changes go.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakSet

from objdb.database.options import Options
from objdb.database.pool import ConnectionPool
from objdb.database.shared_commit import StorageCommit, StorageRequest, request_for
from objdb.errors import POSKeyError, ReadOnlyError, Unsupported
from objdb.ids import MAX_TID, Oid, Tid
from objdb.interfaces import IStorageHistory, IStorageVersions
from objdb.records.differences import changed_attributes
from objdb.records.references import record_class_name
from objdb.storage.versions import require_name, require_two

_MANY_POOLS = 16


class VersionChange(NamedTuple):
    """The change of an object in a version.

    `attributes` maps names to (value outside, value in the version), `...` where there is none.
    References to persistent objects are `PersistentReference`; a state that is not a dict is the
    attribute `""`. `is_new`: the object was created in the version. `by` are the revisions since
    it was first changed there, newest first, as `DB.history` lists them.
    """

    oid: Oid
    class_name: str | None
    is_new: bool
    attributes: dict[str, tuple[Any, Any]]
    by: list[dict[str, Any]]


class VersionPools:
    """A pool of connections for every version that is worked in; *make* makes a pool, *changed*
    returns the names of the versions that have changes.

    `_lock` covers the attributes below it. `_alive` has pools that were dropped as well, while
    they are in use.
    """

    def __init__(
        self, make: Callable[[str], ConnectionPool], changed: Callable[[], Iterable[str]]
    ) -> None:
        self._make = make
        self._changed = changed
        self._lock = threading.Lock()
        self._pools: dict[str, ConnectionPool] = {}
        self._alive: WeakSet[ConnectionPool] = WeakSet()
        self._many = _MANY_POOLS  # from how many on those are looked for that can go

    def of(self, version: str) -> ConnectionPool:
        """Return the pool of a version."""
        pool = self._pools.get(version)
        if pool is not None:
            return pool
        if len(self._pools) >= self._many:
            self._remove_unused()
        with self._lock:
            if version not in self._pools:
                self._pools[version] = pool = self._make(version)
                self._alive.add(pool)
            return self._pools[version]

    def _remove_unused(self) -> None:
        """Let the pools of versions without changes go; twice as many as then remain are many."""
        changed = set(self._changed())
        for version in self._pools.keys() - changed:
            self.remove(version)
        with self._lock:
            self._many = max(_MANY_POOLS, 2 * len(self._pools))

    def all(self) -> list[ConnectionPool]:
        """Return the pools there are."""
        with self._lock:
            return list(self._alive)

    def remove(self, version: str) -> None:
        """Let the pool of a version go, unless a connection is out."""
        with self._lock:
            pool = self._pools.get(version)
            if pool is not None and pool.is_idle():
                del self._pools[version]


class DatabaseVersions:
    """The part of `DB` that is about versions."""

    name: str
    storage: Any
    _version_pools: VersionPools
    options: Options
    _require_usable: Callable[[], None]
    _change_caches: Callable[..., None]
    storage_commit: Callable[[Any], StorageCommit]

    def supportsVersions(self) -> bool:
        """Whether there are versions."""
        return IStorageVersions.providedBy(self.storage) and bool(self.storage.supportsVersions())

    def _require_versions(self) -> None:
        self._require_usable()
        if not self.supportsVersions():
            raise Unsupported(f"{self.name} is a storage without versions")

    def commitVersion(self, source: str, destination: str = "", txn: Any = None) -> None:
        """Commit the version *source* to *destination* ("": outside any version) when *txn*
        (default: the thread's current transaction) commits.

        What is changed in *source* is then changed in *destination*, and *source* is empty; so is
        an unknown one. `VersionCommitError` if the two are the same, or *source* is empty text;
        `VersionError` for an invalid name; `Unsupported`, `ReadOnlyError`; all at once.
        """
        self._require_versions()
        require_two(source, destination)
        self._ask(source, destination, txn)

    def abortVersion(self, version: str, txn: Any = None) -> None:
        """Drop all changes in *version* when *txn* (default: the thread's current transaction)
        commits: its objects are again what they are outside, those created there are gone.

        `VersionError` for an invalid name; `Unsupported`, `ReadOnlyError`; all at once.
        """
        self._require_versions()
        self._ask(version, None, txn)

    def _ask(self, version: str, destination: str | None, txn: Any) -> None:
        require_name(version)
        if self.storage.isReadOnly():
            raise ReadOnlyError(f"{self.name} is open for reading only")
        request = request_for(self, txn, VersionRequest)
        request.asked.append((version, destination))

    def versions(self, max: int | None = None) -> list[str]:
        """Return the names of the versions that are not empty, at most *max*."""
        self._require_versions()
        names: list[str] = self.storage.versions(max)
        return names

    def versionEmpty(self, version: str) -> bool:
        """Return whether nothing is changed in *version*; `VersionError` for an invalid name."""
        self._require_versions()
        return bool(self.storage.versionEmpty(version))

    def modifiedInVersion(self, oid: Oid) -> str:
        """Return the version that the object *oid* is changed in, "" if in none. `POSKeyError` if
        there is no object."""
        self._require_versions()
        version: str = self.storage.modifiedInVersion(oid)
        return version

    def version_diff(self, version: str) -> list[VersionChange]:
        """Return what *version* changes: each object that was changed or created in it, how, and
        by which transactions. `VersionError` for an invalid name."""
        self._require_versions()
        return [
            self._version_change(oid, version)
            for oid in sorted(self.storage.objects_in_version(version))
        ]

    def _version_change(self, oid: Oid, version: str) -> VersionChange:
        inside, outside = self._record(oid, version), self._record(oid, "")
        record = outside if inside is None else inside
        class_name = None if record is None else record_class_name(record)
        attributes = changed_attributes(oid, outside, inside)
        return VersionChange(oid, class_name, outside is None, attributes, self._changed_by(oid))

    def _record(self, oid: Oid, version: str) -> bytes | None:
        try:
            found = self.storage.loadBefore(oid, MAX_TID, version)
        except POSKeyError:
            return None
        return None if found is None else found[0]

    def _changed_by(self, oid: Oid) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        if IStorageHistory.providedBy(self.storage):
            for entry in self.storage.history(oid, sys.maxsize):
                if not entry["version"]:
                    break
                entries.append(entry)
        return entries

    # -- connections

    def removeVersionPool(self, version: str) -> None:
        """Drop the connections kept for *version*, if none is out. Happens automatically when
        it is committed or aborted."""
        self._version_pools.remove(version)

    def getVersionPoolSize(self) -> int:
        """Return how many connections can be out at once in each version."""
        return self.options.version_pool_size

    def setVersionPoolSize(self, size: int) -> None:
        """Let *size* connections be out at once in each version."""
        self.options = self.options.changed(version_pool_size=size)
        for pool in self._version_pools.all():
            pool.resize(size)

    def getVersionCacheSize(self) -> int:
        """Return how many objects each connection in a version keeps loaded."""
        return self.options.version_cache_size

    def setVersionCacheSize(self, size: int) -> None:
        """Let each connection in a version keep *size* objects loaded."""
        self._change_caches(version_cache_size=size)


class VersionRequest(StorageRequest):
    """Commits or aborts versions when the transaction it is in commits. `asked` has (version,
    destination; None to abort)."""

    def _stage(self, metadata: Any) -> Iterable[Oid]:
        storage = self._db.storage
        for version, destination in self.asked:
            if destination is None:
                yield from storage.abortVersion(version, metadata)
            else:
                yield from storage.commitVersion(version, destination, metadata)

    def _tell(self, tid: Tid, oids: list[Oid]) -> None:
        versions: tuple[str, ...] = ()
        if all(destination for _, destination in self.asked):  # nothing changes outside
            versions = tuple({name for pair in self.asked for name in pair})
        self._db.note_commit(tid, oids, versions)

    def tpc_finish(self, txn: Any) -> None:
        """Commit; the versions are then empty."""
        super().tpc_finish(txn)
        for version, _ in self.asked:
            self._db.removeVersionPool(version)
