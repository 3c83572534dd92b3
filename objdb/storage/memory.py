"""A storage in memory: the contract at its plainest, with history.

    _revisions    oid -> [(tid, record or None), ...]      oldest first; None: un-created
    _repeats      (oid, tid) -> tid of the revision whose record this one has again
    _versions     (oid, tid) -> (the version it is in, tid of the revision outside or None)
    _transactions [(tid, metadata, [oid, ...]), ...]       oldest first

The place of a revision is (oid, tid).
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from zope.interface import implementer

from objdb.errors import PackError, POSKeyError, Unsupported
from objdb.ids import MAX_TID, NO_TID, Oid, Tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import Repeat, Staged
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry, in_range
from objdb.storage.packing import (
    MOST_PLANS,
    Pacer,
    PackResult,
    Progress,
    References,
    no_roots,
    pack_tid,
    survivors,
)
from objdb.storage.undo import Change, UndoableStorage

_History = list[tuple[Tid, "bytes | None"]]
_Revisions = dict[Oid, _History]
_Transaction = tuple[Tid, Any, list[Oid], str]


class _Packed(NamedTuple):
    """What stays of the transactions up to `upto`; `stays` maps oids to what stays of them at
    the pack time."""

    stays: dict[Oid, list[Tid]]
    revisions: _Revisions
    transactions: list[_Transaction]
    upto: Tid


@implementer(
    IStorage, IStorageReadChecks, IStorageHistory, IStorageIteration, IStorageRestoreable,
    IStorageUndoable, IStorageVersions, IStoragePackable,
)
class MappingStorage(UndoableStorage):
    """Keeps every revision in dicts; gone when the process ends.

    *name* is what errors and statistics call it.
    """

    def __init__(self, name: str = "MappingStorage") -> None:
        super().__init__(name)
        self._revisions: dict[Oid, list[tuple[Tid, bytes | None]]] = {}
        self._repeats: dict[tuple[Oid, Tid], Tid] = {}
        self._versions: dict[tuple[Oid, Tid], tuple[str, Tid | None]] = {}
        self._transactions: list[_Transaction] = []
        self._forgotten: set[tuple[Oid, Tid]] = set()
        self._pack_lock = threading.Lock()
        self._swap_lock = threading.Lock()
        self._packs = 0
        self.packed_tid: Tid = NO_TID

    @property
    def _places(self) -> Any:
        return self._packs

    def __len__(self) -> int:
        """The number of objects."""
        return len(self._revisions)

    def getSize(self) -> int:
        """Return the size of all records, in bytes."""
        return _size_of(self._revisions)

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        self._require_open()
        with self._swap_lock:
            return self._load_before(oid, tid, version)

    def _load_before(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        history = self._revisions.get(oid)
        if history is None:
            raise POSKeyError(oid, database=self._name)
        i = bisect_left(history, (tid,))
        if i == 0 or (i < len(history) and (oid, history[i][0]) in self._forgotten):
            return None
        seen = self._seen(oid, history[i - 1][0], version)
        record = None if seen is None else self._data_at((oid, seen))
        if record is None:
            raise POSKeyError(oid, database=self._name)
        assert seen is not None
        later = (tid for tid, _ in history[i:] if self._seen(oid, tid, version) != seen)
        return record, seen, next(later, None)

    def _seen(self, oid: Oid, tid: Tid, version: str) -> Tid | None:
        """Return the tid of the revision that is seen in *version* when *tid* is current."""
        own, outside = self._versions.get((oid, tid), ("", None))
        return outside if own and own != version else tid

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `RevisionStorage.loadSerial`."""
        history = self._revisions.get(oid, [])
        found = history[bisect_left(history, (serial,)) :][:1]
        if not found or found[0][0] != serial or found[0][1] is None:
            raise POSKeyError(oid, database=self._name)
        return found[0][1]

    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, tuple[Any, Tid] | None]:
        return {oid: self._current(oid) for oid in oids}

    def _current(self, oid: Oid) -> tuple[Any, Tid] | None:
        history = self._revisions.get(oid)
        return None if history is None else ((oid, history[-1][0]), history[-1][0])

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        with self._swap_lock:
            return self._history(oid, size)

    def _history(self, oid: Oid, size: int) -> list[dict[str, Any]]:
        revisions = list(self._revisions.get(oid, ()))
        metadata = {tid: transaction for tid, transaction, _, _ in list(self._transactions)}
        # One that is being committed at this moment has no transaction yet.
        entries = [
            history_entry(
                tid, metadata[tid], len(record or b""), self._version_of((oid, tid))
            )
            for tid, record in reversed(revisions) if tid in metadata
        ]
        if not entries:
            raise POSKeyError(oid, database=self._name)
        return entries[:size]

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[TransactionRecord]:
        """See `IStorageIteration`."""
        with self._swap_lock:
            revisions, transactions = self._revisions, list(self._transactions)
            repeats, versions = self._repeats, self._versions
        for tid, metadata, oids, status in transactions:
            if in_range(tid, start, stop):
                records = [
                    RevisionRecord(
                        oid, tid, _record_of(revisions[oid], tid),
                        versions.get((oid, tid), ("", None))[0], repeats.get((oid, tid)),
                    )
                    for oid in oids
                ]
                yield TransactionRecord.of(tid, status, metadata, records)

    # -- versions

    def _version_of(self, place: Any) -> str:
        return self._versions.get(place, ("", None))[0]

    def _outside(self, place: Any) -> tuple[Any, Tid] | None:
        tid = self._versions[place][1]
        return None if tid is None else ((place[0], tid), tid)

    def _modified_in(self, version: str) -> dict[Oid, tuple[Any, Tid]]:
        with self._swap_lock:
            return {
                place[0]: (place, place[1]) for place, (own, _) in list(self._versions.items())
                if own == version and self._is_current(place)
            }

    def _version_names(self) -> list[str]:
        with self._swap_lock:
            items = list(self._versions.items())
            return list({own for place, (own, _) in items if self._is_current(place)})

    def _is_current(self, place: tuple[Oid, Tid]) -> bool:
        return self._revisions[place[0]][-1][0] == place[1]

    def _locked_among(self, entries: dict[Oid, tuple[Any, Tid] | None]) -> dict[Oid, str]:
        versions = self._versions
        if not versions:
            return {}
        return {
            oid: versions[entry[0]][0] for oid, entry in entries.items()
            if entry is not None and entry[0] in versions
        }

    # -- undoing

    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        i = bisect_left(self._transactions, tid, key=itemgetter(0))
        if i == len(self._transactions) or self._transactions[i][0] != tid:
            return None
        _, _, oids, status = self._transactions[i]
        return status, [Change(oid, (oid, tid), self._place_before(oid, tid)) for oid in oids]

    def _place_before(self, oid: Oid, tid: Tid) -> tuple[Oid, Tid] | None:
        history = self._revisions[oid]
        i = bisect_left(history, (tid,))
        return (oid, history[i - 1][0]) if i else None

    def _data_at(self, place: Any) -> bytes | None:
        oid, tid = place
        return _record_of(self._revisions[oid], tid)

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        record = self._data_at(place)
        if record is None:
            return None, None
        oid, tid = place
        while (oid, tid) in self._repeats:
            tid = self._repeats[oid, tid]
        return record, tid

    def _again(
        self, entries: dict[Oid, tuple[Any, Tid]]
    ) -> tuple[dict[Oid, bytes | None], dict[Oid, Repeat]]:
        records = {oid: self._data_at(place) for oid, (place, _) in entries.items()}
        repeats: dict[Oid, Repeat] = {
            oid: tid for oid, (_, tid) in entries.items() if records[oid] is not None
        }
        return records, repeats

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        history = self._revisions.get(oid, [])
        has_it = (tid, data) in history[bisect_left(history, (tid,)) :][:1]
        return data, tid if has_it else None

    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        transactions = self._transactions
        i = len(transactions)
        if stop is not None:
            i = bisect_right(transactions, stop, key=itemgetter(0))
        while i:
            i -= 1
            tid, metadata, oids, status = transactions[i]
            if status == "p":
                return
            if status == " ":
                yield tid, metadata, sum(len(self._data_at((oid, tid)) or b"") for oid in oids)

    # -- packing

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
    ) -> PackResult:
        """See `IStoragePackable`. There is no place to keep the old revisions in."""
        self._require_writable()
        if keep_old:
            raise Unsupported(f"{self._name} is in memory: there is no old file to keep")
        if not self._pack_lock.acquire(blocking=False):
            raise PackError(f"{self._name} is being packed already. Wait until that has ended")
        try:
            before = self.getSize(), len(self)
            pack_to = min(pack_tid(time, self._last_tid), self._last_tid)
            pacer = Pacer(progress, self._require_open)
            for attempt in range(MOST_PLANS + 1):
                collects = gc and attempt < MOST_PLANS
                packed = self._plan(
                    pack_to, referencesf if collects else None, roots or no_roots, pacer
                )
                if dry_run:
                    after = _size_of(packed.revisions), len(packed.revisions)
                    return PackResult(before[0], after[0], before[1], after[1])
                with self._places_lock, self._slot.held():
                    if self._forget(packed, pack_to, referencesf):
                        break
            return PackResult(before[0], self.getSize(), before[1], len(self))
        finally:
            self._pack_lock.release()

    def _plan(
        self, pack_to: Tid, references: References | None, roots: Callable[[], Iterable[Oid]],
        pacer: Pacer,
    ) -> _Packed:
        """Return what stays; of all objects that exist, without *references*."""
        transactions = list(self._transactions)
        upto = transactions[-1][0] if transactions else NO_TID
        later = ((oid, tid) for tid, _, oids, _ in transactions if tid > pack_to for oid in oids)
        stays: dict[Oid, list[Tid]] = {}
        for oid, tids in survivors(
            lambda oid: self._at(oid, pack_to),
            ((oid, self._data_at((oid, tid)) or b"") for oid, tid in later),
            references or (lambda record: ()),
            list(self._revisions) if references is None else roots(),
        ):
            stays[oid] = tids
            pacer.report("mark", len(stays), max(len(self._revisions), len(stays)))
            pacer.pace()
        revisions: _Revisions = {}
        kept: list[_Transaction] = []
        last = max((tid for tid, _, _, _ in transactions if tid <= pack_to), default=NO_TID)
        for tid, metadata, oids, status in transactions:
            left = [oid for oid in oids if tid > pack_to or tid in stays.get(oid, ())]
            for oid in left:
                revisions.setdefault(oid, []).append((tid, self._data_at((oid, tid))))
            if left or tid >= last:
                kept.append((tid, metadata, left, status if tid > pack_to else "p"))
            pacer.pace()
        pacer.report("copy", len(stays), len(stays))
        return _Packed(stays, revisions, kept, upto)

    def _at(self, oid: Oid, pack_to: Tid) -> list[tuple[Tid, bytes | None]]:
        """Return what stays of an object if it does: the revision current at the pack time; if
        that is in a version, the one that is seen outside; and orphans."""
        history = self._revisions.get(oid, [])
        at = bisect_right(history, pack_to, key=itemgetter(0))
        wanted = self._orphans(oid, history[max(at - 1, 0) :], pack_to)
        if at:
            tid, record = history[at - 1]
            wanted |= self._outside_tids((oid, tid))
            if wanted or record is not None:
                wanted.add(tid)
        return [revision for revision in history[:at] if revision[0] in wanted]

    def _orphans(self, oid: Oid, later: _History, pack_to: Tid) -> set[Tid]:
        """Return the revisions, up to the pack time, that *later* ones bring back to a version,
        and what was outside of them."""
        found: set[Tid] = set()
        versions = self._versions
        for (before, _), (tid, _) in pairwise(later):
            target = oid, self._repeats.get((oid, tid), MAX_TID)
            is_brought_back = (oid, tid) in versions and (oid, before) not in versions
            if is_brought_back and target in versions and target[1] <= pack_to < tid:
                found |= {target[1]} | self._outside_tids(target)
        return found

    def _outside_tids(self, place: tuple[Oid, Tid]) -> set[Tid]:
        """Return the tid of what is outside of a revision in a version, if that exists."""
        outside = self._versions.get(place, ("", None))[1]
        exists = outside is not None and self._data_at((place[0], outside)) is not None
        return {outside} if outside is not None and exists else set()

    def _forget(self, packed: _Packed, pack_to: Tid, references: References) -> bool:
        """Let only stay what was planned, and what was committed meanwhile; False if that
        reaches more. The slot is held."""
        stays, revisions, kept, upto = packed
        later = self._transactions[bisect_right(self._transactions, upto, key=itemgetter(0)) :]
        for tid, _, oids, _ in later:
            for oid in oids:
                data = self._data_at((oid, tid))
                for reached in (oid, *(references(data) if data else ())):
                    if [tid for tid, _ in self._at(reached, pack_to)] != stays.get(reached, []):
                        return False
        for transaction in later:
            for oid in transaction[2]:
                entry = transaction[0], self._data_at((oid, transaction[0]))
                revisions.setdefault(oid, []).append(entry)
            kept.append(transaction)
        with self._swap_lock:
            self._keep_facts(revisions)
            self._forgotten.update(
                (oid, tid) for oid, tids in stays.items() for before, tid in pairwise(tids)
                if self._place_before(oid, tid) != (oid, before)
            )
            self._revisions, self._transactions = revisions, kept
            self._packs += 1
            self.packed_tid = pack_to
        return True

    def _keep_facts(self, revisions: _Revisions) -> None:
        """Forget what is known of revisions that go."""
        def stays(oid: Oid, tid: Tid | None) -> bool:
            history = revisions.get(oid, ())
            at = bisect_left(history, tid or NO_TID, key=itemgetter(0))
            return at < len(history) and history[at][0] == tid

        self._repeats = {
            (oid, tid): target for (oid, tid), target in self._repeats.items()
            if stays(oid, tid) and stays(oid, target)
        }
        self._versions = {
            (oid, tid): (version, outside if stays(oid, outside) else None)
            for (oid, tid), (version, outside) in self._versions.items() if stays(oid, tid)
        }

    # -- committing

    def _prepare(self, staged: Staged) -> None:
        pass

    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        tid = staged.tid
        assert tid is not None
        try:
            finished(tid)
        finally:
            oids = []
            for oid, record in staged.records():
                if oid in staged.repeats:
                    self._repeats[oid, tid] = staged.repeats[oid]
                if oid in staged.versions:
                    self._versions[oid, tid] = staged.versions[oid], self._outside_tid(staged, oid)
                self._revisions.setdefault(oid, []).append((tid, record))
                self._note_oid(oid)
                oids.append(oid)
            self._transactions.append((tid, staged.transaction, oids, staged.status))
            self._last_tid = tid

    def _outside_tid(self, staged: Staged, oid: Oid) -> Tid | None:
        """Return the tid of what is seen outside when the staged revision, in a version, is
        current: see `versions`."""
        history = self._revisions.get(oid)
        if history is None:
            return None
        current = oid, history[-1][0]
        repeat: Tid = staged.repeats.get(oid, MAX_TID)
        if current not in self._versions and (oid, repeat) in self._versions:
            return self._versions[oid, repeat][1]
        return self._seen(*current, "")

    def _discard(self, staged: Staged) -> None:
        pass

    def _close(self) -> None:
        """Keep the data: a storage in memory can be looked at after its database closed."""


def _size_of(revisions: _Revisions) -> int:
    histories = list(revisions.values())  # another may be committing
    return sum(len(record or b"") for history in histories for _, record in history)


def _record_of(history: _History, tid: Tid) -> bytes | None:
    return history[bisect_left(history, (tid,))][1]
