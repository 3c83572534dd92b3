"""objdb on its other storages and layers, and RelStorage: what `--storages` compares."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems.base import CACHE_BYTES, MANY_OBJECTS
from benchmarks.systems.persistent_store import THREADS, Objdb, Zodb

COMMITS = {"bulk-commit", "batch-commit", "small-commit", "threads-commit"}
LOADS = {"load-in-order", "load-at-random"}


class _On(Objdb):
    """objdb on a storage that is not a file."""

    abilities = frozenset({"items", "save", "threads", "processes"})

    @abstractmethod
    def storage(self, file: str) -> Any:
        """Open or create the storage in `file`."""

    def database(self, file: str) -> Any:
        import objdb

        return objdb.DB(self.storage(file), cache_size=MANY_OBJECTS, pool_size=THREADS)


class OnSqlite(_On):
    name: ClassVar[str] = "objdb-sqlite"
    title: ClassVar[str] = "objdb on SQLite"
    takes_part_in = frozenset(COMMITS | LOADS | {"open", "processes-commit"})

    def storage(self, file: str) -> Any:
        from objdb.storage.sql.sqlite import SQLiteStorage

        return SQLiteStorage(file, cache_bytes=CACHE_BYTES)


class OnBerkeley(_On):
    name: ClassVar[str] = "objdb-berkeley"
    title: ClassVar[str] = "objdb on Berkeley DB"
    takes_part_in = frozenset(COMMITS | LOADS | {"open"})

    def storage(self, file: str) -> Any:
        from objdb import BerkeleyStorage

        return BerkeleyStorage(file, cache_bytes=CACHE_BYTES)

    def is_available(self) -> bool:
        import objdb

        return super().is_available() and hasattr(objdb, "BerkeleyStorage")


class _Layered(_On):
    takes_part_in = frozenset(LOADS)


class Zlib(_Layered):
    name: ClassVar[str] = "objdb-zlib"
    title: ClassVar[str] = "objdb, zlib"

    def storage(self, file: str) -> Any:
        import objdb

        return objdb.CompressedStorage(objdb.FileStorage(file))


class Zstd(_Layered):
    name: ClassVar[str] = "objdb-zstd"
    title: ClassVar[str] = "objdb, zstd with a dictionary"

    def storage(self, file: str) -> Any:
        import objdb

        return objdb.CompressedStorage(objdb.FileStorage(file), "zstd")

    def prepare(self, path: Path) -> None:
        """Train a dictionary, and store all records anew with it."""
        storage = self.storage(str(path / "data.fs"))
        storage.train_dictionary()
        storage.rewrite()
        storage.close()


class Encrypted(_Layered):
    name: ClassVar[str] = "objdb-encrypted"
    title: ClassVar[str] = "objdb, encrypted"

    def storage(self, file: str) -> Any:
        import objdb

        return objdb.EncryptedStorage(objdb.FileStorage(file), bytes(range(32)))


class Relstorage(Zodb):
    name: ClassVar[str] = "relstorage"
    title: ClassVar[str] = "RelStorage on SQLite"
    module: ClassVar[str] = "relstorage"
    package: ClassVar[str | None] = "RelStorage"
    abilities = frozenset({"items", "save", "threads", "processes"})
    takes_part_in = frozenset(COMMITS | LOADS | {"processes-commit"})

    def storage(self, file: str) -> Any:
        from relstorage.adapters.sqlite.adapter import Sqlite3Adapter
        from relstorage.options import Options
        from relstorage.storage import RelStorage

        # As durable as the others: a commit that returned survives a loss of power.
        options = Options(keep_history=True)
        adapter = Sqlite3Adapter(file + ".d", {"synchronous": "FULL"}, options=options)
        return RelStorage(adapter, name="bench", options=options)

    def database(self, file: str) -> Any:
        from ZODB.DB import DB

        return DB(self.storage(file), cache_size=MANY_OBJECTS, pool_size=THREADS)
