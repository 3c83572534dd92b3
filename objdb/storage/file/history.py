"""The past of a file: older revisions, transactions in order, and what undoing needs.

    index ─► current record ─► previous ─► previous ─► …     an object's chain
    START ─► transaction ─► transaction ─► … ◄─ end          the log, read in either direction

The place of a revision is the position of its record. One that repeats older data has a back
pointer instead: to bring data back takes 8 bytes, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from objdb.errors import CorruptedDataError, POSKeyError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.commit import (
    Repeat,
    TransactionMetaData,
    loads_extension,
    without_integrity,
)
from objdb.storage.file.format import COMMITTED, PACKED, START, visible_extension
from objdb.storage.file.index import Index
from objdb.storage.file.log import Header, Log, Record
from objdb.storage.file.lookup import RecordReader
from objdb.storage.file.recovery import next_transaction
from objdb.storage.file.seeking import position_behind, position_by_walking
from objdb.storage.files import File
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry, in_range
from objdb.storage.undo import Change, UndoableStorage


class FileHistory(UndoableStorage):
    """The part of a FileStorage that reads what is no longer current."""

    _file: File
    _log: Log
    _index: Index
    _reader: RecordReader
    _published: tuple[int, Tid, int, int]

    def _load_older(
        self, oid: Oid, tid: Tid, position: int, current: Tid
    ) -> tuple[bytes, Tid, Tid | None] | None:
        following: Tid | None = None
        for record in self._chain(oid, position, current):
            if record.tid < tid:
                data = self._log.data(record)
                if data is None:
                    raise POSKeyError(oid, database=self._name)
                return data, record.tid, following
            following = record.tid
        return None

    def _chain(self, oid: Oid, position: int, current: Tid) -> Iterator[Record]:
        """Yield the object's records, newest first."""
        record = self._current_record(oid, position, current)
        yield record
        while record.previous:
            older = self._log.record(record.previous)
            if older.oid != oid or older.tid >= record.tid:
                raise self._log.damaged(record.position, "the previous position is wrong", oid)
            yield older
            record = older

    def _current_record(self, oid: Oid, position: int, tid: Tid) -> Record:
        """Return the record that the index names; `CorruptedDataError` if it is not there."""
        # Where another process writes, the index leads to what this one has not read on to.
        if position < self._reader.end or self._is_read_only:
            record = self._log.record(position)
            if record.oid == oid and record.tid == tid:
                return record
        self._require_open()
        raise self._log.damaged(
            position, "the record here is not the one the index says. If the file itself is "
            "whole, removing the index beside it (.oidx) lets it be built again", oid,
        )

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        entry = self._index.settled(oid)
        if entry is None:
            raise POSKeyError(oid, database=self._name)
        entries: list[dict[str, Any]] = []
        for record in self._chain(oid, *entry):
            if len(entries) == size:
                break
            header = self._log.header(record.transaction, self._file.size())
            entries.append(history_entry(record.tid, _metadata(header), record.size))
        return entries

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[TransactionRecord]:
        """See `IStorageIteration`. Checksums are checked; `CorruptedDataError` where one does
        not fit."""
        end = self._visible_end()
        position, last = (START, NO_TID) if start is None else self._before(start)
        while position < end:
            header = next_transaction(self._log, position, end, last)
            if header is None:
                return
            if stop is not None and header.tid > stop:
                return
            if in_range(header.tid, start, stop):
                yield TransactionRecord(
                    header.tid, header.status.decode("ascii"), header.user, header.description,
                    visible_extension(header.extension), _Records(self._log, header),
                )
            position, last = header.end, header.tid

    def _before(self, tid: Tid) -> tuple[int, Tid]:
        """Return where the last transaction before *tid* ends, and its tid."""
        end, last = self._published[:2]
        earlier = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big") if tid != NO_TID else tid
        position = position_behind(self._log, end, last, earlier)
        if not self._is_genuine(position):
            position = position_by_walking(self._log, end, earlier)
        if position == START:
            return START, NO_TID
        return position, self._log.header_before(position).tid

    def _visible_end(self) -> int:
        """Return where the last published transaction ends."""
        return self._published[0]

    # -- undoing

    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        end, last = self._published[:2]
        if tid > last:
            return None
        position = position_behind(self._log, end, last, tid)
        if not self._is_genuine(position):
            position = position_by_walking(self._log, end, tid)
        if position == START:
            return None
        header = self._log.header_before(position)
        if header.tid != tid:
            return None
        self._log.check_crc(header)
        return header.status.decode("ascii"), [
            Change(oid, record.position, record.previous or None)
            for oid, record in self._last_records(header).items()
        ]

    def _last_records(self, header: Header) -> dict[Oid, Record]:
        """Return a transaction's records. ZODB writes an object once for each transaction that is
        undone: the last one counts."""
        return {record.oid: record for record in self._log.records(header)}

    def _is_genuine(self, position: int) -> bool:
        """Whether a transaction ends at *position*, and not data that look like one: then it, or
        the last one before it that has records, is in the chain of an object."""
        try:
            while position > START:
                header = self._log.header_before(position)
                records = self._last_records(header)
                if records:
                    # The object that was changed least since has the shortest way there.
                    current = self._find_current(records)
                    oid = min(records, key=lambda oid: (current[oid] or (0, NO_TID))[1])
                    return self._is_in_chain(records[oid])
                position = header.position
        except CorruptedDataError:
            return False
        return True

    def _is_in_chain(self, record: Record) -> bool:
        entry = self._index.get(record.oid)
        if entry is not None:
            for own in self._chain(record.oid, *entry):
                if own.tid <= record.tid:
                    return own.position == record.position
        return False

    def _data_at(self, place: Any) -> bytes | None:
        return self._log.data(self._log.record(place))

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        record: Record | None = self._log.record(place)
        while record is not None and not record.size:
            record = self._log.target(record)
        return None, None if record is None else Repeat(record.tid, record.position)

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        entry = self._find_current([oid])[oid]
        position = 0 if entry is None else entry[0]
        while position:
            record = self._log.record(position)
            if record.tid <= tid:
                if record.tid == tid and self._log.data(record) == data:
                    return None, Repeat(tid, position)
                break
            position = record.previous
        return data, None

    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        position, last = self._published[:2]
        if stop is not None:
            position = position_behind(self._log, position, last, stop)
        while position > START:
            header = self._log.header_before(position)
            if header.status == PACKED:
                return
            if header.status == COMMITTED:
                yield header.tid, _metadata(header), header.end - header.position
            position = header.position


def _metadata(header: Header) -> TransactionMetaData:
    extension = without_integrity(loads_extension(header.extension))
    return TransactionMetaData(header.user, header.description, extension)


class _Records:
    """The revisions of one transaction, read as they are iterated over."""

    def __init__(self, log: Log, header: Header) -> None:
        self._log = log
        self._header = header

    def __iter__(self) -> Iterator[RevisionRecord]:
        for record in self._log.records(self._header):
            target = None if record.size else self._log.target(record)
            yield RevisionRecord(
                record.oid, record.tid, self._log.data(record),
                data_txn=None if target is None else target.tid,
            )
