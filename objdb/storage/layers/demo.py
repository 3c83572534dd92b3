"""DemoStorage: changes over a storage that is never written, to try things out.

    push()      another one over this: its changes can be dropped separately
    pop()       drop it

`overlay` has the engine, which keeps the changes and finds visible revisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from objdb.errors import Unsupported, UsageError
from objdb.interfaces import (
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStorageRestoreable,
    IStorageVersions,
)
from objdb.storage.layers.overlay import OverlayEngine
from objdb.storage.memory import MappingStorage
from objdb.storage.storage import Storage

_NEEDED = IStorageRestoreable, IStorageIteration, IStorageHistory  # of the changes


class DemoStorage(Storage):
    """Shows *base*, and keeps the changes in *changes*: a storage with history that takes copies
    of transactions and lists them, by default one in memory.

    `base` and `changes` are the two storages; closing closes both. *base* must not be written
    meanwhile. Changes kept in a file can be reopened over the same base. Takes memory for every
    changed object.

    `Unsupported` for *changes* of another kind; `UsageError` if they belong to another base.
    """

    engine: OverlayEngine

    def __init__(self, base: Any, changes: Any = None) -> None:
        if not IStorage.providedBy(base):
            raise UsageError(f"{base!r} is not a storage to try changes over")
        changes = MappingStorage("changes") if changes is None else changes
        if not all(interface.providedBy(changes) for interface in _NEEDED):
            raise Unsupported(
                f"{changes!r} cannot keep changes: they need a storage with history that takes "
                "copies of transactions and lists them, such as FileStorage or MappingStorage"
            )
        super().__init__(OverlayEngine(base, changes), without=tuple(_lacking(base, changes)))
        self.base = base
        self.changes = changes
        # Only the changes are written.
        self._sort_key = changes.sortKey()

    def push(self) -> DemoStorage:
        """Return a storage in memory over this one, for changes that can be dropped."""
        return DemoStorage(self)

    def pop(self) -> Any:
        """Drop the changes, or close them if they are kept; return the base."""
        self._access.is_closed = True
        self.changes.close()
        return self.base


def _lacking(base: Any, changes: Any) -> Iterator[Any]:
    """Yield the interfaces that a storage over these cannot declare."""
    yield IStorageCurrentRecordIteration
    if not IStorageIteration.providedBy(base):
        yield from (IStorageIteration, IStorageRestoreable)
    if not IStorageHistory.providedBy(base):
        yield IStorageHistory
    if not IStorageVersions.providedBy(changes):
        yield IStorageVersions
    if not IStoragePackable.providedBy(changes):
        yield IStoragePackable
