"""Writing the packed file: the second half of a pack.

    up to T   of each transaction, the records that stay; no previous records, back pointers
              replaced by the data; status `p`. The last transaction stays even if it is empty
    then      everything unchanged, with positions in the new file

A back pointer of a later transaction refers to the same revision in the new file, if that has it;
otherwise the data replace it. Checksums of copied transactions are verified first, and computed
again for the new file.
"""

from __future__ import annotations

import logging
import zlib

from objdb.ids import NO_TID, Oid, Tid, format_tid
from objdb.storage.file.format import (
    COMMITTED,
    INTEGRITY_BYTES,
    MAGIC,
    MAX_TEXT_BYTES,
    NUMBER,
    PACKED,
    RECORD,
    START,
    STATUS_AT,
    TRANSACTION,
    VERSION,
    pack_extension,
    place_item,
    visible_extension,
)
from objdb.storage.file.generation import Generation
from objdb.storage.file.log import POSITION, Header, Log, Record
from objdb.storage.file.lookup import IN_VERSION
from objdb.storage.file.mark import PositionSet
from objdb.storage.packing import Pacer

logger = logging.getLogger("objdb.storage.file")

_FLUSH_BYTES = 256 * 1024
_SYNC_BYTES = 8 * 1024 * 1024
_BLOCK_BYTES = 256 * 1024
_MOST_ENTRIES = 128
_BETWEEN_PAUSES = 8  # records


class _Block:
    """Reads the records of one transaction, in large pieces."""

    def __init__(self, log: Log, header: Header) -> None:
        self._log = log
        self._header = header
        self._block = b""
        self._block_at = header.position

    def record(self, position: int) -> tuple[Oid, Tid, bytes] | None:
        """Return (oid, tid, data) of the record at *position*; None if it is in a version, or
        has a back pointer."""
        at = position - self._block_at
        if at + RECORD.size > len(self._block):
            at = self._read(position, RECORD.size)
        oid, tid, _, transaction, version_size, size = RECORD.unpack_from(self._block, at)
        header = self._header
        if tid != header.tid or transaction != header.position:
            raise self._log.damaged(position, "a data record belongs to another transaction", oid)
        if version_size or not size:
            return None
        if at + RECORD.size + size > len(self._block):
            at = self._read(position, RECORD.size + size)
        begin = at + RECORD.size
        return oid, tid, self._block[begin : begin + size]

    def _read(self, position: int, size: int) -> int:
        rest = self._header.end - position
        self._block = self._log.file.read_at(min(max(size, _BLOCK_BYTES), rest), position)
        self._block_at = position
        if len(self._block) < size:
            raise self._log.damaged(position, "the file ends inside a data record")
        return 0


class Rewriting:
    """Copies from the log of *source* to that of *target*, which is new.

    `copied` is the position in the source up to which everything is copied, `tid` the last
    transaction before it.
    """

    def __init__(self, source: Generation, target: Generation, pacer: Pacer) -> None:
        self._source = source
        self.target = target
        self._pacer = pacer
        self._buffer = bytearray(MAGIC)  # bytes not written yet
        self._flushed = 0  # their position in the target
        self._unsynced = 0
        self._entries: dict[Oid, int] = {}  # entries of this transaction, not in the index yet
        self._latest: dict[str, int] = {}  # the last record in each version
        self._orphans: dict[tuple[Oid, Tid], int] = {}
        self._end_tid = NO_TID  # of the last transaction that is in the target
        # Of the transaction being written: the places of its extension, and of the items in it.
        self._extension_at = START
        self._places: tuple[int, int] | None = None
        self.objects = 0
        self.max_oid = 0
        self.copied = START
        self.tid = NO_TID

    # -- up to the pack time

    def copy_what_stays(
        self, stays: PositionSet, orphans: set[int], begin: int, tid: Tid
    ) -> None:
        """Copy the records at the positions *stays*, before *begin*; *tid* is the last
        transaction there. Only pointers of later records refer to *orphans*."""
        source, header, start = None, None, 0
        for done, position in enumerate(stays, 1):
            if header is None or source is None or position >= header.end:
                if header is not None:
                    self._end_transaction(header, PACKED, start)
                header = self._header_of(position, begin)
                source = _Block(self._source.log, header)
                start = self._begin_transaction(header)
            if position in orphans:
                self._copy_orphan(position, start)
            else:
                self._copy_alone(position, source, start)
            if done % _BETWEEN_PAUSES == 0:
                self._pacer.pace()
                self._pacer.report("copy", done, stays.count)
        if header is not None:
            self._end_transaction(header, PACKED, start)
        if header is None or header.end != begin:
            self._copy_empty(begin)
        self._pacer.report("copy", stays.count, stays.count)
        self.copied, self.tid = begin, tid

    def _copy_empty(self, end: int) -> None:
        """Copy the transaction that ends at *end*, without its records: without it, the last tid
        of the file would be smaller than before."""
        header = self._source.log.header_before(end)
        self._end_transaction(header, PACKED, self._begin_transaction(header))

    def _copy_orphan(self, position: int, start: int) -> None:
        log = self._source.log
        record = log.record(position)
        self._orphans[record.oid, record.tid] = self._end
        self._add(record, 0, log.data(record), start)
        del self._entries[record.oid]

    def _header_of(self, position: int, limit: int) -> Header:
        """Return the header of the transaction of the record at *position*; marking has verified
        it."""
        log = self._source.log
        header = log.header(log.record(position).transaction, limit)
        if not header.body <= position < header.end:
            raise log.damaged(position, "a data record belongs to another transaction")
        return header

    def _copy_alone(self, position: int, source: _Block, start: int) -> None:
        """Copy the record at *position*, with its data, without a previous record."""
        plain = source.record(position)
        if plain is None:
            log = self._source.log
            record = log.record(position)
            # The record outside may be the one before; else those in between are gone.
            has_before = record.version and record.previous == record.outside
            previous = self._previous(record.oid, start) if has_before else 0
            self._add(record, previous, log.data(record), start)
            return
        oid, tid, data = plain
        if len(self._buffer) > _FLUSH_BYTES:
            self._flush()
        self._entries[oid] = self._flushed + len(self._buffer)
        self._buffer += RECORD.pack(oid, tid, 0, start, 0, len(data))
        self._buffer += data
        if len(self._entries) >= _MOST_ENTRIES:
            self._set_entries()

    # -- after it

    def copy_later(self, end: int) -> None:
        """Copy the transactions from `copied` to *end*, which marking has verified."""
        log = self._source.log
        while self.copied < end:
            header = log.header(self.copied, end)
            start = self._begin_transaction(header)
            for record in log.records(header):
                self._copy_as_it_is(record, start)
                self._pacer.pace()
            self._end_transaction(header, header.status, start)
            self.copied, self.tid = header.end, header.tid

    def _copy_as_it_is(self, record: Record, start: int) -> None:
        log, before = self._source.log, self._previous(record.oid, start)
        previous = before if record.previous else 0
        if before and not previous:  # an earlier pack made a gap
            self._note_orphans(before)
        target = None if record.size else log.target(record)
        if not record.size and target is None:
            self._add(record, previous, None, start)
            return
        data = log.data(record)
        assert data is not None
        pointer = 0 if target is None else self._find(target, before, data)
        self._add(record, previous, None if pointer else data, start, pointer)

    def _note_orphans(self, position: int) -> None:
        """Remember the positions of the record at *position* in the target, and of those before
        it, since no chain will reach them."""
        if position + RECORD.size > self._flushed:
            self._flush()
        while position:
            record = self.target.log.record(position)
            self._orphans[record.oid, record.tid] = position
            position = record.previous

    def _previous(self, oid: Oid, start: int) -> int:
        """Return the position in the target of the object's last record before the transaction at
        *start*."""
        if oid in self._entries:  # ZODB may write an object twice
            self._set_entries()
        entry = self.target.index.get(oid)
        if entry is None:
            return 0
        position = entry[0] & POSITION
        if position < start:
            return position
        self._flush()
        return self.target.log.record(position).previous

    def _find(self, revision: Record, position: int, data: bytes | None = None) -> int:
        """Return the position in the target of a revision of the source, 0 if the target does not
        have it, or not with this *data*. The object's last record there is at *position*."""
        if position + RECORD.size > self._flushed:
            self._flush()
        log = self.target.log
        orphan = self._orphans.get((revision.oid, revision.tid), 0)
        if orphan:
            if orphan + RECORD.size > self._flushed:
                self._flush()
            return orphan if data is None or log.data(log.record(orphan)) == data else 0
        while position:
            record = log.record(position)
            outside = log.outside(record) if record.version else None
            for found in (record, outside):
                if found is not None and found.tid == revision.tid:
                    is_it = data is None or log.data(found) == data
                    return found.position if is_it else 0
            if record.tid < revision.tid:
                return 0
            position = record.previous
        return 0

    def _version_part(self, record: Record, start: int) -> bytes:
        """Return the part after the head, of the record of an object in a version."""
        outside = self._source.log.outside(record)
        place = 0 if outside is None else self._find(outside, self._previous(record.oid, start))
        latest = self._latest.get(record.version, 0)
        previous_in_version = latest if record.previous_in_version else 0
        self._latest[record.version] = self._end
        return VERSION.pack(place, previous_in_version) + record.version.encode()

    # -- writing

    @property
    def _end(self) -> int:
        return self._flushed + len(self._buffer)

    def _begin_transaction(self, header: Header) -> int:
        """Write the head of a transaction, to be completed; return its position."""
        start = self._end
        extension, self._places = pack_extension(visible_extension(header.extension))
        if len(extension) > MAX_TEXT_BYTES:
            extension, self._places = visible_extension(header.extension), None
        if self._places is None:
            logger.warning(
                "%s: transaction %s gets no checksum: its extension is %s", self._source.file.path,
                format_tid(header.tid), "not a pickled dict" if len(extension) < MAX_TEXT_BYTES
                - INTEGRITY_BYTES else "too long for it",
            )
        self._buffer += TRANSACTION.pack(
            header.tid, 0, COMMITTED, len(header.user), len(header.description), len(extension)
        )
        self._buffer += header.user + header.description
        self._extension_at = self._end
        self._buffer += extension
        self._end_tid = header.tid
        return start

    def _add(
        self, record: Record, previous: int, data: bytes | None, start: int, pointer: int = 0
    ) -> None:
        """Write a record: *data*, or a back pointer."""
        if len(self._buffer) > _FLUSH_BYTES:
            self._flush()
        part = self._version_part(record, start) if record.version else b""
        name_size = len(part) - VERSION.size if part else 0
        self._entries[record.oid] = self._end | IN_VERSION if part else self._end
        size = 0 if data is None else len(data)
        self._buffer += RECORD.pack(record.oid, record.tid, previous, start, name_size, size)
        self._buffer += part
        self._buffer += NUMBER.pack(pointer) if data is None else data
        if len(self._entries) >= _MOST_ENTRIES:
            self._set_entries()

    def _end_transaction(self, header: Header, status: bytes, start: int) -> None:
        """Complete the transaction that begins at *start*: length, status, checksum."""
        size = self._end - start
        self._buffer += NUMBER.pack(size)
        length = NUMBER.pack(size)
        size += NUMBER.size
        if start < self._flushed:
            self._flush()
        self._patch(start + 8, length)
        places, extension = self._places, self._extension_at
        if places is not None:
            self._patch(extension + places[0], place_item(start, size, status))
            self._patch(extension + places[1], bytes(4))
            crc = self._checksum(start, size)
            self._patch(extension + places[1], crc.to_bytes(4, "big"))
        self._patch(start + STATUS_AT, status)
        self._set_entries()
        if len(self._buffer) > _FLUSH_BYTES:
            self._flush()

    def _patch(self, position: int, data: bytes) -> None:
        at = position - self._flushed
        if at >= 0:
            self._buffer[at : at + len(data)] = data
        else:
            self.target.file.write_at(data, position)

    def _checksum(self, start: int, size: int) -> int:
        """Return the checksum of a transaction whose status is still a space."""
        at = start - self._flushed
        if at >= 0:
            with memoryview(self._buffer) as view:
                return zlib.crc32(view[at : at + size])
        crc, position = 0, start
        while position < start + size:
            wanted = min(_FLUSH_BYTES, start + size - position)
            crc = zlib.crc32(self.target.file.read_at(wanted, position), crc)
            position += wanted
            self._pacer.pace()
        return crc

    def _set_entries(self) -> None:
        entries, index = self._entries, self.target.index
        self.objects += sum(index.get(oid) is None for oid in entries)
        if entries:
            self.max_oid = max(self.max_oid, int.from_bytes(max(entries), "big"))
        index.reserve(entries)
        index.set_many(entries, self._end_tid)
        self._entries = {}

    def _flush(self) -> None:
        if self._buffer:
            self.target.file.write_at(self._buffer, self._flushed)
            self._flushed += len(self._buffer)
            self._unsynced += len(self._buffer)
            self._buffer = bytearray()
        if self._unsynced >= _SYNC_BYTES:  # a large sync would delay those of commits
            self.target.file.sync()
            self._unsynced = 0

    def finish(self) -> int:
        """Make everything durable; return the end of the target's log."""
        self._flush()
        self.target.file.sync()
        self._unsynced = 0
        return self._flushed

