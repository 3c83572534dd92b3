"""A generation: an open log with its index, and the visible part of them.

    engine.generation ────────────► Generation: log, index, reader, published      the file
                 ╲
                  ╰── after pack ─► Generation: log, index, reader, published      the packed one

A pack replaces the generation, in one assignment. A reader takes the generation once and uses it
to the end, so a read that began before finishes in the old file. A position is valid in its own
generation only.

The old file is not closed explicitly: it closes when its last reader releases it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from objdb.errors import CorruptedDataError, POSKeyError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.file.find_tid import position_behind, position_by_scanning
from objdb.storage.file.format import PACKED, START
from objdb.storage.file.index import Index
from objdb.storage.file.log import Header, Log, Record
from objdb.storage.file.lookup import IN_VERSION, RecordReader
from objdb.storage.file.versions import FileVersions
from objdb.storage.files import File

_MOST_MET = 1 << 15  # some 400 bytes each


class Published(NamedTuple):
    """The visible part: the log up to `end`, its last `tid`, and the facts there."""

    end: int
    tid: Tid
    max_oid: int
    objects: int


class Generation:
    """One log with its index.

    `end` is the position of the next transaction (under the commit slot); `published` is replaced,
    never changed, so that it is read atomically. *is_shared*: another process writes it.
    """

    __slots__ = (
        "end", "file", "index", "is_shared", "log", "met", "published", "reader", "versions",
    )

    def __init__(self, file: File, log: Log, index: Index, *, is_shared: bool) -> None:
        self.file = file
        self.log = log
        self.index = index
        self.is_shared = is_shared
        self.reader = RecordReader(index.get, file.read_at)
        self.versions = FileVersions(log, index)
        self.end = START
        self.published = Published(START, NO_TID, 0, 0)
        # Old records that others refer to, by (oid, tid): an undo, or the end of a version, asks
        # for them several times, and a chain is long. Emptied with each write.
        self.met: dict[tuple[Oid, Tid], Record] = {}

    def publish(self, published: Published) -> None:
        """Replace the visible part."""
        self.published = published
        self.reader.end = published.end

    def settle(self) -> None:
        """Cut off what is allocated ahead, and put log and index on the medium."""
        self.log.truncate(self.end)
        self.file.sync()
        self.index.write_checkpoint(*self.published)

    def close(self) -> None:
        """Close the files; running reads raise `StorageClosedError`."""
        self.index.close()
        self.file.close()
        self.reader.read_at = self.file.read_at

    # -- an object's records

    def chain(self, oid: Oid, position: int, tid: Tid) -> Iterator[Record]:
        """Return the object's records, newest first; by the index the first, of the revision *tid*,
        is at *position*."""
        if position >= IN_VERSION:
            position -= IN_VERSION
        return self.chain_from(self.current_record(oid, position, tid))

    def chain_of(self, oid: Oid, name: str) -> Iterator[Record]:
        """Return the records of *oid*, newest first. Raises `POSKeyError` naming the file *name*
        if there is no such object."""
        entry = self.index.settled(oid)
        if entry is None:
            raise POSKeyError(oid, database=name)
        return self.chain(oid, *entry)

    def chain_from(self, record: Record) -> Iterator[Record]:
        """Yield a record and those of the same object before it, newest first."""
        yield record
        while record.previous:
            older = self.log.record(record.previous)
            if older.oid != record.oid or older.tid >= record.tid:
                raise self.log.damaged(
                    record.position, "the previous position is wrong", record.oid
                )
            yield older
            record = older

    def current_record(self, oid: Oid, position: int, tid: Tid) -> Record:
        """Return the record that the index names; `CorruptedDataError` if it is not there."""
        # If another process writes, the index may refer to records that this one has not read yet.
        if position < self.reader.end or self.is_shared:
            record = self.log.record(position)
            if record.oid == oid and record.tid == tid:
                return record
        raise self.log.damaged(
            position, "the record here is not the one in the index. If the file itself is "
            "undamaged, remove the index beside it (.oidx); it is then rebuilt", oid,
        )

    def meet(self, record: Record | None) -> Record | None:
        """Keep a record that another one refers to, for `met`; return it."""
        if record is not None and record.position < self.published.end and not self.is_shared:
            if len(self.met) >= _MOST_MET:
                self.met.clear()
            self.met[record.oid, record.tid] = record
        return record

    # -- transactions

    def position_behind(self, tid: Tid) -> int:
        """Return the end position of the last transaction with a tid not greater than *tid*,
        `START` if there is none; data that look like transactions do not mislead it."""
        end, last = self.published[:2]
        position = position_behind(self.log, end, last, tid)
        is_genuine = position == end or self.is_genuine(position)
        return position if is_genuine else position_by_scanning(self.log, end, tid)

    def last_packed(self) -> Tid:
        """Return the tid of the last packed transaction, zeros if none is packed; the packed ones
        are the first ones."""
        end, last = self.published[:2]
        if end == START or self.log.header(START, end).status != PACKED:
            return NO_TID
        found, low, high = NO_TID, 1, int.from_bytes(last, "big")
        while low <= high:
            middle = (low + high) // 2
            position = self.position_behind(middle.to_bytes(8, "big"))
            header = None if position == START else self.log.header_before(position)
            if header is None:
                low = middle + 1
            elif header.status == PACKED:
                found, low = header.tid, middle + 1
            else:
                high = int.from_bytes(header.tid, "big") - 1
        return found

    def last_records(self, header: Header) -> dict[Oid, Record]:
        """Return a transaction's records. ZODB writes an object once for each transaction that is
        undone: the last one counts."""
        return {record.oid: record for record in self.log.records(header)}

    def is_genuine(self, position: int) -> bool:
        """Whether a real transaction ends at *position*, not data that look like one: then it, or
        the last one before it with records, is in the chain of an object."""
        try:
            while position > START:
                header = self.log.header_before(position)
                records = self.last_records(header)
                if records:
                    # The object with the fewest changes since has the shortest chain to it.
                    oid = min(records, key=lambda oid: (self.index.get(oid) or (0, NO_TID))[1])
                    return self._is_in_chain(records[oid])
                position = header.position
        except CorruptedDataError:
            return False
        return True

    def _is_in_chain(self, record: Record) -> bool:
        entry = self.index.get(record.oid)
        if entry is not None:
            for own in self.chain(record.oid, *entry):
                if own.tid <= record.tid:
                    return own.position == record.position
        return False
