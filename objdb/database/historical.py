"""Historical connections, and the pool that keeps them. `storage/times` reads their moments.

Opening one never waits for another. Those that come back keep their caches for a while: the next
one for the same moment gets them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from objdb.connection.connection import Connection
from objdb.ids import Tid


class HistoricalPool:
    """Keeps up to *size* unused historical connections, each for *timeout* seconds
    at most; *make* makes one that works in a version.

    `_lock` covers the attributes below it.
    """

    def __init__(self, size: int, timeout: float, make: Callable[[str], Connection]) -> None:
        self._size = size
        self._timeout = timeout
        self._make = make
        self.clock = time.monotonic
        self._lock = threading.Lock()
        # Since when each is free, and which moment it is of.
        self._free: list[tuple[float, Tid, Connection]] = []
        self._out: dict[Connection, Tid] = {}

    def take(self, before: Tid, version: str = "") -> Connection:
        """Return a free connection, if possible one that was at this moment."""
        with self._lock:
            self._drop_old()
            for i, (_, moment, free) in enumerate(self._free):
                if moment == before and free.getVersion() == version:
                    del self._free[i]
                    connection = free
                    break
            else:
                connection = self._make(version)
                connection.pool = self
            self._out[connection] = before
        return connection

    def holder_of(self, connection: Connection) -> Tid | None:
        """Return the moment that *connection* was taken for, None if it is free."""
        return self._out.get(connection)

    def give_back(self, connection: Connection) -> bool:
        """Take a connection back; False if it is not one of this pool's."""
        with self._lock:
            before = self._out.pop(connection, None)
            if before is None:
                return False
            self._free.append((self.clock(), before, connection))
            self._drop_old()
            return True

    def _drop_old(self) -> None:
        oldest = self.clock() - self._timeout
        kept = [entry for entry in self._free if entry[0] > oldest]
        self._free = kept[max(0, len(kept) - self._size) :]

    def connections(self) -> list[Connection]:
        """Return all connections, those in use first."""
        with self._lock:
            self._drop_old()
            return [*self._out, *(connection for _, _, connection in self._free)]

    def for_each(self, action: Callable[[Connection], None]) -> None:
        """Call *action* with each connection in use when its next view begins; drop the unused
        ones."""
        with self._lock:
            self._free.clear()
            out = list(self._out)
        for connection in out:
            connection.postpone(action)

    def close(self) -> list[Connection]:
        """Return the connections that are in use."""
        with self._lock:
            self._free.clear()
            return list(self._out)
