"""A safe in an objdb database, in one file: for one process at a time, with undo.

The root has a BTree, `"safe"`, from the keys' bytes to an `Entry` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from BTrees.OOBTree import OOBTree
from persistent import Persistent

from objdb.database.db import DB
from objdb.database.packing import AutoPack
from objdb.errors import StorageClosedError, StorageForkedError
from objdb.safe.table import Row, abandon

Result = TypeVar("Result")

FILE_NAME = "safe.fs"
PACKING = AutoPack(days=7, growth_bytes=64 << 20)
"""A safe is packed automatically; a week of it can be undone."""


class Entry(Persistent):
    """The pickles of a value, and of the key if its bytes do not determine it."""

    def __init__(self, original: bytes, value: bytes) -> None:
        self.original = original
        self.value = value


class FileTable:
    """The table in the directory *folder*; created if missing."""

    file_name = FILE_NAME

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()  # around every transaction, so that there are no conflicts
        self._db: DB | None = DB(folder / FILE_NAME, autopack=PACKING)
        self._is_parents = False
        try:
            if not self._run(_has_tree):
                self._run(_make_tree)
        except BaseException:
            self._db.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        return self._on_tree(lambda tree: _value_at(tree, key))

    def has(self, key: bytes) -> bool:
        return self._on_tree(lambda tree: key in tree)

    def put(self, row: Row) -> None:
        self._on_tree(lambda tree: _put(tree, row))

    def put_all(
        self, rows: Iterable[Row], *, clear: bool = False, new_only: bool = False
    ) -> bool:
        rows = list(rows)

        def put_all(tree: Any) -> bool:
            if new_only and any(row[0] in tree for row in rows):
                return False
            if clear:
                tree.clear()
            for row in rows:
                _put(tree, row)
            return True

        return self._on_tree(put_all)

    def swap(self, row: Row, expected: bytes | None) -> bool:
        def swap(tree: Any) -> bool:
            if _value_at(tree, row[0]) != expected:
                return False
            _put(tree, row)
            return True

        return self._on_tree(swap)

    def delete(self, key: bytes, expected: bytes | None = None) -> bool:
        def delete(tree: Any) -> bool:
            value = _value_at(tree, key)
            if value is None or (expected is not None and value != expected):
                return False
            del tree[key]
            return True

        return self._on_tree(delete)

    def rows(self, after: bytes, limit: int) -> list[Row]:
        def rows(tree: Any) -> list[Row]:
            items = islice(tree.iteritems(after, excludemin=True), limit)
            return [(key, entry.original, entry.value) for key, entry in items]

        return self._on_tree(rows)

    def count(self) -> int:
        return self._on_tree(len)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def before_fork(self) -> None:
        pass

    def after_fork(self, in_child: bool) -> None:
        if not in_child:
            return
        self._lock = Lock()
        if self._db is not None:
            abandon(self._db)
            self._db, self._is_parents = None, True

    def _on_tree(self, action: Callable[[Any], Result]) -> Result:
        return self._run(lambda root: action(root["safe"]))

    def _run(self, action: Callable[[Any], Result]) -> Result:
        with self._lock:
            if self._is_parents:
                raise StorageForkedError(
                    f"the safe {self._folder} is kept in a file that the parent process has open. "
                    "Use the backend berkeley or sqlite for several processes"
                )
            if self._db is None:
                raise StorageClosedError(f"the safe {self._folder} is closed. Open it again")
            with self._db.transaction() as connection:
                return action(connection.root())


def _has_tree(root: Any) -> bool:
    return "safe" in root


def _make_tree(root: Any) -> None:
    root["safe"] = OOBTree()


def _value_at(tree: Any, key: bytes) -> bytes | None:
    entry = tree.get(key)
    return None if entry is None else entry.value


def _put(tree: Any, row: Row) -> None:
    key, original, value = row
    entry = tree.get(key)
    if entry is None:
        tree[key] = Entry(original, value)
    else:
        entry.value = value
