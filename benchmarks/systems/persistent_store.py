"""objdb and ZODB: one code path, differing only in how the database is opened."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems.base import MANY_OBJECTS, ObjectStore, System

MANY_TRIES = 100_000
Retrying = Callable[[Callable[[Any], None]], None]

THREADS = 16
"""Connections that may be open at once: more than any measurement opens."""


class PersistentStore(ObjectStore):
    """A database of `persistent` objects and `BTrees`."""

    def __init__(self, database: Any, connection: Any = None) -> None:
        import transaction

        from benchmarks import persistent_model

        self.model = persistent_model
        self.database = database
        self.connection = connection or database.open()
        self._commit = transaction.commit

    def root(self) -> Any:
        return self.connection.root()

    def new_tree(self) -> Any:
        from BTrees.LOBTree import LOBTree

        return LOBTree()

    def commit(self) -> None:
        self._commit()

    @contextmanager
    def session(self) -> Iterator[PersistentStore]:
        session = PersistentStore(self.database)
        yield session
        session.connection.close()

    def trim(self) -> None:
        self.connection.cacheMinimize()

    def close(self) -> None:
        import transaction

        transaction.abort()
        self.connection.close()
        self.database.close()

    def load_record(self, oid: bytes) -> None:
        """Look an object up in the index and read its bytes, without making an object."""
        self.database.storage.load(oid, "")


class PersistentSystem(System):
    """What objdb and ZODB have in common."""

    abilities = frozenset(
        {"items", "save", "threads", "objects", "sweep", "index", "attribute", "retries", "history"}
    )
    searches_by_time: ClassVar[bool]

    @abstractmethod
    def database(self, file: str) -> Any:
        """Open or create the database in `file`."""

    @abstractmethod
    def retrying(self, database: Any) -> AbstractContextManager[Retrying]:
        """Give a function, for one thread, that does something to the root object in a
        transaction, and again until there is no conflict: as the system's users do."""

    @abstractmethod
    def storage(self, file: str) -> Any:
        """Open or create the storage in `file`, without a database."""

    @abstractmethod
    def unsynced(self, file: str) -> AbstractContextManager[Any]:
        """Give the storage in `file`, for a file that is built: nothing is synced until the end,
        when it is closed."""

    @abstractmethod
    def metadata(self, user: str, description: str) -> Any:
        """Return what a storage is told about a transaction."""

    @abstractmethod
    def undo_log_between(
        self, database: Any, start: float, stop: float, count: int
    ) -> list[dict[str, Any]]:
        """Return the entries of the undo log from one time (seconds since 1970) to another, of
        which there are `count`."""

    def create(self, path: Path) -> PersistentStore:
        store = self.open(path)
        store.create_container()
        return store

    def open(self, path: Path) -> PersistentStore:
        return PersistentStore(self.database(str(path / "data.fs")))


class Objdb(PersistentSystem):
    name: ClassVar[str] = "objdb"
    title: ClassVar[str] = "objdb"
    module: ClassVar[str] = "objdb"
    package: ClassVar[str | None] = "objdb"

    def database(self, file: str) -> Any:
        import objdb

        return objdb.DB(
            file, cache_size=MANY_OBJECTS, version_cache_size=MANY_OBJECTS, pool_size=THREADS
        )

    abilities = PersistentSystem.abilities | {"isolation", "versions"}
    searches_by_time: ClassVar[bool] = True

    def storage(self, file: str) -> Any:
        from objdb.storage.file.storage import FileStorage

        return FileStorage(file)

    @contextmanager
    def unsynced(self, file: str) -> Iterator[Any]:
        from objdb.storage.file.storage import FileStorage

        with FileStorage(file, durability="os") as storage:
            yield storage

    def metadata(self, user: str, description: str) -> Any:
        from objdb.storage.commit import TransactionMetaData

        return TransactionMetaData(user, description)

    def undo_log_between(
        self, database: Any, start: float, stop: float, count: int
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = database.undoLog(start, stop)
        return found

    @contextmanager
    def retrying(self, database: Any) -> Iterator[Retrying]:
        yield lambda change: database.run(lambda c: change(c.root()), tries=MANY_TRIES)

    def is_available(self) -> bool:
        if not super().is_available():
            return False
        import objdb

        return hasattr(objdb, "DB")


class Zodb(PersistentSystem):
    name: ClassVar[str] = "zodb"
    title: ClassVar[str] = "ZODB"
    module: ClassVar[str] = "ZODB"
    package: ClassVar[str | None] = "ZODB"

    def database(self, file: str) -> Any:
        from ZODB.DB import DB
        from ZODB.FileStorage import FileStorage

        return DB(FileStorage(file), cache_size=MANY_OBJECTS, pool_size=THREADS)

    searches_by_time: ClassVar[bool] = False

    def storage(self, file: str) -> Any:
        from ZODB.FileStorage import FileStorage

        return FileStorage(file)

    @contextmanager
    def unsynced(self, file: str) -> Iterator[Any]:
        module: Any = import_module("ZODB.FileStorage.FileStorage")  # the class has its name
        sync = module.fsync
        module.fsync = lambda descriptor: None
        try:
            storage = module.FileStorage(file)
            yield storage
            storage.close()
        finally:
            module.fsync = sync

    def metadata(self, user: str, description: str) -> Any:
        from ZODB.Connection import TransactionMetaData

        return TransactionMetaData(user, description)

    def undo_log_between(
        self, database: Any, start: float, stop: float, count: int
    ) -> list[dict[str, Any]]:
        # Bounds are positions only, so a filter has to find them, from the end of the file.
        def is_between(entry: dict[str, Any]) -> bool:
            return bool(start <= entry["time"] <= stop)

        found: list[dict[str, Any]] = database.undoLog(0, -count, is_between)
        return found

    @contextmanager
    def retrying(self, database: Any) -> Iterator[Retrying]:
        from transaction import TransactionManager

        # Kept open from one transaction to the next, which is the faster way here.
        manager = TransactionManager()
        connection = database.open(transaction_manager=manager)
        root = connection.root()

        def run(change: Callable[[Any], None]) -> None:
            for attempt in manager.attempts(MANY_TRIES):
                with attempt:
                    change(root)

        yield run
        connection.close()
