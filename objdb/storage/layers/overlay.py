"""The engine of a DemoStorage: changes over a storage that is never written.

    load        the changes have the object   ─► their revision, tombstones too
                else                          ─► that of the base
    store …     to the changes

Only the changes can be undone and packed. The base's revision of an object is visible again when
the object's first change is undone.

Two kinds of records in the changes, which are not those of objects, refer to the base:

    .-       a tombstone for an object of the base (a pack would remove a real one)
    .< tid   the base's revision tid is visible again: the object's first change was undone
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from zope.interface import implementer

from objdb.errors import POSKeyError, ReadOnlyError, UndoError, Unsupported, UsageError
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, format_tid, next_tid
from objdb.interfaces import IStoragePacked, IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.storage.engine import IOidRanges, IOwnHistory, IOwnPack, IPackedTid, Visibility
from objdb.storage.iteration import RevisionRecord, TransactionRecord
from objdb.storage.layers.chains import Chains, InBase
from objdb.storage.packing import PackOptions, PackResult
from objdb.storage.rows import Current, Row, TransactionRow
from objdb.storage.staging import StagedRows

_GONE, _AS_IN_BASE = b".-", b".<"
_AS_IN_BASE_BYTES = 10


class Written(NamedTuple):
    """The token: the transaction's metadata in the changes, its row, and of each revision the oid,
    data, version and back pointer."""

    metadata: TransactionMetaData
    transaction: TransactionRow
    revisions: list[tuple[Oid, bytes | None, str, Tid | None]]


@implementer(IOwnHistory, IOwnPack, IOidRanges, IPackedTid)
class OverlayEngine:
    """Shows *base*, and keeps the changes in *changes*, another storage."""

    path = has_checksums = None
    keeps_history = True
    max_oid = 0  # oids are reserved first

    def __init__(self, base: Any, changes: Any) -> None:
        self.base = base
        self.changes = changes
        self.name = f"changes over {base.getName()}"
        self.visibility = Visibility(self.name)
        self.has_versions = IStorageVersions.providedBy(changes)
        self._base_has_versions = self.has_versions and IStorageVersions.providedBy(base)
        self._base_end: Tid = next_tid(base.lastTransaction())
        self._base_oid: int | None = None  # the largest oid of the base, once known
        self._voting: TransactionMetaData | None = None  # its metadata in the changes
        self._chains = self._read_chains()
        self.visibility.show(max(base.lastTransaction(), changes.lastTransaction()))

    def _read_chains(self) -> Chains:
        chains = Chains(self._find_in_base)
        for transaction in self.changes.iterator():
            if transaction.tid < self._base_end:
                raise UsageError(
                    f"{self.changes.getName()} has the transaction {format_tid(transaction.tid)}, "
                    f"but {self.base.getName()} has later ones. Open changes over the base that "
                    "they belong to"
                )
            chains.add(transaction.tid, transaction.status, (
                (r.oid, self._shown(r.oid, r.data), r.version, r.data_txn or _in_base(r.data))
                for r in transaction
            ))
        return chains

    def _shown(self, oid: Oid, data: bytes | None) -> bytes | None:
        """Return the record for *data* of the changes."""
        if data is None or data == _GONE:
            return None
        tid = _in_base(data)
        if tid is None:
            return data
        record: bytes = self.base.loadSerial(oid, tid)
        return record

    # -- the base

    def _find_in_base(self, oid: Oid) -> InBase | None:
        try:
            version = self.base.modifiedInVersion(oid) if self._base_has_versions else ""
            found = self._load_base(oid, self._base_end, version)
        except POSKeyError:
            return None
        if found is None:
            return None
        if not version:
            return InBase(found[1], "", None)
        try:
            outside = self._load_base(oid, self._base_end, "")
        except POSKeyError:
            outside = None
        return InBase(found[1], version, outside[1] if outside else None)

    def _load_base(self, oid: Oid, tid: Tid, version: str) -> Any:
        if version and self._base_has_versions:
            return self.base.loadBefore(oid, tid, version)
        return self.base.loadBefore(oid, tid)

    def reserve_oids(self, least: int, count: int) -> int:
        """See `IOidRanges`: after those of the base. A read-only base is scanned for them, once."""
        if self._base_oid is None:
            try:
                last = self.base.new_oid()
            except ReadOnlyError:
                revisions = (r.oid for transaction in self.base.iterator() for r in transaction)
                last = max(revisions, default=bytes(8))
            last = max(last, max(self._chains.tids, default=bytes(8)))
            self._base_oid = int.from_bytes(last, "big")
        return max(least, self._base_oid) + count

    # -- rows

    def row(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        chains = self._chains
        if not (tid < self._base_end or chains.has(oid, tid)):
            return None
        try:
            data = self._data(chains, oid, tid)
        except POSKeyError:
            return None
        version, outside = chains.versions.get((oid, tid), ("", None))
        return Row(tid, data, version, outside, chains.back_pointers.get((oid, tid)))

    def _data(self, chains: Chains, oid: Oid, tid: Tid) -> bytes | None:
        if (oid, tid) in chains.uncreated:
            return None
        if tid < self._base_end:
            record: bytes = self.base.loadSerial(oid, tid)
            return record
        return self._shown(oid, self.changes.loadSerial(oid, tid))

    def before(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`; of the base's revisions the last one only."""
        chain = self._chains.of(oid)
        i = bisect_left(chain, tid)
        return self.row(oid, chain[i - 1]) if i else None

    def after(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`; of the base's revisions the last one only."""
        chain = self._chains.of(oid)
        later = chain[bisect_left(chain, next_tid(tid)) :]
        return self.row(oid, later[0]) if later else None

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        chains, found = self._chains, dict[Oid, "Current | None"]()
        for oid in oids:
            chain = chains.of(oid)
            found[oid] = self._current(chains, oid, chain[-1]) if chain else None
        return found

    def _current(self, chains: Chains, oid: Oid, tid: Tid) -> Current:
        return Current(tid, chains.versions.get((oid, tid), ("", None))[0])

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        chains = self._chains
        if self._base_has_versions:
            for version in self.base.versions():
                for oid in self.base.objects_in_version(version):
                    chains.of(oid)
        return {
            oid: Current(tid, version) for (oid, tid), (version, _) in list(chains.versions.items())
            if chains.is_current((oid, tid))
        }

    def had_versions(self) -> bool:
        """See `IEngine`."""
        return bool(self.has_versions)

    def chains(self) -> Iterator[tuple[Oid, list[tuple[Tid, int]]]]:
        """Raise `Unsupported`: not all objects of the base are known."""
        raise Unsupported(f"{self.name} does not list its objects one by one")

    def oids(self) -> Iterator[Oid]:
        """Raise `Unsupported`, as `chains` does."""
        return (oid for oid, _ in self.chains())

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`. Raises `UndoError` for one of the base."""
        if NO_TID < tid < self._base_end:
            reason = "it is not one of the changes, and the base is never written"
            raise UndoError(
                f"transaction {format_tid(tid)} cannot be undone: there is no such transaction, or "
                f"{reason}", tid=tid, reason=reason,
            )
        found = next(iter(self.changes.iterator(tid, tid)), None)
        return None if found is None else self._transaction_row(found, 0)

    def _transaction_row(self, found: Any, size: int) -> TransactionRow:
        oids = [revision.oid for revision in found]
        return TransactionRow(
            found.tid, found.status, found.user, found.description, found.extension_bytes, oids,
            size,
        )

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`; those of the changes only."""
        known = [each for each in list(self._chains.transactions) if start <= each[0] <= stop]
        for tid, _, size in reversed(known) if newest_first else known:
            found = next(iter(self.changes.iterator(tid, tid)), None)
            if found is not None:  # else a pack has just removed it
                yield self._transaction_row(found, size)

    # -- history

    def load_before(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IOwnHistory`."""
        chains = self._chains
        chain = chains.tids.get(oid)
        if chain is None or tid <= self._base_end:
            return self._load_early(chains, oid, tid, version)
        i = bisect_left(chain, tid)
        if i == 0 or (i < len(chain) and (oid, chain[i]) in chains.packed):
            return None
        seen = chains.seen(oid, chain[i - 1], version)
        record = None if seen is None else self._data(chains, oid, seen)
        if record is None:
            raise POSKeyError(oid, database=self.name)
        assert seen is not None
        return record, seen, self._next(chains, oid, seen, version, i)

    def _load_early(
        self, chains: Chains, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """Return the base's revision, and the tid until which it is visible here."""
        chain = chains.tids.get(oid, [])
        try:
            found = self._load_base(oid, min(tid, self._base_end), version)
        except POSKeyError:
            if chain:
                return None
            raise POSKeyError(oid, database=self.name) from None
        if found is None:
            return None
        record, serial, end = found
        if end is None and chain:
            first = bisect_left(chain, self._base_end)
            end = self._next(chains, oid, serial, version, first)
        return record, serial, end

    def _next(self, chains: Chains, oid: Oid, seen: Tid, version: str, i: int) -> Tid | None:
        later = (tid for tid in chains.tids[oid][i:] if chains.seen(oid, tid, version) != seen)
        return next(later, None)

    def load_serial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IOwnHistory`."""
        chains = self._chains
        is_here = serial < self._base_end or chains.has(oid, serial)
        record = self._data(chains, oid, serial) if is_here else None
        if record is None:
            raise POSKeyError(oid, database=self.name)
        return record

    def undoable(self, stop: Tid | None) -> Iterator[TransactionRow]:
        """See `IOwnHistory`: of the changes."""
        for row in self.transactions(NO_TID, MAX_TID if stop is None else stop, newest_first=True):
            if row.status == "p":
                return
            if row.status == " ":
                yield row

    def list_revisions(self, oid: Oid, size: int) -> list[dict[str, Any]]:
        """See `IOwnHistory`: the changes first, then the base's revisions."""
        chains = self._chains
        entries: list[dict[str, Any]] = []
        for storage in (self.changes, self.base):
            try:
                entries += storage.history(oid, size - len(entries)) if len(entries) < size else []
            except POSKeyError:
                continue
        for entry in entries:
            place = oid, entry["tid"]
            if place in chains.uncreated:
                entry["size"] = 0
            elif chains.back_pointers.get(place, MAX_TID) < self._base_end <= entry["tid"]:
                entry["size"] = len(self._data(chains, *place) or b"")
        if not entries:
            raise POSKeyError(oid, database=self.name)
        return entries

    def iterate(self, start: Tid | None, stop: Tid | None) -> Iterator[TransactionRecord]:
        """See `IOwnHistory`: the base's transactions, then the changes."""
        last = (int.from_bytes(self._base_end, "big") - 1).to_bytes(8, "big")
        early = self.base.iterator(start, last if stop is None else min(stop, last))
        return self._joined(early, self.changes.iterator(start, stop))

    def _joined(self, early: Iterable[Any], late: Iterable[Any]) -> Iterator[TransactionRecord]:
        yield from early
        for found in late:
            yield TransactionRecord(
                found.tid, found.status, found.user, found.description, found.extension_bytes,
                _Records(self, found), found.has_checksum,
            )

    # -- writing

    def write(self, transaction: TransactionRow, rows: StagedRows) -> Written:
        """See `IEngine`."""
        metadata = TransactionMetaData(
            transaction.user, transaction.description, transaction.extension_bytes
        )
        written = Written(metadata, transaction, [])
        chains, tid = self._chains, transaction.tid
        self._voting = metadata
        try:
            self.changes.tpc_begin(metadata, tid, transaction.status)
            for oid, row in rows:
                record, pointer = row.data, row.back_pointer
                written.revisions.append((oid, record, row.version, pointer))
                if record is None and oid in chains.in_base:
                    record = _GONE
                elif pointer is not None and pointer < self._base_end:
                    record, pointer = _AS_IN_BASE + pointer, None
                self.changes.restore(oid, tid, record, row.version, pointer, metadata)
            self.changes.tpc_vote(metadata)
        except BaseException:
            self.changes.tpc_abort(metadata)
            raise
        return written

    def commit(self, token: Written) -> None:
        """See `IEngine`."""
        if not self.is_committed(token):
            self.changes.tpc_finish(token.metadata)

    def is_committed(self, token: Written) -> bool:
        """See `IEngine`."""
        last: Tid = self.changes.lastTransaction()
        return last >= token.transaction.tid

    def publish(self, token: Written) -> None:
        """See `IEngine`."""
        transaction = token.transaction
        if self.visibility.tid < transaction.tid:
            self._chains.add(transaction.tid, transaction.status, iter(token.revisions))
        self.visibility.show(transaction.tid)

    def rollback(self, token: Written | None) -> None:
        """See `IEngine`."""
        if self._voting is not None:
            self.changes.tpc_abort(self._voting)
            self._voting = None

    def amend(self, rows: Any, transactions: Any) -> None:
        """Raise `Unsupported`: the changes pack themselves."""
        raise Unsupported(f"{self.name} cannot be amended")

    def pack(
        self, options: PackOptions, alone: Callable[[], AbstractContextManager[None]]
    ) -> PackResult:
        """See `IOwnPack`. Packs the changes only: changed objects of the base stay, and with them
        all objects they refer to."""
        given = options

        def kept() -> Iterable[Oid]:
            return [*given.roots(), *self._chains.in_base]

        before = self.count()
        result: PackResult = self.changes.pack(
            given.moment,
            lambda data: () if _stands_for_base(data) else given.references(data), given.gc,
            progress=given.progress, keep_old=given.keep_old, dry_run=given.dry_run, roots=kept,
            elsewhere=lambda oid: bool(self._find_in_base(oid) or given.elsewhere(oid)),
        )
        if not given.dry_run:
            with alone():
                self._chains = self._read_chains()
        forgotten = result.objects_before - result.objects_after
        return result._replace(objects_before=before, objects_after=before - forgotten)

    # -- facts, and the end

    def packed_tid(self) -> Tid:
        """See `IPackedTid`: of the base, or of the changes."""
        storages = [s for s in (self.base, self.changes) if IStoragePacked.providedBy(s)]
        return max((storage.packed_tid for storage in storages), default=NO_TID)

    def note_packed(self, tid: Tid) -> None:
        """See `IPackedTid`: the changes note it."""

    def count(self) -> int:
        """See `IEngine`."""
        chains = self._chains
        return len(self.base) + len(chains.tids) - len(chains.in_base)

    def size(self) -> int:
        """See `IEngine`: of the changes."""
        size: int = self.changes.getSize()
        return size

    def close(self) -> None:
        """See `IEngine`."""
        try:
            self.changes.close()
        finally:
            self.base.close()


class _Records:
    """The revisions of a transaction of the changes, decoded."""

    def __init__(self, engine: OverlayEngine, transaction: Any) -> None:
        self._engine = engine
        self._transaction = transaction

    def __iter__(self) -> Iterator[RevisionRecord]:
        for found in self._transaction:
            yield RevisionRecord(
                found.oid, found.tid, self._engine._shown(found.oid, found.data), found.version,
                found.data_txn or _in_base(found.data),
            )


def _in_base(data: bytes | None) -> Tid | None:
    """Return the tid of the base's revision named in *data* of the changes, or None."""
    if data is not None and len(data) == _AS_IN_BASE_BYTES and data[:2] == _AS_IN_BASE:
        return data[2:]
    return None


def _stands_for_base(data: bytes) -> bool:
    return data == _GONE or _in_base(data) is not None
