"""The log: transactions one after the other, read at positions, written at the end.

Writing and committing are separate steps:

    write(transaction, …)   the whole transaction, status `c`
    decide(position)         one byte, status space: now it is committed
    erase(position, end)     zeros over an aborted transaction

Space allocated ahead is written through a memory map: without a system call, so no other thread
runs in between, and committing threads do not queue for the interpreter lock. Reading never uses
the map: a failing read is an error, not a signal.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from objdb.errors import CorruptedDataError, StorageError
from objdb.ids import LAST_TID, Oid, Tid, format_oid
from objdb.storage.file.format import (
    COMMITTED,
    MAX_TEXT_BYTES,
    NUMBER,
    PACKED,
    RECORD,
    START,
    STATUS_AT,
    TRANSACTION,
    UNDONE,
    VERSION,
    VOTED,
    pack_extension,
    place_item,
)
from objdb.storage.file.lookup import IN_VERSION
from objdb.storage.files import File
from objdb.storage.rows import TransactionRow
from objdb.storage.staging import StagedRows

_CHUNK = 4 * 1024 * 1024
# Larger transactions are written with a system call: its cost is small then, and pages written
# through the map stay resident.
_MOST_MAPPED = 256 * 1024
# A read of this size gets a transaction's header, and its texts if they are short.
_GUESS_BYTES = 256
_CRC = struct.Struct(">I")
_RECORD_BYTES = RECORD.size
POSITION = (1 << 62) - 1  # the bits of an index entry's position without the flags


class Header(NamedTuple):
    """A transaction's header, at `position`; its records lie from `body` to `end` - 8."""

    position: int
    tid: Tid
    status: bytes
    user: bytes
    description: bytes
    extension: bytes
    body: int
    end: int
    has_checksum: bool = False  # a verified one


class Record(NamedTuple):
    """A data record, at `position`: its data (`size` bytes) or back pointer is at `data_at`.

    In a `version`, `outside` is the position of the record outside any version, and
    `previous_in_version` of the one written before in this version; 0 for none.
    """

    position: int
    oid: Oid
    tid: Tid
    previous: int
    transaction: int
    size: int
    data_at: int
    version: str = ""
    outside: int = 0
    previous_in_version: int = 0

    @property
    def place(self) -> int:
        """Its position, as in the index."""
        return self.position | IN_VERSION if self.version else self.position

    @property
    def end(self) -> int:
        """The position after the record."""
        return self.data_at + (self.size or NUMBER.size)


class Head(NamedTuple):
    """The beginning of a transaction, before its records: its position, its whole size, its
    bytes, and the place of the checksum in them; None if the extension is not a dict."""

    position: int
    size: int
    block: bytearray
    crc_at: int | None


class Written(NamedTuple):
    """A written, uncommitted transaction: the `positions` of its records by oid, as in the index,
    the number of new objects, and the `versions` of those that are, or were, in one ("": they left
    it)."""

    tid: Tid
    status: bytes
    position: int
    end: int
    positions: dict[Oid, int]
    new_objects: int
    versions: dict[Oid, str]


class Before(NamedTuple):
    """The records that those of a transaction point to: the `previous` record of each object that
    has one; the `data` of those with a back pointer; for those in a version, the record `outside`;
    and the `latest` record of each version."""

    previous: dict[Oid, int]
    data: dict[Oid, int]
    outside: dict[Oid, int]
    latest: dict[str, int]


class Log:
    """Reads and writes transactions in a file."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._map: Any = b""  # of the file, as far as space is allocated

    @property
    def allocated(self) -> int:
        """The position up to which space is allocated and mapped."""
        return len(self._map)

    def allocate(self, size: int) -> None:
        """Make the file *size* bytes long; OSError when the disk is full."""
        self.file.allocate(size)
        self._map = self.file.map(size)

    def truncate(self, size: int) -> None:
        """Make the file *size* bytes long, with nothing allocated ahead."""
        self._map = b""
        self.file.truncate(size)

    def write_at(self, data: Any, position: int) -> None:
        """Write bytes at a position."""
        end = position + len(data)
        if end <= len(self._map) and len(data) <= _MOST_MAPPED:
            self._map[position:end] = data
        else:
            self.file.write_at(data, position)

    # -- reading

    def damaged(self, position: int, what: str, oid: Oid | None = None) -> CorruptedDataError:
        """Return the error for damage found at *position*."""
        return CorruptedDataError(
            f"{self.file.path} is damaged at position {position}: {what}. Restore the file from "
            "a backup, or copy the readable transactions to a new file",
            path=self.file.path, position=position, oid=oid, what=what,
        )

    def header(self, position: int, limit: int) -> Header:
        """Return the header of the transaction at *position*, in a file that ends at *limit*.

        Raises `CorruptedDataError` unless it is complete and its two lengths agree.
        """
        block = self.file.read_at(_GUESS_BYTES, position)
        if len(block) < TRANSACTION.size:
            raise self.damaged(position, "the file ends inside a transaction header")
        tid, length, status, user, description, extension = TRANSACTION.unpack_from(block)
        if status not in (COMMITTED, VOTED, PACKED, UNDONE):
            raise self.damaged(position, f"{status!r} is not a transaction status")
        if tid > LAST_TID:
            raise self.damaged(position, f"{tid.hex()} is beyond the range of tids")
        texts_size = user + description + extension
        end = position + length + NUMBER.size
        if length < TRANSACTION.size + texts_size or end > limit:
            raise self.damaged(position, f"a transaction cannot be {length + 8} bytes long here")
        if self.file.read_at(NUMBER.size, end - NUMBER.size) != block[8:16]:
            raise self.damaged(position, "the length at the transaction's end differs")
        body = position + TRANSACTION.size + texts_size
        texts = block[TRANSACTION.size : TRANSACTION.size + texts_size]
        if len(texts) < texts_size:
            texts = self.file.read_at(texts_size, position + TRANSACTION.size)
        return Header(
            position, tid, status, texts[:user], texts[user : user + description],
            texts[user + description :], body, end,
        )

    def header_before(self, position: int) -> Header:
        """Return the header of the transaction that ends at *position*."""
        length = NUMBER.unpack(self._exactly(NUMBER.size, position - NUMBER.size))[0]
        start = position - NUMBER.size - length
        if start < START:
            raise self.damaged(position, "the length at the transaction's end is wrong")
        return self.header(start, position)

    def record(self, place: int) -> Record:
        """Return the data record at a position, as in the index, without its data."""
        position = place - IN_VERSION if place >= IN_VERSION else place
        if position > POSITION:
            raise self.damaged(position, "the position is beyond the maximum file size")
        return self._parse_record(self.file.read_at(RECORD.size, position), position)

    def _parse_record(self, block: bytes, position: int) -> Record:
        if len(block) < RECORD.size:
            raise self.damaged(position, "the file ends inside a data record")
        oid, tid, previous, transaction, version_size, size = RECORD.unpack(block)
        data_at = position + RECORD.size
        if not version_size:
            return Record(position, oid, tid, previous, transaction, size, data_at)
        block = self._exactly(VERSION.size + version_size, data_at)
        outside, previous_in_version = VERSION.unpack_from(block)
        try:
            version = block[VERSION.size :].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(position, "its version name is not UTF-8", oid) from None
        if max(outside, previous_in_version) >= position:
            raise self.damaged(position, "a record in a version points forward", oid)
        data_at += len(block)
        return Record(
            position, oid, tid, previous, transaction, size, data_at, version, outside,
            previous_in_version,
        )

    def data(self, record: Record) -> bytes | None:
        """Return a record's data, following back pointers; None for a tombstone."""
        while not record.size:
            target = self.target(record)
            if target is None:
                return None
            record = target
        return self._exactly(record.size, record.data_at)

    def target(self, record: Record) -> Record | None:
        """Return the record that a back pointer refers to, None for a tombstone."""
        pointer: int = NUMBER.unpack(self._exactly(NUMBER.size, record.data_at))[0]
        if not pointer:
            return None
        if pointer >= record.position:
            raise self.damaged(record.position, "a back pointer points forward", record.oid)
        target = self.record(pointer)
        if target.oid != record.oid:
            raise self.damaged(
                record.position, f"a back pointer refers to object {format_oid(target.oid)}",
                record.oid,
            )
        return target

    def outside_of(self, oid: Oid, position: int) -> int:
        """Return the position of the record outside any version, of an object in a version whose
        current record is at *position*: the next record in that version needs only this."""
        block = self._exactly(RECORD.size + VERSION.size, position)
        if block[:8] != oid:
            raise self.damaged(position, "there is the record of another object", oid)
        outside: int = VERSION.unpack_from(block, RECORD.size)[0]
        return outside

    def outside(self, record: Record) -> Record | None:
        """Return the record outside any version of an object in a version; None if the object
        does not exist there."""
        if not record.outside:
            return None
        outside = self.record(record.outside)
        if outside.oid != record.oid or outside.version:
            raise self.damaged(
                record.position, "the record outside its version is not valid",
                record.oid,
            )
        return outside

    def _exactly(self, size: int, position: int) -> bytes:
        if size > _CHUNK and position + size > self.file.size():
            raise self.damaged(position, f"the file ends inside {size} bytes of data")
        data = self.file.read_at(size, position)
        while len(data) < size:  # one read gives at most 2 GiB
            more = self.file.read_at(size - len(data), position + len(data))
            if not more:
                raise self.damaged(position, f"the file ends inside {size} bytes of data")
            data += more
        return data

    def record_of(self, header: Header, position: int) -> Record:
        """Return the record at *position* in a transaction, checking that it belongs to it."""
        block = self.file.read_at(min(RECORD.size, header.end - NUMBER.size - position), position)
        return self._require_in(header, self._parse_record(block, position))

    def _require_in(self, header: Header, record: Record) -> Record:
        position = record.position
        if record.transaction != header.position or record.tid != header.tid:
            raise self.damaged(position, "a data record belongs to another transaction")
        if record.end > header.end - NUMBER.size:
            raise self.damaged(position, "a data record is longer than its transaction")
        if record.previous >= header.position:
            raise self.damaged(position, "the previous position points forward", record.oid)
        return record

    def records(self, header: Header) -> Iterator[Record]:
        """Yield the records of a transaction, checking that they fill it and belong to it."""
        position, stop = header.body, header.end - NUMBER.size
        window, start = b"", position
        while position < stop:
            at = position - start
            if at + RECORD.size > len(window):
                window = self.file.read_at(min(_CHUNK, stop - position), position)
                start, at = position, 0
            record = self._parse_record(window[at : at + RECORD.size], position)
            yield self._require_in(header, record)
            position = record.end

    def is_zero_from(self, position: int, limit: int) -> bool:
        """Whether all bytes from *position* to *limit* are zeros."""
        while position < limit:
            chunk = self.file.read_at(min(_CHUNK, limit - position), position)
            if chunk.count(0) != len(chunk):
                return False
            if not chunk:
                return True
            position += len(chunk)
        return True

    # -- writing

    def head(self, transaction: TransactionRow, rows: StagedRows, position: int) -> Head:
        """Return the beginning of a transaction to be written at *position*, checking the length
        of its texts."""
        extension, places = pack_extension(transaction.extension_bytes)
        user, description = transaction.user, transaction.description
        longest = max(len(user), len(description), len(extension))
        if longest > MAX_TEXT_BYTES:
            raise self._too_long(user, description, extension)
        before = TRANSACTION.size + len(user) + len(description)
        size = before + len(extension) + len(transaction.oids) * RECORD.size
        size += transaction.size + NUMBER.size
        if rows.versions:
            names = rows.versions.values()
            size += sum(VERSION.size + len(name.encode()) for name in names)
        block = bytearray(
            TRANSACTION.pack(
                transaction.tid, size - NUMBER.size, COMMITTED, len(user), len(description),
                len(extension),
            )
        )
        block += user + description + extension
        if places is None:
            return Head(position, size, block, None)
        at = before + places[0]
        block[at : at + 8] = place_item(position, size, transaction.status.encode())
        return Head(position, size, block, before + places[1])

    def _too_long(self, *texts: bytes) -> StorageError:
        name, text = next(
            (name, text)
            for name, text in zip(("user", "description", "extension"), texts, strict=True)
            if len(text) > MAX_TEXT_BYTES
        )
        return StorageError(
            f"{self.file.path}: the transaction's {name} is {len(text)} bytes long; the maximum "
            f"is {MAX_TEXT_BYTES}. Make it shorter"
        )

    def write(
        self, transaction: TransactionRow, rows: StagedRows, head: Head, before: Before
    ) -> Written:
        """Write the transaction, uncommitted."""
        position, _, block, _ = head
        parts: list[bytes | bytearray] = [block]
        add, pack, get, tid = parts.append, RECORD.pack, before.previous.get, transaction.tid
        pointers, versions, pack_number = before.data, rows.versions, NUMBER.pack
        positions: dict[Oid, int] = {}
        at, flushed, crc = position + len(block), position, 0
        for oid, record in rows.records():
            positions[oid] = at
            if record is None:
                data, size = pack_number(pointers.get(oid, 0)), 0
            else:
                data, size = record, len(record)
            if oid in versions:
                in_version = _version_head(oid, at, versions[oid], before)
                positions[oid], name_size = at | IN_VERSION, len(in_version) - VERSION.size
                add(pack(oid, tid, get(oid, 0), position, name_size, size))
                add(in_version)
                at += len(in_version)
            else:
                add(pack(oid, tid, get(oid, 0), position, 0, size))
            add(data)
            at += _RECORD_BYTES + len(data)
            if at - flushed > _CHUNK:
                flushed, crc = self._write_piece(head, parts, flushed, crc, is_last=False)
        add(pack_number(head.size - NUMBER.size))
        flushed, _ = self._write_piece(head, parts, flushed, crc, is_last=True)
        assert flushed == position + head.size == at + NUMBER.size
        changed = versions
        if rows.locked:
            changed = {**dict.fromkeys(rows.locked, ""), **versions}
        new_objects = len(positions) - len(before.previous)
        status = transaction.status.encode()
        return Written(tid, status, position, flushed, positions, new_objects, changed)

    def _write_piece(
        self, head: Head, parts: list[bytes | bytearray], at: int, crc: int, *, is_last: bool
    ) -> tuple[int, int]:
        """Write a large part of a transaction at *at*; return the position after it, and the
        checksum so far.

        The checksum is near the beginning. A transaction of one piece gets it before it is
        written; a longer one afterwards, while it is uncommitted.
        """
        piece = bytearray().join(parts)
        del parts[:]
        crc = zlib.crc32(piece, crc)
        is_first = at == head.position
        if is_first:
            piece[STATUS_AT : STATUS_AT + 1] = VOTED
        if head.crc_at is None:
            pass
        elif is_first and is_last:
            _CRC.pack_into(piece, head.crc_at, crc)
        self.write_at(piece, at)
        if is_last and not is_first and head.crc_at is not None:
            self.write_at(_CRC.pack(crc), head.position + head.crc_at)
        return at + len(piece), crc

    def decide(self, position: int, status: bytes = COMMITTED) -> None:
        """Commit the transaction at *position* (or set the status of a copied, packed one)."""
        self.write_at(status, position + STATUS_AT)

    def erase(self, position: int, end: int) -> None:
        """Write zeros over an aborted transaction."""
        while position < end:
            size = min(_CHUNK, end - position)
            self.write_at(bytes(size), position)
            position += size


def _version_head(oid: Oid, position: int, version: str, before: Before) -> bytes:
    """Return the additional head of a record at *position* that is in a version."""
    name = version.encode()
    pointers = VERSION.pack(before.outside.get(oid, 0), before.latest.get(version, 0))
    before.latest[version] = position
    return pointers + name
