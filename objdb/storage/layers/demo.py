"""Changes over a storage that is never written: to try things out, in tests and demonstrations.

    load        the changes have the object   ─► what they have, deletions too
                else                          ─► what the base has
    store …     to the changes

    push()      another one over this: what it changes can be thrown away by itself
    pop()       throw it away

All that can be undone, and packed, is what was changed. What an object was in the base shows again
when its first change is undone.

What the changes cannot say of the base is in records of two kinds that are no objects':

    .-       the object, which the base has, is un-created (a pack would forget that it was there)
    .< tid   it is as in the base's revision tid again: its first change was undone
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zope.interface import directlyProvides

from objdb.errors import POSKeyError, ReadOnlyError, UndoError, Unsupported, UsageError
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, format_tid, next_tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePacked,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import Repeat, Staged, TransactionMetaData
from objdb.storage.iteration import RevisionRecord, TransactionRecord
from objdb.storage.layers.chains import Chains, InBase
from objdb.storage.memory import MappingStorage
from objdb.storage.packing import Elsewhere, PackResult, Progress, References, no_roots
from objdb.storage.undo import Change, UndoableStorage

_GONE, _AS_IN_BASE = b".-", b".<"
_AS_IN_BASE_BYTES = 10
_NEEDED = IStorageRestoreable, IStorageIteration, IStorageHistory  # of the changes


class DemoStorage(UndoableStorage):
    """Shows *base*, and keeps what is changed in *changes*: a storage with history that takes
    copies of transactions and lists them, by default one in memory.

    `base` and `changes` are those two; closing closes both. Nobody may write to *base* meanwhile.
    Kept changes, in a file, go on over the same base when they are opened with it again. Takes
    memory for every object changed.

    `Unsupported` for *changes* of another kind; `UsageError` if they belong to another base.
    """

    def __init__(self, base: Any, changes: Any = None) -> None:
        if not IStorage.providedBy(base):
            raise UsageError(f"{base!r} is no storage to try changes over")
        changes = MappingStorage("changes") if changes is None else changes
        if not all(interface.providedBy(changes) for interface in _NEEDED):
            raise Unsupported(
                f"{changes!r} cannot keep changes: that takes a storage with history that takes "
                "copies of transactions and lists them, as FileStorage and MappingStorage do"
            )
        super().__init__(f"changes over {base.getName()}")
        self.base = base
        self.changes = changes
        self._base_end: Tid = next_tid(base.lastTransaction())
        self._has_versions = IStorageVersions.providedBy(changes)
        self._base_has_versions = self._has_versions and IStorageVersions.providedBy(base)
        directlyProvides(self, *self._declared())
        self._knows_oids = False
        self._packs = 0
        self._chains = self._read_chains()
        self._last_tid = max(base.lastTransaction(), changes.lastTransaction())

    def _declared(self) -> Iterator[Any]:
        yield from (IStorage, IStorageReadChecks, IStorageUndoable, IStoragePacked)
        if IStorageIteration.providedBy(self.base):
            yield from (IStorageIteration, IStorageRestoreable)
        if IStorageHistory.providedBy(self.base):
            yield IStorageHistory
        if self._has_versions:
            yield IStorageVersions
        if IStoragePackable.providedBy(self.changes):
            yield IStoragePackable

    def _read_chains(self) -> Chains:
        chains = Chains(self._find_in_base)
        for transaction in self.changes.iterator():
            if transaction.tid < self._base_end:
                raise UsageError(
                    f"{self.changes.getName()} has a transaction of {format_tid(transaction.tid)}, "
                    f"and {self.base.getName()} goes on until later. Open changes over the base "
                    "that they were made over"
                )
            chains.add(transaction.tid, transaction.status, (
                (r.oid, self._shown(r.oid, r.data), r.version, r.data_txn or _in_base(r.data))
                for r in transaction
            ))
        for oid in chains.tids:
            self._note_oid(oid)
        return chains

    def _shown(self, oid: Oid, data: bytes | None) -> bytes | None:
        """Return the record that the changes' *data* stand for."""
        if data is None or data == _GONE:
            return None
        tid = _in_base(data)
        if tid is None:
            return data
        record: bytes = self.base.loadSerial(oid, tid)
        return record

    # -- one over the other

    def push(self) -> DemoStorage:
        """Return a storage in memory over this one, for changes that can be thrown away."""
        return DemoStorage(self)

    def pop(self) -> Any:
        """Throw the changes away, or close them where they are kept; return the base."""
        self._closed = True
        self.changes.close()
        return self.base

    # -- facts

    def sortKey(self) -> str:
        """See `RevisionStorage.sortKey`: that of the changes, which is what is written."""
        key: str = self.changes.sortKey()
        return key

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`: of the base, or of the changes."""
        storages = [s for s in (self.base, self.changes) if IStoragePacked.providedBy(s)]
        return max((storage.packed_tid for storage in storages), default=NO_TID)

    @property
    def _places(self) -> Any:
        return self._packs

    def __len__(self) -> int:
        chains = self._chains
        return len(self.base) + len(chains.tids) - len(chains.in_base)

    def getSize(self) -> int:
        """Return the size of the changes, in bytes."""
        size: int = self.changes.getSize()
        return size

    def new_oid(self) -> Oid:
        """Return an oid that belongs to no object of the base, nor of the changes. A base that is
        read-only is read through for that, once."""
        if not self._knows_oids:
            self._note_oid(self._last_oid_of_base())
            self._knows_oids = True
        return super().new_oid()

    def _last_oid_of_base(self) -> Oid:
        try:
            oid: Oid = self.base.new_oid()
            return oid
        except ReadOnlyError:
            revisions = (r.oid for transaction in self.base.iterator() for r in transaction)
            return max(revisions, default=bytes(8))

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`: whether the changes have them."""
        return bool(self._has_versions)

    def _require_version(self, version: str) -> None:
        if not self._has_versions:
            raise Unsupported(f"{self.changes.getName()}: versions are not supported")
        super()._require_version(version)

    # -- reading

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

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        self._require_open()
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
            raise POSKeyError(oid, database=self._name)
        assert seen is not None
        return record, seen, self._next(chains, oid, seen, version, i)

    def _load_early(
        self, chains: Chains, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """Return what the base shows, and until when it does here."""
        chain = chains.tids.get(oid, [])
        try:
            found = self._load_base(oid, min(tid, self._base_end), version)
        except POSKeyError:
            if chain:
                return None
            raise POSKeyError(oid, database=self._name) from None
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

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `RevisionStorage.loadSerial`."""
        self._require_open()
        chains = self._chains
        is_here = serial < self._base_end or chains.has(oid, serial)
        record = self._data(chains, oid, serial) if is_here else None
        if record is None:
            raise POSKeyError(oid, database=self._name)
        return record

    def _data(self, chains: Chains, oid: Oid, tid: Tid) -> bytes | None:
        if (oid, tid) in chains.uncreated:
            return None
        if tid < self._base_end:
            record: bytes = self.base.loadSerial(oid, tid)
            return record
        return self._shown(oid, self.changes.loadSerial(oid, tid))

    def _data_at(self, place: Any) -> bytes | None:
        return self._data(self._chains, *place)

    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, tuple[Any, Tid] | None]:
        chains, found = self._chains, {}
        for oid in oids:
            chain = chains.of(oid)
            found[oid] = ((oid, chain[-1]), chain[-1]) if chain else None
        return found

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`: the changes first, then what was in the base."""
        self._require_open()
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
            elif chains.repeats.get(place, MAX_TID) < self._base_end <= entry["tid"]:
                entry["size"] = len(self._data(chains, *place) or b"")
        if not entries:
            raise POSKeyError(oid, database=self._name)
        return entries

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[Any]:
        """See `IStorageIteration`: the base's transactions, then the changes."""
        last = self._last_of_base()
        early = self.base.iterator(start, last if stop is None else min(stop, last))
        return self._joined(early, self.changes.iterator(start, stop))

    def _last_of_base(self) -> Tid:
        return (int.from_bytes(self._base_end, "big") - 1).to_bytes(8, "big")

    def _joined(self, early: Iterable[Any], late: Iterable[Any]) -> Iterator[Any]:
        yield from early
        for found in late:
            yield TransactionRecord(
                found.tid, found.status, found.user, found.description, found.extension_bytes,
                _Records(self, found), found.has_checksum,
            )

    # -- versions

    def _version_of(self, place: Any) -> str:
        self._chains.of(place[0])
        return self._chains.versions.get(place, ("", None))[0]

    def _outside(self, place: Any) -> tuple[Any, Tid] | None:
        tid = self._chains.versions[place][1]
        return None if tid is None else ((place[0], tid), tid)

    def _modified_in(self, version: str) -> dict[Oid, tuple[Any, Tid]]:
        chains = self._chains
        if self._base_has_versions:
            for oid in self.base.objects_in_version(version):
                chains.of(oid)
        return {
            place[0]: (place, place[1]) for place, (own, _) in list(chains.versions.items())
            if own == version and chains.is_current(place)
        }

    def _version_names(self) -> list[str]:
        names = {own for own, _ in list(self._chains.versions.values())}
        if self._base_has_versions:
            names.update(self.base.versions())
        return [name for name in names if self._modified_in(name)]

    def _locked_among(self, entries: dict[Oid, tuple[Any, Tid] | None]) -> dict[Oid, str]:
        versions = self._chains.versions
        return {
            oid: versions[entry[0]][0] for oid, entry in entries.items()
            if entry is not None and entry[0] in versions
        }

    # -- undoing

    def _changes_of(self, tid: Tid) -> list[Change]:
        if NO_TID < tid < self._base_end:
            reason = "it is not one of the changes; the base under them is never written"
            raise UndoError(
                f"transaction {format_tid(tid)} cannot be undone: there is no such transaction, or "
                f"{reason}", tid=tid, reason=reason,
            )
        return super()._changes_of(tid)

    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        found = next(iter(self.changes.iterator(tid, tid)), None)
        if found is None:
            return None
        before = self._chains.before
        return found.status, [Change(r.oid, (r.oid, tid), before(r.oid, tid)) for r in found]

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        chains = self._chains
        record = self._data(chains, *place)
        if record is None:
            return None, None
        oid, tid = place
        while (oid, tid) in chains.repeats:
            tid = chains.repeats[oid, tid]
        return record, tid

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        has_it = self._chains.has(oid, tid) and self._data_at((oid, tid)) == data
        return data, tid if has_it else None

    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        for tid, status, size in reversed(list(self._chains.transactions)):
            if status == "p":
                return
            if status == " " and tid <= (stop or MAX_TID):
                found = next(iter(self.changes.iterator(tid, tid)), None)
                if found is not None:
                    yield tid, found, size

    # -- packing

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> PackResult:
        """See `IStoragePackable`. Packs the changes only: of the base's objects, what was changed
        stays, and with it all that it refers to."""
        self._require_writable()

        def kept() -> Iterable[Oid]:
            return [*(roots or no_roots)(), *self._chains.in_base]

        before = len(self)
        result: PackResult = self.changes.pack(
            time, lambda data: () if _stands_for_base(data) else referencesf(data), gc,
            progress=progress, keep_old=keep_old, dry_run=dry_run, roots=kept,
            elsewhere=lambda oid: bool(self._find_in_base(oid) or (elsewhere and elsewhere(oid))),
        )
        if not dry_run:
            with self._places_lock, self._slot.held():
                self._chains = self._read_chains()
                self._packs += 1
        forgotten = result.objects_before - result.objects_after
        return result._replace(objects_before=before, objects_after=before - forgotten)

    # -- committing

    def _prepare(self, staged: Staged) -> None:
        given, chains = staged.transaction, self._chains
        metadata = TransactionMetaData(given.user, given.description, given.extension_bytes)
        staged.medium = metadata
        try:
            self.changes.tpc_begin(metadata, staged.tid, staged.status)
            for oid, record in staged.records():
                repeat = staged.repeats.get(oid)
                if record is None and oid in chains.in_base:
                    record = _GONE
                elif repeat is not None and repeat < self._base_end:
                    record, repeat = _AS_IN_BASE + repeat, None
                self.changes.restore(
                    oid, staged.tid, record, staged.versions.get(oid, ""), repeat, metadata
                )
            self.changes.tpc_vote(metadata)
        except BaseException:
            self.changes.tpc_abort(metadata)
            raise

    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        is_committed = False

        def committed(tid: Tid) -> None:
            nonlocal is_committed
            is_committed = True
            finished(tid)

        try:
            self.changes.tpc_finish(staged.medium, committed)
        finally:
            if is_committed:  # whatever *finished* raised
                self._show(staged)

    def _show(self, staged: Staged) -> None:
        """Let others see what the changes have committed."""
        tid = staged.tid
        assert tid is not None
        self._chains.add(tid, staged.status, (
            (oid, record, staged.versions.get(oid, ""), staged.repeats.get(oid))
            for oid, record in staged.records()
        ))
        for oid in staged.bases:
            self._note_oid(oid)
        self._last_tid = tid

    def _discard(self, staged: Staged) -> None:
        self.changes.tpc_abort(staged.medium)

    def _close(self) -> None:
        try:
            self.changes.close()
        finally:
            self.base.close()


class _Records:
    """The revisions of a transaction of the changes, as they are shown."""

    def __init__(self, storage: DemoStorage, transaction: Any) -> None:
        self._storage = storage
        self._transaction = transaction

    def __iter__(self) -> Iterator[RevisionRecord]:
        for found in self._transaction:
            yield RevisionRecord(
                found.oid, found.tid, self._storage._shown(found.oid, found.data), found.version,
                found.data_txn or _in_base(found.data),
            )


def _in_base(data: bytes | None) -> Tid | None:
    """Return the tid of the base's revision that *data* of the changes name, if they do."""
    if data is not None and len(data) == _AS_IN_BASE_BYTES and data[:2] == _AS_IN_BASE:
        return data[2:]
    return None


def _stands_for_base(data: bytes) -> bool:
    return data == _GONE or _in_base(data) is not None
