"""sqlite3 with a write-ahead log, synced at each commit (`synchronous=FULL`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import loads
from typing import Any, ClassVar

from benchmarks.shapes import Item
from benchmarks.systems.base import CACHE_BYTES, System
from benchmarks.systems.keyvalue import KeyValueStore, pickled

BUSY_SECONDS = 60.0


class SqliteStore(KeyValueStore):
    """A table with the number as its key: an `INTEGER PRIMARY KEY` is the fastest sqlite has."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.connection = connection = sqlite3.connect(
            file, timeout=BUSY_SECONDS, isolation_level=None
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_BYTES >> 10}")
        connection.execute("CREATE TABLE IF NOT EXISTS item (key INTEGER PRIMARY KEY, value BLOB)")

    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "INSERT INTO item VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            ((key, pickled(item)) for key, item in items),
        )
        execute("COMMIT")

    def read_in_order(self) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        for (value,) in self.connection.execute("SELECT value FROM item ORDER BY key"):
            item = loads(value)
            item.number  # noqa: B018  as the others do
            keep(item)
        return loaded

    def read_by_key(self, keys: Iterable[int]) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        execute = self.connection.execute
        execute("BEGIN")
        for key in keys:
            row = execute("SELECT value FROM item WHERE key = ?", (key,)).fetchone()
            item = loads(row[0])
            item.number  # noqa: B018  as the others do
            keep(item)
        execute("COMMIT")
        return loaded

    @contextmanager
    def session(self) -> Iterator[SqliteStore]:
        session = SqliteStore(self.file)
        yield session
        session.close()

    def close(self) -> None:
        self.connection.close()


class Sqlite(System):
    name: ClassVar[str] = "sqlite"
    title: ClassVar[str] = "sqlite3 + pickle"
    module: ClassVar[str] = "sqlite3"
    package: ClassVar[str | None] = None
    abilities = frozenset({"items", "save", "threads"})

    def create(self, path: Path) -> SqliteStore:
        return SqliteStore(str(path / "data.sqlite"))

    def open(self, path: Path) -> SqliteStore:
        return SqliteStore(str(path / "data.sqlite"))

    def version(self) -> str:
        return sqlite3.sqlite_version
