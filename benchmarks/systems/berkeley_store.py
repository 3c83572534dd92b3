"""Berkeley DB: a B-tree with a write-ahead log, which syncs for several threads at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import loads
from typing import Any, ClassVar

from benchmarks.shapes import Item
from benchmarks.systems.base import CACHE_BYTES, System
from benchmarks.systems.keyvalue import KeyValueStore, pack_key, pickled

LOCKS = 40_000
"""A transaction that writes 100,000 records locks some thousand pages."""

LOG_FILE_BYTES = 16 << 20
LOG_BUFFER_BYTES = 1 << 20
CHECKPOINT_KBYTES = 64 << 10


class BerkeleyStore(KeyValueStore):
    def __init__(self, path: Path) -> None:
        from berkeleydb import db

        super().__init__()
        self.environment = environment = db.DBEnv()
        environment.set_cachesize(0, CACHE_BYTES, 1)
        environment.set_lk_max_locks(LOCKS)
        environment.set_lk_max_objects(LOCKS)
        environment.set_lg_max(LOG_FILE_BYTES)
        environment.set_lg_bsize(LOG_BUFFER_BYTES)
        environment.set_lk_detect(db.DB_LOCK_DEFAULT)
        environment.log_set_config(db.DB_LOG_AUTO_REMOVE, 1)
        parts = db.DB_INIT_MPOOL | db.DB_INIT_LOCK | db.DB_INIT_LOG | db.DB_INIT_TXN
        environment.open(
            str(path), parts | db.DB_CREATE | db.DB_THREAD | db.DB_PRIVATE | db.DB_RECOVER
        )
        self.table = db.DB(environment)
        self.table.open(
            "items.db", dbtype=db.DB_BTREE, flags=db.DB_CREATE | db.DB_AUTO_COMMIT | db.DB_THREAD
        )

    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        txn = self.environment.txn_begin()
        put = self.table.put
        for key, item in items:
            put(pack_key(key), pickled(item), txn=txn)
        txn.commit()

    def read_in_order(self) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        cursor = self.table.cursor()
        record = cursor.first()
        while record is not None:
            item = loads(record[1])
            item.number  # noqa: B018  as the others do
            keep(item)
            record = cursor.next()
        cursor.close()
        return loaded

    def read_by_key(self, keys: Iterable[int]) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        get = self.table.get
        for key in keys:
            item = loads(get(pack_key(key)))
            item.number  # noqa: B018  as the others do
            keep(item)
        return loaded

    def trim(self) -> None:
        """Checkpoint, as its users do while loading: bounds the log and the time of a recovery."""
        self.environment.txn_checkpoint(CHECKPOINT_KBYTES)

    def close(self) -> None:
        self.environment.txn_checkpoint()
        self.table.close()
        self.environment.close()


class Berkeley(System):
    name: ClassVar[str] = "berkeley"
    title: ClassVar[str] = "Berkeley DB + pickle"
    module: ClassVar[str] = "berkeleydb"
    package: ClassVar[str | None] = "berkeleydb"
    abilities = frozenset({"items", "save", "threads"})

    def create(self, path: Path) -> BerkeleyStore:
        return BerkeleyStore(path)

    def open(self, path: Path) -> BerkeleyStore:
        return BerkeleyStore(path)

    def version(self) -> str:
        from berkeleydb import db

        library = ".".join(str(part) for part in db.version())
        return f"{super().version()} (library {library})"
