"""What the tests of layers need."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

import objdb
from objdb.storage.memory import MappingStorage


class Note(objdb.Persistent):
    """An object with a text."""

    def __init__(self, text: str) -> None:
        self.text = text


def copy_of(storage: Any) -> MappingStorage:
    """Return a storage in memory with the same transactions."""
    copy = MappingStorage("copy")
    copy.copyTransactionsFrom(storage)
    return copy


def fill(storage: Any, count: int = 40) -> None:
    """Put notes into *storage*, through a database that is not closed."""
    db = objdb.DB(storage)
    with db.transaction("fill") as connection:
        for number in range(count):
            connection.root()[number] = Note(f"note {number} about nothing much " * 3)


def texts(storage: Any) -> dict[Any, str]:
    """Return what `fill` has put there, read through a database that is not closed."""
    connection = objdb.DB(storage).open(temporary=True)
    try:
        return {key: note.text for key, note in connection.root().items()}
    finally:
        connection.close()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let *package* be missing."""
    import_ = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return import_(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
