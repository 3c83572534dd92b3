"""The connections of a database and their caches: their numbers, and how they are kept small."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from zope.interface import implementer

from objdb.connection.connection import Connection
from objdb.database.conflicts import ConflictLog
from objdb.database.historical import HistoricalPool
from objdb.database.options import Options
from objdb.database.pool import ConnectionPool, Holder
from objdb.database.statistics import ConnectionStatistics, DatabaseStatistics
from objdb.database.versions import VersionPools
from objdb.interfaces import IDatabaseCaches


@implementer(IDatabaseCaches)
class DatabaseCaches:
    """The part of `DB` that is about caches and numbers."""

    name: str
    storage: Any
    conflicts: ConflictLog
    options: Options
    _pool: ConnectionPool
    _past: HistoricalPool
    _companions: WeakSet[Connection]
    _connections_lock: threading.Lock
    _version_pools: VersionPools
    _commits: int

    def _connections(self) -> list[tuple[Connection, Holder | None]]:
        pools = [self._pool, *self._version_pools.all()]
        pooled = [pair for pool in pools for pair in pool.connections()]
        others = [*self._past.connections(), *self._listed_companions()]
        return [*pooled, *((connection, None) for connection in others)]

    def _listed_companions(self) -> list[Connection]:
        """Return the connections that were opened through those to other databases."""
        with self._connections_lock:
            return list(self._companions)

    def _for_each(self, action: Callable[[Connection], None]) -> None:
        for pool in (self._pool, *self._version_pools.all()):
            pool.for_each(action)
        self._past.for_each(action)
        for companion in self._listed_companions():
            if companion.is_this_threads:
                action(companion)
            else:
                companion.postpone(action)

    def getCacheSize(self) -> int:
        """Return how many objects each connection keeps loaded."""
        return self.options.cache_size

    def getCacheSizeBytes(self) -> int:
        """Return how many bytes of records each connection keeps loaded (0: no limit)."""
        return self.options.cache_size_bytes

    def setCacheSize(self, size: int) -> None:
        """Let each connection keep *size* objects loaded."""
        self._change_caches(cache_size=size)

    def setCacheSizeBytes(self, size: int) -> None:
        """Let each connection keep objects of *size* bytes of records loaded (0: no limit)."""
        self._change_caches(cache_size_bytes=size)

    def _change_caches(self, **limits: int) -> None:
        options = self.options = self.options.changed(**limits)

        def change(connection: Connection) -> None:
            count = options.cache_size
            if connection.view.past is not None:
                count = options.historical_cache_size
            elif connection.getVersion():
                count = options.version_cache_size
            connection.cache.set_limits(count, options.cache_size_bytes)

        self._for_each(change)

    def setCacheDeactivateAfter(self, seconds: float) -> None:
        """Set the age that `cacheFullSweep` goes by."""
        self.options = self.options.changed(cache_deactivate_after=seconds)

    def cacheMinimize(self, age: float = 0) -> None:
        """Make ghosts of unchanged objects not used for *age* seconds: now in the connections
        that this thread has and those in the pool, in others when their next transaction
        begins."""
        self._for_each(lambda connection: connection.cache.minimize(age))

    def cacheFullSweep(self, age: float | None = None) -> None:
        """Make ghosts of unchanged objects not used for *age* seconds (default:
        `cache_deactivate_after`), when `cacheMinimize` does."""
        self._for_each(lambda connection: connection.cacheFullSweep(age))

    def cacheSize(self) -> int:
        """Return the number of loaded objects in all connections."""
        return sum(len(connection.cache.loaded()) for connection, _ in self._connections())

    def cacheDetail(self) -> list[tuple[str, int]]:
        """Return (class name, number of loaded objects), by class name."""
        counts: dict[str, int] = {}
        for connection, _ in self._connections():
            for obj in connection.cache.loaded():
                name = f"{type(obj).__module__}.{type(obj).__qualname__}"
                counts[name] = counts.get(name, 0) + 1
        return sorted(counts.items())

    def cacheDetailSize(self) -> list[dict[str, Any]]:
        """Return for each connection a dict: connection, ngsize (loaded objects), size (with
        ghosts)."""
        details = []
        for connection, _ in self._connections():
            loaded = len(connection.cache.loaded())
            details.append(
                {
                    "connection": repr(connection), "ngsize": loaded,
                    "size": loaded + connection.cache.ghost_count(),
                }
            )
        return details

    def cacheExtremeDetail(self) -> list[dict[str, Any]]:
        """Return for each loaded object a dict: conn_no, oid, klass, size (bytes of its record,
        which is read for it), state."""
        return [
            {
                "conn_no": number, "oid": obj._p_oid,
                "size": connection.cache.record_size(obj._p_oid),
                "klass": f"{type(obj).__module__}.{type(obj).__qualname__}",
                "state": obj._p_state,
            }
            for number, (connection, _) in enumerate(self._connections())
            for obj in connection.cache.loaded()
        ]

    def statistics(self) -> DatabaseStatistics:
        """Return what the database, its pool and its caches look like now."""
        connections = []
        for connection, holder in self._connections():
            loaded = connection.cache.loaded()
            connections.append(
                ConnectionStatistics(
                    held_by=holder.name if holder else "", loaded_objects=len(loaded),
                    ghosts=connection.cache.ghost_count(), loads=connection.load_count,
                    estimated_bytes=connection.cache.estimated_bytes(),
                    stores=connection.store_count,
                )
            )
        return DatabaseStatistics(
            name=self.name, objects=len(self.storage), size_bytes=self.storage.getSize(),
            last_tid=self.storage.lastTransaction(), pool_size=self._pool.size,
            connections_out=sum(1 for c in connections if c.held_by),
            connections=tuple(connections), conflicts=self.conflicts.count, commits=self._commits,
        )

    def setPoolSize(self, size: int) -> None:
        """Let *size* connections be out at once."""
        self.options = self.options.changed(pool_size=size)
        self._pool.resize(size)

    def getPoolSize(self) -> int:
        """Return how many connections can be out at once."""
        return self._pool.size
