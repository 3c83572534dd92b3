"""What the machine does without any database: the floor that the others stand on.

A small commit is compared with a bare write of as many bytes followed by `fdatasync`, at the end
of a growing file and inside of space allocated before. An attribute of a loaded object is compared
with one of a `Persistent` object that no database knows, and of a plain Python object.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.shapes import Item
from benchmarks.systems.base import Store, System
from benchmarks.systems.keyvalue import pickled

COMMIT_OVERHEAD_BYTES = 23 + 42 + 8
"""Transaction header, data header and trailing length in ZODB's file format."""

PREALLOCATED_BYTES = 8 << 20


class BareStore(Store):
    """A store that cannot do anything; subclasses add what is compared."""

    def item(self, key: int) -> Any:
        return Item(key)

    def _cannot(self, *arguments: Any) -> Any:
        raise AssertionError("no measurement that it takes part in asks for this")

    stage = commit = save = read_in_order = read_by_key = _cannot

    def ready(self) -> None:
        pass

    def close(self) -> None:
        pass


class WriteStore(BareStore):
    """Writes as many bytes as a commit of one item has, then syncs."""

    def __init__(self, file: Path, preallocated_bytes: int) -> None:
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
        self.record = b"\1" * (COMMIT_OVERHEAD_BYTES + len(pickled(Item(0))))
        self.position = 0
        if preallocated_bytes:
            os.posix_fallocate(self.descriptor, 0, preallocated_bytes)
        os.fsync(self.descriptor)

    def save(self, key: int, item: Any) -> None:
        os.pwrite(self.descriptor, self.record, self.position)
        os.fdatasync(self.descriptor)
        self.position += len(self.record)

    def close(self) -> None:
        os.close(self.descriptor)


class PersistentItems(BareStore):
    def item(self, key: int) -> Any:
        from benchmarks import persistent_model

        return persistent_model.Item(key)


class BareSystem(System):
    """Needs nothing but Python."""

    module: ClassVar[str] = "os"
    package: ClassVar[str | None] = None
    abilities = frozenset({"save"})
    is_database: ClassVar[bool] = False

    def create(self, path: Path) -> Store:
        return self.open(path)

    def version(self) -> str:
        return platform.python_version()


class BareAppend(BareSystem):
    name: ClassVar[str] = "append"
    title: ClassVar[str] = "bare append + fdatasync"

    def open(self, path: Path) -> Store:
        return WriteStore(path / "bare", 0)


class BarePreallocated(BareSystem):
    name: ClassVar[str] = "preallocated"
    title: ClassVar[str] = "bare write into preallocated space + fdatasync"

    def open(self, path: Path) -> Store:
        return WriteStore(path / "bare", PREALLOCATED_BYTES)


class PlainPersistent(BareSystem):
    name: ClassVar[str] = "persistent"
    title: ClassVar[str] = "plain Persistent"
    module: ClassVar[str] = "persistent"
    package: ClassVar[str | None] = "persistent"
    abilities = frozenset({"attribute"})

    def open(self, path: Path) -> Store:
        return PersistentItems()


class PlainObject(BareSystem):
    name: ClassVar[str] = "object"
    title: ClassVar[str] = "plain Python object"
    abilities = frozenset({"attribute"})

    def open(self, path: Path) -> Store:
        return BareStore()
