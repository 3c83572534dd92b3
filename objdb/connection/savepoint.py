"""States that left memory before the transaction ends, and the way back to an earlier point.

A savepoint writes all changed objects to a temporary file, so that they can become ghosts, and
notes where it was. Rolling back takes the journal back to there:

    entries   oid → (position in the file, size, tid the change was made from)
    journal   (oid, entry before), one for every write
    mark      (length of the journal, length of the file, number of created objects)
"""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

from objdb.ids import Oid, Tid

_BUFFER_BYTES = 256 * 1024


class Mark(NamedTuple):
    """A point to go back to."""

    journal: int
    size: int
    created: int


class SavepointStore:
    """The records a transaction has written to its temporary file. Small ones never reach the
    disk: the operating system's file cache holds them.

    `size` is that of the file, in bytes, with what waits in `_buffer` to be written together.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile(prefix="objdb-savepoint-", buffering=0)
        self.size = 0
        self._written = 0
        self._buffer: list[bytes] = []
        self._entries: dict[Oid, tuple[int, int, Tid]] = {}
        self._journal: list[tuple[Oid, tuple[int, int, Tid] | None]] = []

    def __contains__(self, oid: Oid) -> bool:
        return oid in self._entries

    def store(
        self, oid: Oid, base_tid: Tid, record: bytes, version: str = "", transaction: Any = None
    ) -> None:
        """Keep *record*, made from the revision *base_tid*; takes what a storage's store does."""
        self._buffer.append(record)
        self._journal.append((oid, self._entries.get(oid)))
        self._entries[oid] = self.size, len(record), base_tid
        self.size += len(record)
        if self.size - self._written > _BUFFER_BYTES:
            self._write()

    def _write(self) -> None:
        """Write what is buffered."""
        data = memoryview(b"".join(self._buffer))
        self._file.seek(self._written)
        while data:
            data = data[self._file.write(data) :]
        self._buffer.clear()
        self._written = self.size

    def load(self, oid: Oid) -> tuple[bytes, Tid]:
        """Return (record, the tid it was made from) of what was last stored for *oid*."""
        position, size, base_tid = self._entries[oid]
        if position + size > self._written:
            self._write()
        self._file.seek(position)
        record = self._file.read(size)
        while len(record) < size:  # it is over 2 GiB long
            record += self._file.read(size - len(record))
        return record, base_tid

    def oids(self) -> list[Oid]:
        """Return the oids that have a record here."""
        return list(self._entries)

    def mark(self, created: int) -> Mark:
        """Return where we are, with *created* objects created."""
        self._write()
        return Mark(len(self._journal), self.size, created)

    def roll_back(self, mark: Mark) -> set[Oid]:
        """Forget what was stored after *mark*; return the oids that had changed since."""
        changed = set()
        while len(self._journal) > mark.journal:
            oid, entry = self._journal.pop()
            changed.add(oid)
            if entry is None:
                del self._entries[oid]
            else:
                self._entries[oid] = entry
        self._buffer.clear()
        self._written = self.size = mark.size
        return changed

    def close(self) -> None:
        """Drop everything."""
        self._file.close()
