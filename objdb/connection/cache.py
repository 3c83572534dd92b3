"""The objects that a connection keeps in memory: how many, which were used when, and when they
become ghosts.

    PickleCache   oid → object, ghosts by weak reference, loaded ones in access order
    AccessEpochs  markers in that order, about one a second: what was not used for how long
    ReadSet       a marker too: what this transaction has read (kept while objects leave)
"""

from __future__ import annotations

from typing import Any

from persistent import Persistent, PickleCache

from objdb.connection.access_epochs import AccessEpochs
from objdb.connection.isolation import kept
from objdb.connection.jar import Jar
from objdb.errors import ConflictError
from objdb.ids import Oid
from objdb.records.attributes import set_estimated_size


class ObjectCache:
    """The cache of *jar*, with a target of *size* objects, and *size_bytes* bytes of their records
    (0: no limit). `objects` is the table itself."""

    def __init__(self, jar: Jar, size: int, size_bytes: int) -> None:
        self._jar = jar
        self.objects = PickleCache(jar, size, size_bytes)
        self.epochs = AccessEpochs(jar, self.objects)
        jar._counts_bytes = size_bytes > 0

    def minimize(self, age: float = 0) -> None:
        """Make ghosts of the loaded, unchanged objects that were not used for *age* seconds."""
        self._jar.reader.forget()
        if age:
            self.sweep(age)
        else:
            with kept(self._jar.view.reads):
                self.objects.minimize()

    def sweep(self, age: float) -> None:
        """Make ghosts of those that were not used for *age* seconds, one after the other."""
        with kept(self._jar.view.reads):
            for obj in self.epochs.idle_for(age):
                obj._p_deactivate()

    def shrink(self) -> None:
        """Bring the cache down to its target, least recently used objects first."""
        with kept(self._jar.view.reads):
            self.objects.incrgc()

    def loaded(self) -> list[Persistent]:
        """Return the loaded objects, least recently used first."""
        items = self.objects.lru_items()
        return [obj for _, obj in items if not self.epochs.is_marker(obj)]

    def ghost_count(self) -> int:
        """Return the number of ghosts."""
        return len(self.objects) - int(self.objects.cache_non_ghost_count)

    def invalidate_all(self) -> None:
        """Make ghosts of all unchanged objects: which of them are current is not known."""
        self._jar.reader.forget()
        self.objects.invalidate([oid for oid, _ in self.objects.lru_items()])

    # -- sizes of records

    def set_limits(self, size: int, size_bytes: int) -> None:
        """Change the target: *size* objects, *size_bytes* bytes of their records (0: no limit)."""
        self.objects.cache_size = size
        self.objects.cache_size_bytes = size_bytes
        is_new = size_bytes > 0 and not self._jar._counts_bytes
        self._jar._counts_bytes = size_bytes > 0
        if is_new:  # what is loaded was not counted
            for oid, obj in self.objects.lru_items():
                if not self.epochs.is_marker(obj):
                    self.note_size(oid, obj, self.record_size(oid))

    def note_size(self, oid: Oid, obj: Any, size: int) -> None:
        """Note how large an object's record is, where the size in bytes is limited."""
        self.objects.update_object_size_estimation(oid, size)
        set_estimated_size(obj, size)

    def record_size(self, oid: Oid) -> int:
        """Return the size of an object's record, in bytes; 0 if it has none yet."""
        try:
            found = self._jar.load_committed(oid, self._jar._before)
        except (KeyError, ConflictError):  # new and not committed yet; or packed away
            return 0
        return 0 if found is None else len(found[0])

    def estimated_bytes(self) -> int:
        """Return the size of the records the loaded objects came from: counted while the cache
        has a limit in bytes, else 0."""
        return int(self.objects.total_estimated_size)
