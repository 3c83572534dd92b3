"""The objects of a file in each version.

The index marks the objects whose current record is in a version. On first use, the records of the
marked objects are read; from then on the publishing thread keeps the result up to date.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from objdb.ids import Oid, Tid
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Log
from objdb.storage.rows import Current

Entry = tuple[int, Tid]  # as in the index


class FileVersions:
    """version → objects → entries; the last entry is that of the record written last.

    `_lock` covers the attributes below it; the commit slot covers `_outside`, a cache of the
    positions of records outside.
    """

    def __init__(self, log: Log, index: Index) -> None:
        self._log = log
        self._index = index
        self._outside: dict[Oid, int] = {}
        self._lock = threading.Lock()
        self._is_known = False
        self._objects: dict[str, dict[Oid, Entry]] = {}
        self._version_of: dict[Oid, str] = {}

    def names(self) -> list[str]:
        """Return the versions that are not empty."""
        with self._lock:
            self._find()
            names = list(self._objects)
        return names

    def objects(self, version: str) -> dict[Oid, Entry]:
        """Return the objects in a version, with their entries."""
        with self._lock:
            self._find()
            objects = dict(self._objects.get(version, ()))
        return objects

    def latest(self, version: str) -> int:
        """Return the position of the last record of the objects in a version, 0 if none."""
        with self._lock:
            self._find()
            entries = self._objects.get(version)
            latest = next(reversed(entries.values()))[0] & POSITION if entries else 0
        return latest

    def outside(self, oid: Oid, position: int) -> int:
        """Return the position of the record outside, of an object in a version whose current
        record is at *position*; 0 if there is none. The slot is held."""
        found = self._outside.get(oid)
        if found is None:
            found = self._outside[oid] = self._log.outside_of(oid, position)
        return found

    def forget_outside(self, oids: Iterable[Oid]) -> None:
        """Forget the positions of the records outside, of objects that enter or leave a version.
        The slot is held."""
        for oid in self._outside.keys() & oids:
            del self._outside[oid]

    def of(self, entries: dict[Oid, Entry]) -> dict[Oid, str]:
        """Return the versions of objects with these entries, committed or published."""
        found: dict[Oid, str] = {}
        with self._lock:
            objects, version_of = self._objects, self._version_of.get
            for oid, entry in entries.items():
                version = version_of(oid)
                if version is None or objects[version][oid] != entry:
                    version = self._log.record(entry[0]).version
                found[oid] = version
        return found

    def currents(self) -> dict[Oid, Current]:
        """Return {oid: `Current`} of the objects in a version: one for all that a transaction
        wrote in it, since many would make Python look for garbage."""
        found: dict[Oid, Current] = {}
        for version in self.names():
            made: dict[Tid, Current] = {}
            for oid, (_, tid) in self.objects(version).items():
                found[oid] = made.get(tid) or made.setdefault(tid, Current(tid, version))
        return found

    def update(self, versions: dict[Oid, str], positions: dict[Oid, int], tid: Tid) -> None:
        """Note the versions of the objects ("": none) after the transaction *tid*, which is in
        the index."""
        with self._lock:
            if not self._is_known:
                return
            objects, version_of = self._objects, self._version_of
            for oid, version in versions.items():
                old = version_of.get(oid)
                if old is not None:
                    # Not replaced in place: the entry written last must be the last one.
                    objects.get(old, {}).pop(oid, None)
                    version_of.pop(oid, None)
                if version:
                    version_of[oid] = version
                    objects.setdefault(version, {})[oid] = positions[oid], tid
            self._objects = {version: those for version, those in objects.items() if those}

    def _find(self) -> None:
        if not self._is_known:
            found = sorted(self._index.in_versions(), key=lambda item: item[1])
            for oid, entry in found:
                version = self._version_of[oid] = self._log.record(entry[0]).version
                self._objects.setdefault(version, {})[oid] = entry
            self._is_known = True
