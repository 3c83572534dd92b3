"""Older revisions, and transactions in order, in a file; as functions over a `Generation`.

    index ─► current record ─► previous ─► previous ─► …     an object's chain
    START ─► transaction ─► transaction ─► … ◄─ end          the log, read in either direction

A record with older data has a back pointer instead of data: restoring data takes 8 bytes, whatever
their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from objdb.errors import POSKeyError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.checksums import check_crc
from objdb.storage.file.find_tid import position_behind
from objdb.storage.file.format import COMMITTED, PACKED, START, visible_extension
from objdb.storage.file.generation import Generation
from objdb.storage.file.log import Header, Log, Record
from objdb.storage.file.scan import BehindFirst, Walk
from objdb.storage.files import File
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry
from objdb.storage.rows import TransactionRow


class FileRow:
    """A revision in a file, with the attributes of a `Row`; those that need a read are read lazily.
    """

    __slots__ = ("_generation", "_pointed", "record")
    follows_gap = False

    def __init__(self, generation: Generation, record: Record) -> None:
        self._generation = generation
        self.record = record
        self._pointed: Record | None = None  # the record that the back pointer refers to, once read

    @property
    def tid(self) -> Tid:
        """The tid of the transaction that wrote it."""
        return self.record.tid

    @property
    def version(self) -> str:
        """The name of its version."""
        return self.record.version

    @property
    def size(self) -> int:
        """The size of its data in bytes; 0 for a tombstone or a back pointer."""
        return self.record.size

    @property
    def exists(self) -> bool:
        """Whether it is not a tombstone."""
        record = self.record if self.record.size else self._target
        while record is not None and not record.size:
            record = self._generation.log.target(record)
        return record is not None

    @property
    def data(self) -> bytes | None:
        """The record's bytes; None for a tombstone."""
        return self._generation.log.data(self.record)

    @property
    def outside(self) -> Tid | None:
        """The tid of the revision visible outside its version while it is current."""
        outside = self._generation.meet(self._generation.log.outside(self.record))
        return None if outside is None else outside.tid

    @property
    def back_pointer(self) -> Tid | None:
        """The tid of the older revision whose data it has."""
        target = None if self.record.size else self._target
        return None if target is None else target.tid

    @property
    def _target(self) -> Record | None:
        if self._pointed is None:
            self._pointed = self._generation.meet(self._generation.log.target(self.record))
        return self._pointed


def load_before(
    generation: Generation, name: str, oid: Oid, tid: Tid, version: str
) -> tuple[bytes, Tid, Tid | None] | None:
    """See `IOwnHistory`; *name* is the file's name in errors."""
    later: list[Record] = []
    for record in generation.chain_of(oid, name):
        if record.tid < tid:
            break
        later.append(record)
    else:
        return None
    seen = _seen(record, version)
    if seen != record.position:
        outside = generation.log.outside(record)
        if outside is None:
            raise POSKeyError(oid, database=name)
        record = outside
    data = generation.log.data(record)
    if data is None:
        raise POSKeyError(oid, database=name)
    following = (other.tid for other in reversed(later) if _seen(other, version) != seen)
    return data, record.tid, next(following, None)


def load_serial(generation: Generation, name: str, oid: Oid, serial: Tid) -> bytes:
    """See `IOwnHistory`."""
    found = revision(generation.log, generation.chain_of(oid, name), serial)
    data = None if found is None else generation.log.data(found)
    if data is None:
        raise POSKeyError(oid, database=name)
    return data


def list_revisions(generation: Generation, name: str, oid: Oid, size: int) -> list[dict[str, Any]]:
    """See `IOwnHistory`."""
    entries: list[dict[str, Any]] = []
    for record in generation.chain_of(oid, name):
        if len(entries) == size:
            break
        header = generation.log.header(record.transaction, generation.file.size())
        metadata = _metadata(header)
        entries.append(history_entry(record.tid, metadata, record.size, record.version))
    return entries


def iterate(
    generation: Generation, start: Tid | None, stop: Tid | None
) -> Iterator[TransactionRecord]:
    """See `IOwnHistory`. Verifies checksums. Raises `CorruptedDataError` if one does not match."""
    log, end = generation.log, generation.published.end
    position, last = (START, NO_TID) if start is None else before_transaction(generation, start)
    walk = Walk(log, position, end, last)
    for header in walk:
        if stop is not None and header.tid > stop:
            return
        yield TransactionRecord(
            header.tid, header.status.decode("ascii"), header.user, header.description,
            visible_extension(header.extension), _Records(walk, header), header.has_checksum,
        )


# -- transactions


def transaction(generation: Generation, tid: Tid) -> TransactionRow | None:
    """See `IEngine`: among visible transactions. Verifies its checksum."""
    if tid > generation.published.tid:
        return None
    position = generation.position_behind(tid)
    if position == START:
        return None
    header = generation.log.header_before(position)
    if header.tid != tid:
        return None
    check_crc(generation.log, header)
    return _transaction_row(header, list(generation.last_records(header)))


def transactions(
    generation: Generation, start: Tid, stop: Tid, newest_first: bool
) -> Iterator[TransactionRow]:
    """See `IEngine`: visible transactions only."""
    if not newest_first:
        for found in iterate(generation, start, stop):
            records = list(found)
            yield TransactionRow(
                found.tid, found.status, found.user, found.description, found.extension_bytes,
                [record.oid for record in records], sum(len(r.data or b"") for r in records),
            )
        return
    position = generation.position_behind(stop)
    while position > START:
        header = generation.log.header_before(position)
        if header.tid < start:
            return
        yield _transaction_row(header, list(generation.last_records(header)))
        position = header.position


def undoable(generation: Generation, stop: Tid | None) -> Iterator[TransactionRow]:
    """See `IOwnHistory`; the rows have no oids."""
    position, last, _, _ = generation.published
    if stop is not None:
        position = position_behind(generation.log, position, last, stop)
    log = Log(cast(File, BehindFirst(generation.file)))
    while position > START:
        header = log.header_before(position)
        if header.status == PACKED:
            return
        if header.status == COMMITTED:
            yield _transaction_row(header, [])
        position = header.position


def _transaction_row(header: Header, oids: list[Oid]) -> TransactionRow:
    return TransactionRow(
        header.tid, header.status.decode("ascii"), header.user, header.description,
        visible_extension(header.extension), oids, header.end - header.position,
    )


def revision(log: Log, chain: Iterable[Record], tid: Tid) -> Record | None:
    """Return the revision *tid* of the object with the records *chain*, newest first.

    After a pack the chain may not reach it: then a record of the chain is in a version, and this
    revision is outside; or a back pointer refers to it.
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


def before_transaction(generation: Generation, tid: Tid) -> tuple[int, Tid]:
    """Return the end position of the last transaction before *tid*, and its tid."""
    earlier = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big") if tid != NO_TID else tid
    position = generation.position_behind(earlier)
    if position == START:
        return START, NO_TID
    return position, generation.log.header_before(position).tid


def _seen(record: Record, version: str) -> int:
    """Return the position of the record visible in *version* while this one is current."""
    return record.outside if record.version not in ("", version) else record.position


def _metadata(header: Header) -> TransactionMetaData:
    extension = visible_extension(header.extension)
    return TransactionMetaData(header.user, header.description, extension)


class _Records:
    """The revisions of one transaction, read during the iteration."""

    __slots__ = ("_header", "_walk")

    def __init__(self, walk: Walk, header: Header) -> None:
        self._walk = walk
        self._header = header

    def __iter__(self) -> Iterator[RevisionRecord]:
        return self._walk.revisions(self._header)
