"""A storage in memory: the contract at its plainest, with history.

    _revisions    oid -> [(tid, record or None), ...]      oldest first; None: un-created
    _repeats      (oid, tid) -> tid of the revision whose record this one has again
    _versions     (oid, tid) -> (the version it is in, tid of the revision outside or None)
    _transactions [(tid, metadata, [oid, ...]), ...]       oldest first

The place of a revision is (oid, tid).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

from zope.interface import implementer

from objdb.errors import POSKeyError
from objdb.ids import Oid, Tid
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import Repeat, Staged
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry, in_range
from objdb.storage.undo import Change, UndoableStorage


@implementer(
    IStorage, IStorageReadChecks, IStorageHistory, IStorageIteration, IStorageRestoreable,
    IStorageUndoable, IStorageVersions,
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
        self._transactions: list[tuple[Tid, Any, list[Oid], str]] = []

    def __len__(self) -> int:
        """The number of objects."""
        return len(self._revisions)

    def getSize(self) -> int:
        """Return the size of all records, in bytes."""
        revisions = list(self._revisions.values())  # another may be committing
        return sum(len(record or b"") for history in revisions for _, record in history)

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        self._require_open()
        history = self._revisions.get(oid)
        if history is None:
            raise POSKeyError(oid, database=self._name)
        i = bisect_left(history, (tid,))
        if i == 0:
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
        for tid, metadata, oids, status in list(self._transactions):
            if in_range(tid, start, stop):
                records = [self._revision_record(oid, tid) for oid in oids]
                yield TransactionRecord.of(tid, status, metadata, records)

    def _revision_record(self, oid: Oid, tid: Tid) -> RevisionRecord:
        place = oid, tid
        return RevisionRecord(
            oid, tid, self._data_at(place), self._version_of(place), self._repeats.get(place)
        )

    # -- versions

    def _version_of(self, place: Any) -> str:
        return self._versions.get(place, ("", None))[0]

    def _outside(self, place: Any) -> tuple[Any, Tid] | None:
        tid = self._versions[place][1]
        return None if tid is None else ((place[0], tid), tid)

    def _modified_in(self, version: str) -> dict[Oid, tuple[Any, Tid]]:
        return {
            place[0]: (place, place[1]) for place, (own, _) in list(self._versions.items())
            if own == version and self._is_current(place)
        }

    def _version_names(self) -> list[str]:
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
        history = self._revisions[oid]
        return history[bisect_left(history, (tid,))][1]

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        record = self._data_at(place)
        if record is None:
            return None, None
        oid, tid = place
        while (oid, tid) in self._repeats:
            tid = self._repeats[oid, tid]
        return record, Repeat(tid, 0)

    def _again(self, place: Any, tid: Tid) -> tuple[bytes | None, Repeat | None]:
        record = self._data_at(place)
        return record, None if record is None else Repeat(tid, 0)

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        history = self._revisions.get(oid, [])
        has_it = (tid, data) in history[bisect_left(history, (tid,)) :][:1]
        return data, Repeat(tid, 0) if has_it else None

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
                    self._repeats[oid, tid] = staged.repeats[oid].tid
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
        repeat = staged.repeats.get(oid)
        if current not in self._versions and repeat and (oid, repeat.tid) in self._versions:
            return self._versions[oid, repeat.tid][1]
        return self._seen(*current, "")

    def _discard(self, staged: Staged) -> None:
        pass

    def _close(self) -> None:
        """Keep the data: a storage in memory can be looked at after its database closed."""
