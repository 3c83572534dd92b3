"""A storage whose revisions and transactions are rows of tables, with everything built on them.

    revisions      oid, tid ─► Row             what an object was from that transaction on
    transactions   tid      ─► TransactionRow  what a transaction was told to be, and its oids

Reading bounds every search by what others may see already, so a row can be on the medium before
its transaction is finished. Packing takes rows away, a batch at a time; a row whose predecessor
went that way says so, and what is in the gap is gone (`loadBefore` gives None), not something
else.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from zope.interface import implementer

from objdb.errors import CorruptedDataError, POSKeyError, Unsupported
from objdb.ids import LAST_TID, NO_TID, Oid, Tid, format_tid, next_tid, tid_after
from objdb.interfaces import (
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageIteration,
    IStoragePackable,
    IStorageReadChecks,
    IStorageRestoreable,
)
from objdb.storage.commit import Repeat, Staged
from objdb.storage.iteration import TransactionRecord, history_entry
from objdb.storage.tables.pack import TablePack
from objdb.storage.tables.rows import Place, Row, TransactionRow
from objdb.storage.tables.view import CurrentView, View
from objdb.storage.undo import Change, UndoableStorage

Entry = tuple[Place, Tid]


@implementer(
    IStorage, IStorageReadChecks, IStorageIteration, IStorageCurrentRecordIteration,
    IStorageRestoreable, IStoragePackable,
)
class TableStorage(TablePack, UndoableStorage):
    """Base of storages that keep rows. The primitives a subclass supplies:

    * `_row(oid, tid)`, `_row_before(oid, tid)`, `_row_after(oid, tid)`: one row of an object: that
      one, the last before it, the first after it; None if there is none
    * `_find_current(oids)`: oid: (its `Place`, tid), or None, of the last row of each: what
      `_entry(oid, row)` makes
    * `_places_in_versions()`: of all objects whose last row is in a version, the place of that
    * `_transaction(tid)`, `_iter_transactions(start, stop, newest_first)`: rows of transactions
    * `_iter_chains()`: (oid, [(tid, size of the record in bytes), …]), oldest first, of all objects
    * `_write(transaction, rows, replaced)`: write a transaction, undecided, and its (oid, `Row`)
      pairs; *replaced* are the oids that have a row already. `_decide()`: make it durable;
      `_take_back()`: forget what was written, if anything
    * `_amend(rows, transactions)`: change, or where the value is None remove, rows by (oid, tid),
      and transactions by tid, all of them or none; nobody commits meanwhile
    * `getSize`, `__len__`, `_close`; `_has_versions`, for faster packs

    They go by what is decided, visible or not. Those that read are called by any thread at any
    time; those that write, by one at a time. When it is opened, a storage that finds something
    calls `_note_oid(oid)` for each object, and `_publish(tid)` with the last transaction;
    `_note_oid` for new objects as well, in `_decide`.

    A subclass that keeps history declares `IStorageHistory`, `IStorageUndoable` and
    `IStorageVersions`, for which all is here. With *keeps_history* false old revisions stay only
    while somebody may read them; it supplies `_prune(horizon)` then, and calls `_forget_old`.
    `docs/writing-a-storage.md` builds one; `memory` is another.
    """

    def __init__(
        self, name: str, *, read_only: bool = False, keeps_history: bool = True,
        path: str | None = None,
    ) -> None:
        super().__init__(name, read_only=read_only, path=path)
        self._keeps_history = keeps_history
        self._visible_before: Tid = next_tid(NO_TID)
        self._pack_lock = threading.Lock()
        self._views: WeakSet[View] = WeakSet()
        self._db: Any = None
        self._pruned_tid: Tid = NO_TID
        # Whether the medium has checksums of the rows, which are verified; None without a medium.
        self._has_checksums: bool | None = None

    @abstractmethod
    def _row(self, oid: Oid, tid: Tid) -> Row | None:
        """Return the revision of *oid* that the transaction *tid* wrote."""

    @abstractmethod
    def _row_before(self, oid: Oid, tid: Tid) -> Row | None:
        """Return the last revision of *oid* before *tid*."""

    @abstractmethod
    def _row_after(self, oid: Oid, tid: Tid) -> Row | None:
        """Return the first revision of *oid* after *tid*."""

    @abstractmethod
    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, Entry | None]:
        """Return the last revision of each object."""

    @abstractmethod
    def _places_in_versions(self) -> list[Place]:
        """Return the last revisions that are in a version."""

    @abstractmethod
    def _transaction(self, tid: Tid) -> TransactionRow | None:
        """Return a transaction."""

    @abstractmethod
    def _iter_transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """Yield the transactions with *start* <= tid <= *stop*."""

    @abstractmethod
    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]], replaced: list[Oid]
    ) -> None:
        """Write a transaction, undecided. Everything that can fail happens here."""

    @abstractmethod
    def _decide(self) -> None:
        """Make what was written durable."""

    @abstractmethod
    def _take_back(self) -> None:
        """Forget what was written."""

    def registerDB(self, db: Any) -> None:
        """Take from *db* the function that resolves conflicts; ask it what is being read, and
        tell it of what others do, where it knows these."""
        super().registerDB(db)
        self._db = db

    def _alone(self) -> AbstractContextManager[None]:
        """Hold the slot, without a transaction, to amend rows."""
        return self._slot.held()

    # -- reading

    def _publish(self, tid: Tid) -> None:
        """Let others see everything up to the transaction *tid*."""
        if tid > LAST_TID:
            raise CorruptedDataError(
                f"{self._name} is damaged: its last transaction has the tid {format_tid(tid)}, "
                "which is beyond the range of tids. Restore a backup", path=self._name,
            )
        self._visible_before = next_tid(tid)
        self._last_tid = tid

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        self._require_open()
        row = self._row_before(oid, min(tid, self._visible_before))
        if row is None:
            self._require_object(oid)
            return None
        following = self._row_after(oid, row.tid)
        if following is not None and following.follows_gap:
            return None
        seen = row
        if row.version and row.version != version:
            outside = None if row.outside is None else self._row(oid, row.outside)
            seen = row._replace(data=None) if outside is None else outside
        if seen.data is None:
            raise POSKeyError(oid, database=self._name)
        while following is not None and following.version not in ("", version):
            if following.outside != seen.tid:
                break
            following = self._row_after(oid, following.tid)
        until = None if following is None else following.tid
        if until is not None and until >= self._visible_before:
            until = None
        return seen.data, seen.tid, until

    def _require_object(self, oid: Oid) -> None:
        first = self._row_after(oid, NO_TID)
        is_seen = first is not None and first.tid < self._visible_before
        # Else another process may have packed away what is seen.
        if not is_seen and (first is None or not self._is_foreign(first.tid)):
            raise POSKeyError(oid, database=self._name)

    def _is_foreign(self, tid: Tid) -> bool:
        """Whether another process committed a transaction that is not visible here yet."""
        return False

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `RevisionStorage.loadSerial`."""
        self._require_open()
        row = self._row(oid, serial) if serial < self._visible_before else None
        if row is None or row.data is None:
            raise POSKeyError(oid, database=self._name)
        return row.data

    def _load_decided(self, oid: Oid, tid: Tid) -> bytes:
        row = self._row(oid, tid)
        if row is None or row.data is None:
            raise POSKeyError(oid, database=self._name)
        return row.data

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        self._require_history("its revisions cannot be listed")
        entries: list[dict[str, Any]] = []
        row = self._row_before(oid, self._visible_before)
        if row is None:
            raise POSKeyError(oid, database=self._name)
        while row is not None and len(entries) < size:
            transaction = self._transaction(row.tid)
            if transaction is not None:  # else it was packed away just now
                entries.append(
                    history_entry(row.tid, transaction, len(row.data or b""), row.version)
                )
            row = self._row_before(oid, row.tid)
        return entries

    def _iter_oids(self) -> Iterator[Oid]:
        return (oid for oid, _ in self._iter_chains())

    def _iter_newest(self) -> Iterator[tuple[Tid, list[Oid]]]:
        for row in self._iter_transactions(NO_TID, self._last_tid, newest_first=True):
            yield row.tid, row.oids

    def iterator(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[TransactionRecord]:
        """See `IStorageIteration`."""
        last = self._last_tid if stop is None else min(stop, self._last_tid)
        kind = View if self._keeps_history else CurrentView
        view = kind(self, NO_TID if start is None else start, last)
        with self._places_lock:
            self._views.add(view)
        return iter(view)

    def _require_history(self, what: str) -> None:
        if not self._keeps_history:
            raise Unsupported(
                f"{self._name} keeps no history, so {what}. Copy it to a storage with "
                "history=True to have that from then on"
            )

    # -- without history

    if TYPE_CHECKING:

        def _prune(self, horizon: Tid) -> Tid:
            """Remove what has been replaced up to the transaction *horizon*, and the transactions
            up to then, but not the last one; or some of it, and return up to where. Alone."""

    def _forget_old(self, keep_seconds: float) -> None:
        """Remove old revisions that nobody reads (called now and then, without history).

        What is read is what connections of this process's database see, and, in others, what
        they have seen for at most *keep_seconds*.
        """
        horizon = self._last_tid
        if keep_seconds:
            horizon = min(horizon, tid_after(NO_TID, time.time() - keep_seconds))
        if hasattr(self._db, "oldest_view"):
            horizon = min(horizon, self._db.oldest_view())
        while horizon > self._pruned_tid:
            with self._places_lock, self._alone():
                self._note_packed(horizon)
                self._pruned_tid = self._prune(horizon)

    # -- versions

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`."""
        return self._keeps_history

    def _require_version(self, version: str) -> None:
        self._require_history("there are no versions")
        super()._require_version(version)

    def _version_of(self, place: Any) -> str:
        version: str = place.version
        return version

    def _outside(self, place: Any) -> Entry | None:
        row = self._row(place.oid, place.tid)
        if row is None or row.outside is None:
            return None
        outside = self._row(place.oid, row.outside)
        return None if outside is None else self._entry(place.oid, outside)

    def _entry(self, oid: Oid, row: Row) -> Entry:
        return Place(oid, row.tid, row.version), row.tid

    def _modified_in(self, version: str) -> dict[Oid, Entry]:
        places = self._places_in_versions()
        return {place.oid: (place, place.tid) for place in places if place.version == version}

    def _version_names(self) -> list[str]:
        return list({place.version for place in self._places_in_versions()})

    def _locked_among(self, entries: dict[Oid, Entry | None]) -> dict[Oid, str]:
        return {
            oid: entry[0].version for oid, entry in entries.items()
            if entry is not None and entry[0].version
        }

    # -- undoing

    def supportsUndo(self) -> bool:
        """See `IStorageUndoable`."""
        return self._keeps_history

    def _changes_of(self, tid: Tid) -> list[Change]:
        self._require_history("nothing can be undone")
        return super()._changes_of(tid)

    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        found = self._transaction(tid)
        if found is None:
            return None
        rows = ((oid, self._row(oid, tid)) for oid in found.oids)
        return found.status, [
            Change(oid, self._entry(oid, row)[0], self._place_before(oid, tid))
            for oid, row in rows if row is not None
        ]

    def _place_before(self, oid: Oid, tid: Tid) -> Place | None:
        before = self._row_before(oid, tid)
        return None if before is None else self._entry(oid, before)[0]

    def _data_at(self, place: Any) -> bytes | None:
        row = self._row(place.oid, place.tid)
        return None if row is None else row.data

    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        row = self._row(place.oid, place.tid)
        if row is None or row.data is None:
            return None, None
        data, tid = row.data, row.tid
        while row is not None and row.repeat is not None:
            row = self._row(place.oid, row.repeat)
            tid = tid if row is None else row.tid
        return data, tid

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        row = self._row(oid, tid)
        return data, tid if row is not None and row.data == data else None

    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        self._require_history("nothing can be undone")
        last = self._last_tid if stop is None else min(stop, self._last_tid)
        for row in self._iter_transactions(NO_TID, last, newest_first=True):
            if row.status == "p":
                return
            if row.status == " ":
                yield row.tid, row, row.size

    # -- committing

    def _prepare(self, staged: Staged) -> None:
        assert staged.tid is not None
        metadata = staged.transaction
        transaction = TransactionRow(
            staged.tid, staged.status, metadata.user, metadata.description,
            metadata.extension_bytes, list(staged.bases), staged.record_bytes,
        )
        replaced = [oid for oid, entry in staged.current.items() if entry is not None]
        if staged.versions or staged.repeats:
            self._write(transaction, self._rows_of(staged, staged.tid), replaced)
        else:
            self._write_plain(transaction, staged.records(), replaced)

    def _write_plain(
        self, transaction: TransactionRow, records: Iterable[tuple[Oid, bytes | None]],
        replaced: list[Oid],
    ) -> None:
        """Write a transaction with rows that have a record, or none, and nothing else."""
        tid = transaction.tid
        self._write(transaction, ((oid, Row(tid, record)) for oid, record in records), replaced)

    def _rows_of(self, staged: Staged, tid: Tid) -> Iterator[tuple[Oid, Row]]:
        versions, repeats = staged.versions, staged.repeats
        for oid, record in staged.records():
            version = versions.get(oid, "")
            outside = self._outside_tid(staged, oid) if version else None
            yield oid, Row(tid, record, version, outside, repeats.get(oid))

    def _outside_tid(self, staged: Staged, oid: Oid) -> Tid | None:
        """Return the tid of what is seen outside when the staged revision, in a version, is
        current: see `versions`."""
        entry = staged.current.get(oid)
        if entry is None:
            return None
        place, tid = entry
        before = self._row(oid, tid) if place.version else None
        if before is None and oid in staged.repeats:
            before = self._row(oid, staged.repeats[oid])
        if before is not None and before.version:
            return before.outside
        return tid

    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        assert staged.tid is not None
        self._decide()
        try:
            finished(staged.tid)
        finally:
            self._show(staged.tid)

    def _show(self, tid: Tid) -> None:
        """Let others see the transaction of this process that was decided."""
        self._publish(tid)

    def _discard(self, staged: Staged) -> None:
        self._take_back()

    def _give_up(self, staged: Staged) -> None:
        try:
            self._take_back()
        finally:
            super()._give_up(staged)
