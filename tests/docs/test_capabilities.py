"""The table of what each storage can do, made from what the storages declare."""

from __future__ import annotations

from pathlib import Path

from objdb import FileStorage, MappingStorage, interfaces

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
ROWS = {
    "IStorage": "load, store, two-phase commit, conflicts",
    "IStorageReadChecks": "check all that a transaction read, in one go",
    "IStorageHistory": "list an object's revisions",
    "IStorageIteration": "list transactions in order",
    "IStorageRestoreable": "take copies of transactions as they are",
    "IStorageUndoable": "undo transactions",
    "IStoragePackable": "forget what is old, and what nothing leads to",
    "IStorageVersions": "work apart in versions",
    "IStorageSelfCheck": "check its own structure",
    "IStoragePolling": "follow another process that writes",
}


def table() -> str:
    """The table as the page should have it."""
    storages = [MappingStorage, FileStorage]
    lines = ["| it can | interface | " + " | ".join(s.__name__ for s in storages) + " |"]
    lines.append("|---|---|" + "---|" * len(storages))
    for name, meaning in ROWS.items():
        interface = getattr(interfaces, name)
        marks = ["yes" if interface.implementedBy(s) else "no" for s in storages]
        lines.append(f"| {meaning} | `{name}` | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_table_is_true() -> None:
    """docs/capabilities.md shows what the storages declare; every storage interface has a row."""
    assert table() in PAGE.read_text(), f"put this into {PAGE.name}:\n{table()}"
    declared = {name for name in vars(interfaces) if name.startswith("IStorage")}
    assert declared == set(ROWS)
