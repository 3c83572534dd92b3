"""LMDB: a memory-mapped B+tree, one writer at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import loads
from typing import Any, ClassVar

from benchmarks.shapes import Item
from benchmarks.systems.base import System
from benchmarks.systems.keyvalue import KeyValueStore, pack_key, pickled

MAP_BYTES = 64 << 30


class LmdbStore(KeyValueStore):
    def __init__(self, path: Path) -> None:
        import lmdb

        super().__init__()
        self.environment = lmdb.open(str(path), map_size=MAP_BYTES)

    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        with self.environment.begin(write=True) as txn:
            put = txn.put
            for key, item in items:
                put(pack_key(key), pickled(item))

    def read_in_order(self) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        with self.environment.begin(buffers=True) as txn:
            for value in txn.cursor().iternext(keys=False):
                item = loads(value)
                item.number  # noqa: B018  as the others do
                keep(item)
        return loaded

    def read_by_key(self, keys: Iterable[int]) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        with self.environment.begin(buffers=True) as txn:
            get = txn.get
            for key in keys:
                item = loads(get(pack_key(key)))  # type: ignore[arg-type]
                item.number  # noqa: B018  as the others do
                keep(item)
        return loaded

    def close(self) -> None:
        self.environment.close()


class Lmdb(System):
    name: ClassVar[str] = "lmdb"
    title: ClassVar[str] = "LMDB + pickle"
    module: ClassVar[str] = "lmdb"
    package: ClassVar[str | None] = "lmdb"
    abilities = frozenset({"items", "save", "threads"})

    def create(self, path: Path) -> LmdbStore:
        return LmdbStore(path)

    def open(self, path: Path) -> LmdbStore:
        return LmdbStore(path)
