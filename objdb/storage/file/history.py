"""The past of a file: older revisions, transactions in order, and what undoing needs.

    index ─► current record ─► previous ─► previous ─► …     an object's chain
    START ─► transaction ─► transaction ─► … ◄─ end          the log, read in either direction

The place of a revision is the position of its record. One that repeats older data has a back
pointer instead: to bring data back takes 8 bytes, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from objdb.errors import POSKeyError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.commit import (
    Repeat,
    TransactionMetaData,
)
from objdb.storage.file.checksums import check_crc
from objdb.storage.file.format import COMMITTED, PACKED, START, visible_extension
from objdb.storage.file.log import POSITION, Header, Log, Record
from objdb.storage.file.medium import Medium
from objdb.storage.file.seeking import position_behind
from objdb.storage.file.walking import BehindFirst, Walk
from objdb.storage.files import File
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry
from objdb.storage.undo import Change, UndoableStorage


class FileHistory(UndoableStorage):
    """The part of a FileStorage that reads what is no longer current."""

    _medium: Medium

    @property
    def _places(self) -> Any:
        return self._medium

    def _load_unusual(
        self, medium: Medium, oid: Oid, tid: Tid, version: str, entry: tuple[int, Tid]
    ) -> tuple[bytes, Tid, Tid | None] | None:
        later: list[Record] = []
        for record in medium.chain(oid, *entry):
            if record.tid < tid:
                break
            later.append(record)
        else:
            return None
        seen = _seen(record, version)
        if seen != record.position:
            outside = medium.log.outside(record)
            if outside is None:
                raise POSKeyError(oid, database=self._name)
            record = outside
        data = medium.log.data(record)
        if data is None:
            raise POSKeyError(oid, database=self._name)
        following = (other.tid for other in reversed(later) if _seen(other, version) != seen)
        return data, record.tid, next(following, None)

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `RevisionStorage.loadSerial`."""
        medium = self._medium
        entry = medium.index.settled(oid)
        if entry is None:
            self._require_open()
            raise POSKeyError(oid, database=self._name)
        found = _revision(medium.log, medium.chain(oid, *entry), serial)
        data = None if found is None else medium.log.data(found)
        if data is None:
            raise POSKeyError(oid, database=self._name)
        return data

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        medium = self._medium
        entry = medium.index.settled(oid)
        if entry is None:
            raise POSKeyError(oid, database=self._name)
        entries: list[dict[str, Any]] = []
        for record in medium.chain(oid, *entry):
            if len(entries) == size:
                break
            header = medium.log.header(record.transaction, medium.file.size())
            metadata = _metadata(header)
            entries.append(history_entry(record.tid, metadata, record.size, record.version))
        return entries

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[TransactionRecord]:
        """See `IStorageIteration`. Checksums are checked; `CorruptedDataError` where one does
        not fit."""
        medium = self._medium
        log, end = medium.log, medium.published.end
        position, last = (START, NO_TID) if start is None else _before(medium, start)
        walk = Walk(log, position, end, last)
        for header in walk:
            if stop is not None and header.tid > stop:
                return
            yield TransactionRecord(
                header.tid, header.status.decode("ascii"), header.user, header.description,
                visible_extension(header.extension), _Records(walk, header), header.has_checksum,
            )

    # -- versions

    def _version_of(self, place: Any) -> str:
        return self._medium.log.record(place).version

    def _outside(self, place: Any) -> tuple[Any, Tid] | None:
        log = self._medium.log
        outside = log.outside(log.record(place))
        return None if outside is None else (outside.position, outside.tid)

    def _again(
        self, entries: dict[Oid, tuple[Any, Tid]]
    ) -> tuple[dict[Oid, bytes | None], dict[Oid, Repeat]]:
        repeats: dict[Oid, Repeat] = {
            oid: place & POSITION for oid, (place, _) in entries.items()
        }
        return dict.fromkeys(entries), repeats

    # -- undoing

    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        medium = self._medium
        if tid > medium.published.tid:
            return None
        position = medium.position_behind(tid)
        if position == START:
            return None
        header = medium.log.header_before(position)
        if header.tid != tid:
            return None
        check_crc(medium.log, header)
        return header.status.decode("ascii"), [
            Change(oid, record.place, record.previous or None)
            for oid, record in medium.last_records(header).items()
        ]

    def _data_at(self, place: Any) -> bytes | None:
        log = self._medium.log
        return log.data(log.record(place))

    def _data_in(self, places: Any, repeat: Repeat) -> bytes | None:
        data: bytes | None = places.log.data(places.log.record(repeat))
        return data

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        log = self._medium.log
        record: Record | None = log.record(place)
        while record is not None and not record.size:
            record = log.target(record)
        return None, None if record is None else record.position

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        medium, entry = self._medium, self._find_current([oid])[oid]
        if entry is not None:
            chain = medium.chain_from(medium.log.record(entry[0] & POSITION))
            found = _revision(medium.log, chain, tid)
            if found is not None and medium.log.data(found) == data:
                return None, found.position
        return data, None

    def _iter_oids(self) -> Iterator[Oid]:
        return iter(self._medium.index.oids())

    def _iter_newest(self) -> Iterator[tuple[Tid, list[Oid]]]:
        medium = self._medium
        position = medium.published.end
        while position > START:
            header = medium.log.header_before(position)
            yield header.tid, list(medium.last_records(header))
            position = header.position

    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        medium = self._medium
        position, last, _, _ = medium.published
        if stop is not None:
            position = position_behind(medium.log, position, last, stop)
        log = Log(cast(File, BehindFirst(medium.file)))
        while position > START:
            header = log.header_before(position)
            if header.status == PACKED:
                return
            if header.status == COMMITTED:
                yield header.tid, _metadata(header), header.end - header.position
            position = header.position


def _revision(log: Log, chain: Iterable[Record], tid: Tid) -> Record | None:
    """Return the revision *tid* of the object that has the records *chain*, newest first.

    After a pack the chain may not lead there: then what it leads to is in a version, and this is
    seen outside meanwhile; or it has the data of this again.
    """
    later: list[Record] = []
    for record in chain:
        if record.tid <= tid:
            if record.tid == tid:
                return record
            break
        later.append(record)
    for record in later:
        found: Record | None = record
        while found is not None and found.tid > tid:
            outside = log.outside(found)
            if outside is not None and outside.tid == tid:
                return outside
            found = None if found.size else log.target(found)
        if found is not None and found.tid == tid:
            return found
    return None


def _before(medium: Medium, tid: Tid) -> tuple[int, Tid]:
    """Return where the last transaction before *tid* ends, and its tid."""
    earlier = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big") if tid != NO_TID else tid
    position = medium.position_behind(earlier)
    if position == START:
        return START, NO_TID
    return position, medium.log.header_before(position).tid


def _seen(record: Record, version: str) -> int:
    """Return where the record is that is seen in *version* while this one is current."""
    return record.outside if record.version not in ("", version) else record.position


def _metadata(header: Header) -> TransactionMetaData:
    extension = visible_extension(header.extension)
    return TransactionMetaData(header.user, header.description, extension)


class _Records:
    """The revisions of one transaction, read as they are iterated over."""

    __slots__ = ("_header", "_walk")

    def __init__(self, walk: Walk, header: Header) -> None:
        self._walk = walk
        self._header = header

    def __iter__(self) -> Iterator[RevisionRecord]:
        return self._walk.revisions(self._header)
