"""Durus, with its own tree and its own file storage.

Durus hands a commit to the operating system and does not wait for the disk. Since all others
measured here are durable when `commit` returns, this store syncs the file after each commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems.base import MANY_OBJECTS, ObjectStore, System


class DurusStore(ObjectStore):
    """A file storage and the one connection it has."""

    def __init__(self, file: str, repair: bool) -> None:
        from durus.connection import Connection
        from durus.file_storage import FileStorage

        from benchmarks import durus_model

        self.model = durus_model
        self.storage = FileStorage(file, repair=repair)
        self.connection = Connection(self.storage, cache_size=MANY_OBJECTS)

    def root(self) -> Any:
        return self.connection.get_root()

    def new_tree(self) -> Any:
        from durus.btree import BTree

        return BTree()

    def commit(self) -> None:
        self.connection.commit()
        self.storage.shelf.get_file().fsync()

    def trim(self) -> None:
        self.connection.set_cache_size(1)
        self.connection.shrink_cache()
        self.connection.set_cache_size(MANY_OBJECTS)

    def close(self) -> None:
        self.connection.abort()
        self.storage.close()


class Durus(System):
    name: ClassVar[str] = "durus"
    title: ClassVar[str] = "Durus"
    module: ClassVar[str] = "durus"
    package: ClassVar[str | None] = "Durus"
    abilities = frozenset({"items", "save", "objects", "attribute"})

    def create(self, path: Path) -> DurusStore:
        store = self.open(path)
        store.create_container()
        return store

    def open(self, path: Path) -> DurusStore:
        return DurusStore(str(path / "data.durus"), repair=True)

    def prepare(self, path: Path) -> None:
        """Pack: only a packed file has its index on disk and opens without being read through."""
        store = self.open(path)
        store.storage.pack()
        store.close()
        (path / "data.durus.prepack").unlink(missing_ok=True)
