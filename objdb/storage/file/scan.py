"""Scanning a log in order: for iterators, and for copying.

    window   ├ transaction ┼ transaction ┼ transaction ┼ tra…     read at once
    header       └► length ─► status, order, checksum ─► Header
    revisions    └► plain_revisions: a list of all that are plain, then one that is not, then …

This module handles the usual case, in a window read ahead: a committed transaction written by
objdb without further items, and records outside any version with their own data. Everything else,
including damage, is left to the general functions `next_transaction` and `Log.record_of`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from objdb.ids import Oid, Tid
from objdb.storage.file.checksums import check_crc
from objdb.storage.file.format import (
    COMMITTED,
    NUMBER,
    RECORD,
    TRANSACTION,
    plain_extension,
)
from objdb.storage.file.log import Header, Log, Record
from objdb.storage.file.recovery import next_transaction
from objdb.storage.files import File
from objdb.storage.iteration import RevisionRecord

_WINDOW_BYTES = 256 * 1024
_WINDOW_BEHIND = 32 * 1024
_EXTENSION_BYTES = sum(map(len, plain_extension(0))) + 4
_BEHIND_CRC_BYTES = len(plain_extension(0)[1])
_unpack_transaction, _HEADER_BYTES = TRANSACTION.unpack_from, TRANSACTION.size
_unpack_record, _RECORD_BYTES = RECORD.unpack_from, RECORD.size
_unpack_number = NUMBER.unpack_from
_NO_CRC = bytes(4)


class Walk:
    """Yields the committed transactions from *position*, after the one with the tid *last*, up to
    *end*. Raises `CorruptedDataError` for bytes that are not a transaction."""

    def __init__(self, log: Log, position: int, end: int, last: Tid) -> None:
        self._log = log
        self._position = self._start = position
        self._verified = set[int]()  # verified targets of back pointers before the start
        self._end = end
        self._last = last
        self._window: tuple[int, bytes] = position, b""

    def __iter__(self) -> Iterator[Header]:
        while self._position < self._end:
            header = self._plain(self._position) or next_transaction(
                self._log, self._position, self._end, self._last
            )
            if header is None:
                return
            self._position, self._last = header.end, header.tid
            yield header

    def _plain(self, position: int) -> Header | None:
        """Return the transaction at *position* if it is usual and not large."""
        start, block = self._window
        at = position - start
        here = len(block) - at
        if here < _HEADER_BYTES or here < _unpack_number(block, at + 8)[0] + NUMBER.size:
            size = min(_WINDOW_BYTES, self._end - position)
            block, at = self._log.file.read_at(size, position), 0
            self._window = position, block
            here = len(block)
            if here < _HEADER_BYTES or here < _unpack_number(block, 8)[0] + NUMBER.size:
                return None
        tid, length, status, user, description, extension = _unpack_transaction(block, at)
        size = length + NUMBER.size
        stop = at + size
        texts = at + _HEADER_BYTES + user + description
        body = texts + _EXTENSION_BYTES
        if (
            status != COMMITTED or extension != _EXTENSION_BYTES or tid <= self._last
            or body + NUMBER.size > stop or block[stop - 8 : stop] != block[at + 8 : at + 16]
        ):
            return None
        crc_at = body - _BEHIND_CRC_BYTES - 4
        crc = zlib.crc32(block[at:crc_at] + _NO_CRC + block[crc_at + 4 : stop])
        before, behind = plain_extension(position)
        found = block[texts:body]
        if found != before + crc.to_bytes(4, "big") + behind:
            return None
        users_end = at + _HEADER_BYTES + user
        return Header(
            position, tid, status, block[at + _HEADER_BYTES : users_end], block[users_end:texts],
            found, position + body - at, position + size, True,
        )

    def revisions(self, header: Header) -> Iterator[RevisionRecord]:
        """Return the revisions of a transaction."""
        stop = header.end - NUMBER.size
        start, block = self._window
        if start <= header.position and header.end <= start + len(block):
            found, position = plain_revisions(
                block, start, header.body, stop, header.tid, header.position, RevisionRecord
            )
            if position == stop:
                return iter(found)
        return self._any_revisions(header)

    def _any_revisions(self, header: Header) -> Iterator[RevisionRecord]:
        log = self._log
        for found, record in self._runs(header, plain_revisions, RevisionRecord):
            yield from found
            if record is not None:
                target = self._target(record)
                data = log.data(record if target is None else target)
                yield RevisionRecord(
                    record.oid, record.tid, data, record.version,
                    None if target is None else target.tid,
                )

    def _target(self, record: Record) -> Record | None:
        """Return the record with the data of one with a back pointer, None if there is none. The
        transactions of all records on the chain are verified, so that all data yielded are."""
        log, target = self._log, None
        found = None if record.size else log.target(record)
        while found is not None:
            position = found.transaction
            if position < self._start and position not in self._verified:
                header = log.header(position, self._end)
                if not header.body <= found.position < header.end:
                    raise log.damaged(found.position, "a record belongs to another transaction")
                check_crc(log, header)
                self._verified.add(position)
            target = found if target is None else target
            found = None if found.size else log.target(found)
        return target

    def places(self, header: Header) -> tuple[dict[Oid, int], dict[Oid, str]]:
        """Return the positions of a transaction's records, by oid, as in the index; and the
        versions of those that are in one. If an object is written twice, the last record counts."""
        positions: dict[Oid, int] = {}
        versions: dict[Oid, str] = {}
        for found, record in self._runs(header, plain_positions):
            positions.update(found)
            if record is not None:
                positions[record.oid] = record.place
                versions[record.oid] = record.version
        return positions, {oid: version for oid, version in versions.items() if version}

    def _runs(
        self, header: Header, plain: Callable[..., tuple[Any, int]], *more: Any
    ) -> Iterator[tuple[Any, Record | None]]:
        """Yield the revisions of a transaction: those that *plain* finds, and the record after
        them, if it is not plain."""
        start, block = self._window
        position, stop = header.body, header.end - NUMBER.size
        while position < stop:
            if not _has_record(block, position - start):
                start = position
                block = self._log.file.read_at(min(_WINDOW_BYTES, stop - position), position)
            found, after = plain(
                block, start, position, stop, header.tid, header.position, *more
            )
            record = None if found else self._log.record_of(header, position)
            yield found, record
            position = after if record is None else record.end


class BehindFirst:
    """A file that is read backwards from its end: reads large blocks before the position. Only
    for bytes that do not change any more."""

    def __init__(self, file: File) -> None:
        self.path = file.path
        self.size = file.size
        self._read_at = file.read_at
        self._start, self._block = 0, b""

    def read_at(self, size: int, position: int) -> bytes:
        """Return the bytes at *position*, as a file does."""
        at = position - self._start
        if not 0 <= at <= len(self._block) - size:
            if size > _WINDOW_BEHIND:
                return self._read_at(size, position)
            self._start = max(position + size - _WINDOW_BEHIND, 0)
            self._block = self._read_at(_WINDOW_BEHIND, self._start)
            at = position - self._start
        return self._block[at : at + size]


def _has_record(block: bytes, at: int) -> bool:
    """Whether all of the data record at a place is in *block*."""
    if not 0 <= at <= len(block) - _RECORD_BYTES:
        return False
    return bool(at + _RECORD_BYTES + _unpack_record(block, at)[5] <= len(block))


def plain_positions(
    block: bytes, start: int, position: int, stop: int, tid: Tid, transaction: int
) -> tuple[dict[Oid, int], int]:
    """Return the positions, by oid, of the records that `plain_revisions` returns; and the
    position of the first record that is not plain."""
    found: dict[Oid, int] = {}
    for oid, at, end in _plain(block, position - start, stop - start, tid, transaction):
        found[oid] = start + at
        position = start + end
    return found, position


def plain_revisions(
    block: bytes, start: int, position: int, stop: int, tid: Tid, transaction: int, cls: Any
) -> tuple[list[Any], int]:
    """Return the revisions from *position* on, as far as they are plain, belong to the transaction
    *tid* at the position *transaction*, end at *stop* at the latest, and are in *block*, which was
    read at *start*; and the position of the first record that is not plain.

    *cls* is `RevisionRecord`. These functions are the reference. If the accelerator was built,
    its functions of the same names take their place.
    """
    found: list[Any] = []
    for oid, at, end in _plain(block, position - start, stop - start, tid, transaction):
        found.append(cls(oid, tid, block[at + _RECORD_BYTES : end]))
        position = start + end
    return found, position


def _plain(
    block: bytes, at: int, stop: int, tid: Tid, transaction: int
) -> Iterator[tuple[Oid, int, int]]:
    """Yield (oid, start, end) of plain records."""
    stop = min(stop, len(block))
    while at + _RECORD_BYTES <= stop:
        oid, own_tid, previous, own, version_size, size = _unpack_record(block, at)
        end = at + _RECORD_BYTES + size
        if own_tid != tid or own != transaction or previous >= transaction:
            break
        if version_size or not size or end > stop:
            break
        yield oid, at, end
        at = end


try:
    from objdb._accelerator import plain_positions, plain_revisions  # type: ignore
except ImportError:
    pass
