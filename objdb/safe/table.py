"""The contract of a safe's backend: a table of bytes; each access is a durable transaction.

Each backend has one: `berkeley.py`, `sqlite.py`, `file.py`. A row is (key, original, value):
the bytes to look it up, the pickle of the key if those do not determine it (else empty), and the
pickle of the value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

Row = tuple[bytes, bytes, bytes]


class Table(Protocol):
    """A table, open in this process. Any thread may call it; a forked child may go on using it.

    `file_name`: the file with the rows, in the directory of the safe.
    """

    file_name: ClassVar[str]

    def get(self, key: bytes) -> Any:
        """Return the value at *key*, bytes or a memoryview, or None."""

    def has(self, key: bytes) -> bool:
        """Whether there is a row at *key*."""

    def put(self, row: Row) -> None:
        """Write a row. An existing row keeps its original."""

    def put_all(
        self, rows: Iterable[Row], *, clear: bool = False, new_only: bool = False
    ) -> bool:
        """Write several rows, all or none; return whether they were written. *clear* first
        removes all rows; with *new_only*, none is written if one of the keys exists."""

    def swap(self, row: Row, expected: bytes | None) -> bool:
        """Write a row if the value at its key is *expected* (None: no row); return whether it was
        written."""

    def delete(self, key: bytes, expected: bytes | None = None) -> bool:
        """Remove the row at *key*, if it exists and its value is *expected*, or *expected* is
        None; return whether it was removed."""

    def rows(self, after: bytes, limit: int) -> list[Row]:
        """Return up to *limit* rows in the order of their keys, from the first one after *after*
        on, from one snapshot."""

    def count(self) -> int:
        """Return the number of rows. The time is proportional to it."""

    def close(self) -> None:
        """Close the table."""

    def before_fork(self) -> None:
        """Prepare for a fork of this process; `after_fork` follows in parent and child."""

    def after_fork(self, in_child: bool) -> None:
        """Go on after a fork; the child abandons the parent's handles."""


def abandon(*handles: Any) -> None:
    """Keep objects of C libraries from ever being closed: closing them would write to files that
    belong to another process now."""
    for handle in handles:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
