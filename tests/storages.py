"""Every kind of storage and layer, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import objdb
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.file.storage import FileStorage
from objdb.storage.layers.compressed import CompressedStorage
from objdb.storage.layers.demo import DemoStorage
from objdb.storage.layers.encrypted import EncryptedStorage
from objdb.storage.memory import MappingStorage
from objdb.storage.pickled import PickledMappingStorage
from objdb.storage.sql.sqlite import SQLiteStorage

KEY = bytes(range(32))
Open = Callable[[Path], Any]


def _file(folder: Path) -> FileStorage:
    return FileStorage(
        folder / "data.fs", durability="os", preallocate_bytes=300, checkpoint_records=7
    )


def _sqlite(folder: Path) -> SQLiteStorage:
    return SQLiteStorage(folder / "data.sqlite", durability="os")


# Opens the storage in a folder, where it is found again; the one in memory is new each time.
STORAGES: dict[str, Open] = {
    "memory": lambda folder: MappingStorage(),
    "file": _file,
    "pickle": lambda folder: PickledMappingStorage(folder / "data.pickle", every_seconds=1000),
    "sqlite": _sqlite,
    "berkeley": lambda folder: BerkeleyStorage(folder / "data", durability="os"),
    "compressed": lambda folder: CompressedStorage(_file(folder), "zstd"),
    "encrypted": lambda folder: EncryptedStorage(_sqlite(folder), KEY),
    "demo": lambda folder: DemoStorage(MappingStorage(), _file(folder)),
}
# Besides memory and files, on which everything runs.
OTHERS = [name for name in STORAGES if name not in ("memory", "file")]
# Those that are not found again.
FORGETFUL = ("memory",)


def open_database(kind: str, folder: Path) -> objdb.DB:
    """Open a database on the storage of a kind in *folder*."""
    return objdb.DB(lambda: STORAGES[kind](folder))
