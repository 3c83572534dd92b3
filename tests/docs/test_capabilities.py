"""The table of what each storage can do, made from what the storages declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from objdb import (
    BerkeleyStorage,
    FileStorage,
    MappingStorage,
    PickledMappingStorage,
    SQLiteStorage,
    interfaces,
)
from objdb_zeo import ClientStorage
from tests.zeo.serving import Serving

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
# What makes each in a new directory: some declare an interface or not, as they are opened.
STORAGES: dict[str, Callable[[Path], Any]] = {
    "FileStorage": lambda folder: FileStorage(folder / "data.fs"),
    "BerkeleyStorage": lambda folder: BerkeleyStorage(folder / "berkeley"),
    "BerkeleyStorage without history": lambda folder: BerkeleyStorage(
        folder / "plain", history=False
    ),
    "SQLiteStorage": lambda folder: SQLiteStorage(folder / "data.sqlite"),
    "SQLiteStorage without history": lambda folder: SQLiteStorage(
        folder / "plain.sqlite", history=False
    ),
    "MappingStorage": lambda folder: MappingStorage(),
    "PickledMappingStorage": lambda folder: PickledMappingStorage(folder / "data.pickle"),
}
ROWS = {
    "IStorage": "load, store, two-phase commit, conflicts",
    "IStorageReadChecks": "check all that a transaction read, in one go",
    "IStorageHistory": "list an object's revisions",
    "IStorageIteration": "list transactions in order",
    "IStorageCurrentRecordIteration": "list objects one by one, and the last transactions",
    "IStorageRestoreable": "take copies of transactions as they are",
    "IStorageUndoable": "undo transactions",
    "IStoragePacked": "tell up to when a pack has taken something away",
    "IStoragePackable": "remove old revisions and unreachable objects",
    "IStorageVersions": "work apart in versions",
    "IStorageSelfCheck": "check its own structure",
    "IStoragePolling": "follow another process that writes",
    "IStorageShared": "be written by several processes at once",
    "IStoragePrefetch": "load many objects in one go",
    "IStorageSync": "see, when it is asked to, what was acknowledged elsewhere a moment ago",
}


def table(folder: Path, served: Serving) -> str:
    """The table as the page should have it."""
    storages = [make(folder) for make in STORAGES.values()]
    storages.append(ClientStorage(served.address))
    try:
        names = [*STORAGES, "ClientStorage, of a FileStorage"]
        lines = ["| it can | interface | " + " | ".join(names) + " |"]
        lines.append("|---|---|" + "---|" * len(storages))
        for name, meaning in ROWS.items():
            interface = getattr(interfaces, name)
            marks = ["yes" if interface.providedBy(s) else "no" for s in storages]
            lines.append(f"| {meaning} | `{name}` | " + " | ".join(marks) + " |")
        return "\n".join(lines)
    finally:
        for storage in storages:
            storage.close()


def test_the_table_is_true(tmp_path: Path) -> None:
    """docs/capabilities.md shows what the storages declare; every storage interface has a row."""
    with Serving({"1": FileStorage(tmp_path / "served.fs")}) as served:
        found = table(tmp_path, served)
    assert found in PAGE.read_text(), f"put this into {PAGE.name}:\n{found}"
    declared = {name for name in vars(interfaces) if name.startswith("IStorage")}
    assert declared == set(ROWS)
