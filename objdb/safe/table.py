"""What a safe is kept in: a table of bytes, whose every access is a durable transaction.

Each backend has one: `berkeley.py`, `sqlite.py`, `file.py`. A row is (key, original, value):
the bytes that find it, the pickle of the key where those do not tell it (else empty), and the
pickle of the value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

Row = tuple[bytes, bytes, bytes]


class Table(Protocol):
    """A table, open in this process. Any thread may call; a forked child may go on with it.

    `file_name`: the file in the directory of the safe that has the rows.
    """

    file_name: ClassVar[str]

    def get(self, key: bytes) -> Any:
        """Return the value at *key*, bytes or a view of some, or None."""

    def has(self, key: bytes) -> bool:
        """Whether there is a row at *key*."""

    def put(self, row: Row) -> None:
        """Write a row. One that is there keeps its original."""

    def put_all(
        self, rows: Iterable[Row], *, clear: bool = False, new_only: bool = False
    ) -> bool:
        """Write several rows, all or none; say whether. *clear* removes first what is there; with
        *new_only*, none is written if there is one at a key already."""

    def swap(self, row: Row, expected: bytes | None) -> bool:
        """Write a row if the value at its key is *expected*, None for none; say whether."""

    def delete(self, key: bytes, expected: bytes | None = None) -> bool:
        """Remove the row at *key*, if there is one and its value is *expected*, or that is None;
        say whether."""

    def rows(self, after: bytes, limit: int) -> list[Row]:
        """Return up to *limit* rows in the order of their keys, from the first one after *after*
        on. They are of one moment."""

    def count(self) -> int:
        """Return the number of rows. Takes time in proportion to it."""

    def close(self) -> None:
        """Let go of everything."""

    def before_fork(self) -> None:
        """Get ready for a fork of this process; `after_fork` follows in both."""

    def after_fork(self, in_child: bool) -> None:
        """Go on after a fork; the child forgets what is the parent's."""


def abandon(*handles: Any) -> None:
    """Keep objects of C libraries from ever being closed: to do so would write to files that are
    another process's now."""
    for handle in handles:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
