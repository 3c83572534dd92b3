"""Allocating oids: consecutive numbers, each for one object only."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from objdb.errors import StorageError
from objdb.ids import ROOT_OID, Oid, int_from_oid
from objdb.storage.amending import Amender
from objdb.storage.engine import IOidRanges

_LAST_OID = 2**64 - 1
_FIRST_OIDS, _MOST_OIDS = 50, 12_800  # number of oids reserved at a time


class OidSource:
    """Hands out oids after the largest one of *engine*. For an engine that declares `IOidRanges`,
    ranges of them are reserved, through *amender*.

    `_lock` covers `_last` and `_until`, `_reserving` everything else.
    """

    def __init__(self, engine: Any, amender: Amender) -> None:
        self._engine = engine
        self._amender = amender
        self._has_ranges = IOidRanges.providedBy(engine)
        self._lock = threading.Lock()
        self._reserving = threading.Lock()
        self._last: int = engine.max_oid  # the last oid handed out or noted
        self._noted: Oid = ROOT_OID  # the largest noted one
        self._until = 0 if self._has_ranges else _LAST_OID
        self._at_a_time = _FIRST_OIDS

    @property
    def locks(self) -> tuple[threading.Lock, ...]:
        """The locks to hold during a fork."""
        return self._reserving, self._lock

    def take(self) -> Oid | None:
        """Return an oid that was never returned before; None if some must be reserved first."""
        with self._lock:
            if self._last >= self._until:
                return None
            self._last = number = self._last + 1
        return number.to_bytes(8, "big")

    def reserve(self) -> None:
        """Reserve oids for this process. Raises `StorageError` if none are left."""
        if not self._has_ranges:
            raise StorageError(
                f"{self._engine.name} has no oids left: there is an object with the last one, "
                "0xffffffffffffffff. Copy the reachable objects to a new storage"
            )
        with self._reserving:
            if self._last < self._until:
                return
            wanted = self._at_a_time
            with self._amender.alone():
                until = self._engine.reserve_oids(self._last, wanted)
            with self._lock:
                self._last = max(self._last, until - wanted)
                self._until = until
            self._at_a_time = min(wanted * 2, _MOST_OIDS)

    def note(self, oids: Iterable[Oid]) -> None:
        """Never hand out *oids*, which another storage may have assigned."""
        largest = max(oids, default=ROOT_OID)
        if largest > self._noted:
            with self._lock:
                self._last = max(self._last, int_from_oid(largest))
                self._noted = max(self._noted, largest)
