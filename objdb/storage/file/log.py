"""The log: transactions one after the other, read at positions, written at the end.

Writing takes the bytes apart from the decision:

    write(staged, tid, position)   the whole transaction, status `c`
    decide(position)               one byte, status space: now it is committed
    erase(position, end)           zeros over one that was given up
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from objdb.errors import CorruptedDataError, StorageError, Unsupported
from objdb.ids import Oid, Tid, format_oid
from objdb.storage.commit import Staged, TransactionMetaData
from objdb.storage.file.format import (
    COMMITTED,
    MAX_TEXT_BYTES,
    NUMBER,
    PACKED,
    RECORD,
    STATUS_AT,
    TRANSACTION,
    UNDONE,
    VOTED,
    find_crc,
    pack_extension,
)
from objdb.storage.files import File

_CHUNK = 4 * 1024 * 1024


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


class Record(NamedTuple):
    """A data record, at `position`: its data (`size` bytes) or back pointer is at `data_at`."""

    position: int
    oid: Oid
    tid: Tid
    previous: int
    transaction: int
    size: int
    data_at: int

    @property
    def end(self) -> int:
        """The position after the record."""
        return self.data_at + (self.size or NUMBER.size)


class Written(NamedTuple):
    """A transaction on the medium, undecided: `positions` of its records by oid, and how many
    of those objects are new."""

    position: int
    end: int
    positions: dict[Oid, int]
    new_objects: int


class Log:
    """Reads and writes transactions in a file."""

    def __init__(self, file: File) -> None:
        self.file = file

    # -- reading

    def damaged(self, position: int, what: str, oid: Oid | None = None) -> CorruptedDataError:
        """Return the error for damage found at *position*."""
        return CorruptedDataError(
            f"{self.file.path} is damaged at position {position}: {what}. Restore the file from "
            "a backup, or copy what can be read to a new file",
            path=self.file.path, position=position, oid=oid,
        )

    def header(self, position: int, limit: int) -> Header:
        """Return the header of the transaction at *position*, in a file that ends at *limit*.

        Raises `CorruptedDataError` unless it is complete and its two lengths agree.
        """
        block = self.file.read_at(TRANSACTION.size, position)
        if len(block) < TRANSACTION.size:
            raise self.damaged(position, "the file ends inside a transaction header")
        tid, length, status, user, description, extension = TRANSACTION.unpack(block)
        if status not in (COMMITTED, VOTED, PACKED, UNDONE):
            raise self.damaged(position, f"{status!r} is no transaction status")
        texts_size = user + description + extension
        end = position + length + NUMBER.size
        if length < TRANSACTION.size + texts_size or end > limit:
            raise self.damaged(position, f"a transaction cannot be {length + 8} bytes long here")
        if self.file.read_at(NUMBER.size, end - NUMBER.size) != block[8:16]:
            raise self.damaged(position, "the length at the transaction's end differs")
        body = position + TRANSACTION.size + texts_size
        texts = self.file.read_at(texts_size, position + TRANSACTION.size)
        return Header(
            position, tid, status, texts[:user], texts[user : user + description],
            texts[user + description :], body, end,
        )

    def check_crc(self, header: Header) -> bool:
        """Return whether the transaction has a checksum; `CorruptedDataError` if it is wrong."""
        try:
            place = find_crc(header.extension, header.position)
        except ValueError:
            raise self.damaged(header.position, "the checksum in the extension") from None
        if place is None or header.status == PACKED:
            return False
        crc_at = header.body - len(header.extension) + place
        crc, position = 0, header.position
        while position < header.end:
            chunk = bytearray(self.file.read_at(min(_CHUNK, header.end - position), position))
            if not chunk:
                raise self.damaged(position, "the file ends inside a transaction")
            if position == header.position:
                chunk[STATUS_AT : STATUS_AT + 1] = COMMITTED
                at = crc_at - position
                expected = bytes(chunk[at : at + 4])
                chunk[at : at + 4] = bytes(4)
            crc = zlib.crc32(chunk, crc)
            position += len(chunk)
        if expected != crc.to_bytes(4, "big"):
            raise self.damaged(header.position, "the transaction's checksum does not fit")
        return True

    def record(self, position: int) -> Record:
        """Return the data record at *position*, without its data."""
        return self._parse_record(self.file.read_at(RECORD.size, position), position)

    def _parse_record(self, block: bytes, position: int) -> Record:
        if len(block) < RECORD.size:
            raise self.damaged(position, "the file ends inside a data record")
        oid, tid, previous, transaction, version_size, size = RECORD.unpack(block)
        if version_size:
            raise Unsupported(
                f"{self.file.path}: object {format_oid(oid)} at position {position} was changed "
                "in a version, which this release does not read",
            )
        return Record(position, oid, tid, previous, transaction, size, position + RECORD.size)

    def data(self, record: Record) -> bytes | None:
        """Return a record's data, following back pointers; None if it un-creates the object."""
        while not record.size:
            target = self.target(record)
            if target is None:
                return None
            record = target
        return self._exactly(record.size, record.data_at)

    def target(self, record: Record) -> Record | None:
        """Return the record that a back pointer leads to, None if the object is un-created."""
        pointer: int = NUMBER.unpack(self._exactly(NUMBER.size, record.data_at))[0]
        if not pointer:
            return None
        if pointer >= record.position:
            raise self.damaged(record.position, "a back pointer points forward", record.oid)
        target = self.record(pointer)
        if target.oid != record.oid:
            raise self.damaged(
                record.position, f"a back pointer leads to object {format_oid(target.oid)}",
                record.oid,
            )
        return target

    def _exactly(self, size: int, position: int) -> bytes:
        if size > _CHUNK and position + size > self.file.size():
            raise self.damaged(position, f"the file ends before {size} bytes of data do")
        data = self.file.read_at(size, position)
        while len(data) < size:  # one read gives at most 2 GiB
            more = self.file.read_at(size - len(data), position + len(data))
            if not more:
                raise self.damaged(position, f"the file ends inside {size} bytes of data")
            data += more
        return data

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
            if record.transaction != header.position or record.tid != header.tid:
                raise self.damaged(position, "a data record belongs to another transaction")
            if record.end > stop:
                raise self.damaged(position, "a data record is longer than its transaction")
            if record.previous >= header.position:
                raise self.damaged(position, "the previous record lies ahead", record.oid)
            yield record
            position = record.end

    def is_zero_from(self, position: int, limit: int) -> bool:
        """Whether there is nothing but zeros from *position* to *limit*."""
        while position < limit:
            chunk = self.file.read_at(min(_CHUNK, limit - position), position)
            if chunk.count(0) != len(chunk):
                return False
            if not chunk:
                return True
            position += len(chunk)
        return True

    # -- writing

    def size_of(self, staged: Staged, metadata: TransactionMetaData) -> int:
        """Return how many bytes a transaction will take, checking that its texts fit."""
        extension, _, _ = pack_extension(metadata.extension)
        texts = metadata.user, metadata.description, extension
        for name, text in zip(("user", "description", "extension"), texts, strict=True):
            if len(text) > MAX_TEXT_BYTES:
                raise StorageError(
                    f"{self.file.path}: the transaction's {name} is {len(text)} bytes long; at "
                    f"most {MAX_TEXT_BYTES} fit. Make it shorter"
                )
        records = len(staged) * RECORD.size + staged.record_bytes
        return TRANSACTION.size + sum(map(len, texts)) + records + NUMBER.size

    def write(
        self, staged: Staged, metadata: TransactionMetaData, position: int, size: int,
        previous_position: dict[Oid, int],
    ) -> Written:
        """Write the staged transaction, *size* bytes, at *position*, undecided.

        *previous_position* gives the position of each object's current record, where it has one.
        """
        assert staged.tid is not None
        extension, position_place, crc_place = pack_extension(metadata.extension)
        texts = metadata.user + metadata.description + extension
        crc_at = TRANSACTION.size + len(texts) - len(extension) + crc_place
        position_at = crc_at - crc_place + position_place
        length = NUMBER.pack(size - NUMBER.size)
        head = bytearray(
            TRANSACTION.pack(
                staged.tid, size - NUMBER.size, COMMITTED, len(metadata.user),
                len(metadata.description), len(extension),
            )
        )
        head += texts
        head[position_at : position_at + 8] = NUMBER.pack(position)
        body = _Body(self.file, head, position)
        positions: dict[Oid, int] = {}
        at, tid, pack, get = position + len(head), staged.tid, RECORD.pack, previous_position.get
        add = body.parts.append
        for oid, write in staged.writes():
            record = write.record
            positions[oid] = at
            if record is None:
                add(pack(oid, tid, get(oid, 0), position, 0, 0) + bytes(NUMBER.size))
                at += RECORD.size + NUMBER.size
                continue
            add(pack(oid, tid, get(oid, 0), position, 0, len(record)))
            add(record)
            at += RECORD.size + len(record)
            if at - body.flushed > _CHUNK:
                body.flush()
        add(length)
        body.finish(crc_at)
        assert body.flushed == position + size == at + NUMBER.size
        new_objects = len(positions) - len(previous_position)
        return Written(position, position + size, positions, new_objects)

    def decide(self, position: int) -> None:
        """Make the transaction at *position* a committed one."""
        self.file.write_at(COMMITTED, position + STATUS_AT)

    def erase(self, position: int, end: int) -> None:
        """Put zeros over a transaction that was given up."""
        while position < end:
            size = min(_CHUNK, end - position)
            self.file.write_at(bytes(size), position)
            position += size


class _Body:
    """The bytes of a transaction on their way to the file, in large pieces.

    The CRC is known only at the end and belongs near the beginning. A transaction of one piece
    gets it before it is written; a longer one afterwards, while it is undecided.
    """

    def __init__(self, file: File, head: bytearray, position: int) -> None:
        self.parts: list[bytes | bytearray] = [head]
        self.flushed = position
        self._file = file
        self._start = position
        self._crc = 0

    def flush(self) -> None:
        piece = bytearray().join(self.parts)
        self._crc = zlib.crc32(piece, self._crc)
        self._write(piece)

    def _write(self, piece: bytearray) -> None:
        if self.flushed == self._start:
            piece[STATUS_AT : STATUS_AT + 1] = VOTED
        self._file.write_at(piece, self.flushed)
        self.flushed += len(piece)
        del self.parts[:]

    def finish(self, crc_at: int) -> None:
        piece = bytearray().join(self.parts)
        crc = zlib.crc32(piece, self._crc).to_bytes(4, "big")
        if self.flushed == self._start:
            piece[crc_at : crc_at + 4] = crc
            self._write(piece)
        else:
            self._write(piece)
            self._file.write_at(crc, self._start + crc_at)


