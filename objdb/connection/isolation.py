"""Isolation: the modes, and what a transaction has read, for those that have to be serializable.

The cache keeps its objects in access order. A marker that is moved to the end when a view begins
divides those that were read since from the rest, at no cost to reading:

    oldest   a b c d │ marker │ e f   newest
             not read           read by this transaction, tree buckets included

What is read and leaves the cache before the commit is remembered: objects loaded are noted, and
what lies behind the marker is kept before this connection empties its cache. Objects
that the program deactivates are only counted: the commit then requires that nothing was committed
meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from objdb.connection.access_epochs import Marker
from objdb.errors import UsageError
from objdb.ids import NO_TID, Oid, Tid

_OID_AND_TID = struct.Struct("8s8s")
Isolation = Literal["snapshot", "serializable", "read-current"]
ISOLATIONS = ("snapshot", "serializable", "read-current")


def require_isolation(name: str) -> str:
    """Return *name*; `UsageError` if it is not an isolation mode."""
    if name not in ISOLATIONS:
        known = ", ".join(map(repr, ISOLATIONS))
        raise UsageError(f"isolation is {name!r}; it can be one of {known}")
    return name


def read_since(cache: Any, marker: Marker) -> dict[Oid, Tid] | None:
    """Return (oid: serial) of the loaded objects that were accessed after the *marker*, other
    markers aside; None if the marker is not in the *cache* any more."""
    found: dict[Oid, Tid] = {}
    for oid, obj in reversed(cache.lru_items()):
        if obj is marker:
            return found
        if type(obj) is not Marker:
            found[oid] = obj._p_serial
    return None


try:
    from objdb._accelerator import read_since  # type: ignore
except ImportError:
    pass


_NOTHING: AbstractContextManager[None] = nullcontext()


def kept(reads: ReadSet | None) -> AbstractContextManager[None]:
    """Return `reads.kept()`; or a context that does nothing, where reads are not remembered."""
    return _NOTHING if reads is None else reads.kept()


class ReadSet:
    """The objects that one connection has read in its transaction.

    `is_complete` is false when something may be missing.
    """

    _OID = b"\xff" * 8  # of the marker

    def __init__(self, jar: Any, cache: Any) -> None:
        self._jar = jar
        self._cache = cache
        self._marker = self._new_marker()
        self.begin()

    def begin(self) -> None:
        """Nothing is read yet."""
        self._kept: dict[Oid, Tid] = {}
        self.is_complete = True
        self._move_marker()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Remember what was read while objects leave the cache, in the block."""
        self._collect()
        try:
            yield
        finally:
            self._move_marker()

    def serials(self) -> dict[Oid, Tid]:
        """Return (oid: serial) of all that was read, new objects aside."""
        self._collect()
        return self._kept

    def _new_marker(self) -> Marker:
        if self._cache.get(self._OID) is not None:  # of an earlier opening
            del self._cache[self._OID]
        marker = Marker()
        marker._p_jar = self._jar
        marker._p_oid = self._OID
        self._cache[self._OID] = marker
        return marker

    def _move_marker(self) -> None:
        if self._marker._p_changed is None:  # it left the cache with others
            self._marker = self._new_marker()
        _ = self._marker.touch
        # Oids and serials of what was loaded, in turns; filled by the load path. A dict would take
        # longer, and only commits that write need one.
        self._loaded = bytearray()
        self._jar._loaded = self._loaded
        self._found_loaded = self._cache.cache_non_ghost_count

    def _collect(self) -> None:
        read = read_since(self._cache, self._marker)
        loaded: dict[Oid, Tid] = dict(_OID_AND_TID.iter_unpack(self._loaded))
        if read is None:
            self.is_complete = False
            read = {}
        new = list(read.values()).count(NO_TID)
        found_loaded = len(read) - new - len(read.keys() & loaded.keys())
        before_marker = self._cache.cache_non_ghost_count - len(read)
        if before_marker + found_loaded < self._found_loaded:
            self.is_complete = False
        if new:
            read = {oid: serial for oid, serial in read.items() if serial != NO_TID}
        self._kept = {**read, **loaded, **self._kept}
