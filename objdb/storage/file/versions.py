"""Which objects of a file are in which version.

The index marks the objects whose current record is in a version. When it is first asked for, the
marked ones are looked up and their records read; from then on the answer is kept up to date by
whoever publishes transactions.
"""

from __future__ import annotations

import threading

from objdb.ids import Oid, Tid
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Log

Entry = tuple[int, Tid]  # as in the index


class FileVersions:
    """version → objects → entries, the entry of the record written last being the last one.

    `_lock` covers the attributes below it.
    """

    def __init__(self, log: Log, index: Index) -> None:
        self._log = log
        self._index = index
        self._lock = threading.Lock()
        self._is_known = False
        self._objects: dict[str, dict[Oid, Entry]] = {}
        self._version_of: dict[Oid, str] = {}

    def names(self) -> list[str]:
        """Return the versions that are not empty."""
        with self._lock:
            self._find()
            return list(self._objects)

    def objects(self, version: str) -> dict[Oid, Entry]:
        """Return the objects in a version, with their entries."""
        with self._lock:
            self._find()
            return dict(self._objects.get(version, ()))

    def count(self, version: str) -> int:
        """Return how many objects are in a version."""
        with self._lock:
            self._find()
            return len(self._objects.get(version, ()))

    def latest(self, version: str) -> int:
        """Return where the last record of the objects in a version is, 0 if there is none."""
        with self._lock:
            self._find()
            entries = self._objects.get(version)
            return next(reversed(entries.values()))[0] & POSITION if entries else 0

    def of(self, oid: Oid, entry: Entry) -> str:
        """Return the version of an object that has this entry, decided or published."""
        version = self._version_of.get(oid)
        if version is not None and self._objects[version].get(oid) == entry:
            return version
        return self._log.record(entry[0]).version

    def update(self, versions: dict[Oid, str], positions: dict[Oid, int], tid: Tid) -> None:
        """Note which version the objects are in ("": none) after the transaction *tid*, which is
        in the index."""
        with self._lock:
            if self._is_known:
                for oid, version in versions.items():
                    self._set(oid, version, (positions[oid], tid))

    def _set(self, oid: Oid, version: str, entry: Entry) -> None:
        old = self._version_of.pop(oid, None)
        if old is not None:
            del self._objects[old][oid]
            if not self._objects[old]:
                del self._objects[old]
        if version:
            self._version_of[oid] = version
            self._objects.setdefault(version, {})[oid] = entry

    def _find(self) -> None:
        if not self._is_known:
            found = sorted(self._index.in_versions(), key=lambda item: item[1])
            for oid, entry in found:
                self._set(oid, self._log.record(entry[0]).version, entry)
            self._is_known = True
