"""What `DB.statistics()` returns: one value, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionStatistics:
    """One pooled connection. `held_by` is the name of the task or thread that has it, empty for
    one in the pool; `estimated_bytes` is the size of the records its loaded objects came from,
    counted only while the cache has a limit in bytes."""

    held_by: str
    loaded_objects: int
    ghosts: int
    estimated_bytes: int
    loads: int
    stores: int


@dataclass(frozen=True)
class DatabaseStatistics:
    """A database: its storage (bytes, objects, last tid), its pool, and what it has done since
    it was opened."""

    name: str
    objects: int
    size_bytes: int
    last_tid: bytes
    pool_size: int
    connections_out: int
    connections: tuple[ConnectionStatistics, ...]
    conflicts: int
    commits: int
