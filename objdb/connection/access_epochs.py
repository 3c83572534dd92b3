"""Which cached objects have not been used for how long.

The cache keeps its objects in access order. Marker objects, put into that order about once a
second, divide it into epochs:

    oldest  a b c │ d │ e f g h │ i      newest
                 12:00:01  …02     …05   markers, with the time they were set
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from persistent import Persistent

_EPOCH_SECONDS = 1.0
_MOST_EPOCHS = 512


class Marker(Persistent):
    """Stands in the access order of a cache; never stored. Reading `touch` moves it to the
    end."""

    touch = None


class AccessEpochs:
    """Sets markers in the access order of one connection's cache, and reads ages from them."""

    def __init__(self, jar: Any, cache: Any) -> None:
        self._jar = jar
        self._cache = cache
        self._markers: deque[tuple[float, bytes]] = deque()
        self._number = 0
        self._last = 0.0
        self.clock = time.monotonic

    def advance(self) -> None:
        """Begin a new epoch, if the current one is old enough."""
        now = self.clock()
        if now - self._last >= _EPOCH_SECONDS:
            self._last = now
            self._number += 1
            oid = b"\xff" + self._number.to_bytes(7, "big")
            marker = Marker()
            marker._p_jar = self._jar
            marker._p_oid = oid
            self._cache[oid] = marker
            self._markers.append((now, oid))
            if len(self._markers) > _MOST_EPOCHS:
                oldest = self._markers.popleft()[1]
                if self._cache.get(oldest) is not None:  # the cache may have dropped it
                    del self._cache[oldest]

    def idle_for(self, age: float) -> list[Persistent]:
        """Return the loaded objects not used for *age* seconds, longest idle first.

        An object counts as used until the end of the epoch it was used in. Epochs end when a
        transaction begins, at least a second after the one before; so an object may have been
        idle for longer, by as much, than is known here.
        """
        limit = self.clock() - age
        old = {oid for set_at, oid in self._markers if set_at <= limit}
        idle: list[Persistent] = []
        found = 0
        for oid, obj in self._cache.lru_items():
            if oid in old:
                found = len(idle)
            elif type(obj) is not Marker:
                idle.append(obj)
        return idle[:found]

    def is_marker(self, obj: Any) -> bool:
        """Whether *obj* is one of the markers, which belong to no user."""
        return type(obj) is Marker
