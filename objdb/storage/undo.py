"""Undoing transactions: for each object that one changed, what a new transaction makes of it.

    before ───► undone ───► … ───► current
      ▲                                │
      └────────── result ◄─────────────┘

    the current data is                   the result is
    what was undone, or equal to it       what was before; un-created where that is nothing
    something else                        _p_resolveConflict(undone, current, before)
    gone, or something else that cannot
      be merged                           an obstacle: `UndoError`, and nothing is changed

`undo` plans all objects first, and stages their results if none has an obstacle, each made from
the revision that was current then. At the vote, with the commit slot held, it is seen whether
one of them was changed meanwhile; if so, everything is planned again.

Undoing is a transaction like others, so that undoing it is redoing. Several transactions undone
in one see what those before them made.
"""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from objdb.errors import ConflictError, MultipleUndoErrors, UndoError, Unsupported
from objdb.ids import ROOT_OID, Oid, Tid, format_oid, format_tid, tid_from_text
from objdb.storage.commit import Repeat, Staged, TransactionMetaData
from objdb.storage.iteration import undo_entry
from objdb.storage.listing import RecordWalk, last_transactions
from objdb.storage.spans import span
from objdb.storage.versions import Entry, VersionedStorage

Filter = Callable[[dict[str, Any]], Any]
_MOST_LISTED = 20  # obstacles in a message


class Change(NamedTuple):
    """A revision to be undone: where it is, and where the one before it is (None: nowhere)."""

    oid: Oid
    place: Any
    before: Any


class UndoneObject(NamedTuple):
    """What undoing does to an object: its record now and then (None: there is none), or what
    stands in the way. Without an oid: what stands in the way of all."""

    oid: Oid | None
    now: bytes | None
    then: bytes | None
    obstacle: str | None = None


def transaction_id(tid: Tid) -> str:
    """Return the id by which undoLog names a transaction."""
    return base64.urlsafe_b64encode(tid).decode("ascii")


def tid_from_id(transaction_id: Any) -> Tid:
    """Return the tid that an id stands for, as text or bytes; a tid, or its hexadecimal digits,
    is one itself. `UndoError` for what is neither."""
    if isinstance(transaction_id, bytes) and len(transaction_id) == 8:
        return transaction_id
    text = transaction_id
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    tid = tid_from_text(text) if isinstance(text, str) else None
    if tid is None:
        raise UndoError(
            f"{transaction_id!r} is no id of a transaction. Take one from undoLog",
            reason="it is no id of a transaction",
        )
    return tid


class UndoableStorage(VersionedStorage):
    """Base of storages that can undo. Further primitives:

    * `_find_transaction(tid)`: (status, what it changed); None if there is no such transaction
    * `_data_at(place)`: the record at a place, as in `_find_current`; None if it un-creates
    * `_iter_undoable(stop)`: the transactions with tid <= *stop* (None: all), newest first, up
      to the first that is packed: each as (tid, metadata, size in bytes)

    * for a storage that declares `IStorageCurrentRecordIteration`, `_iter_oids()`: the oids of all
      objects; `_iter_newest()`: (tid, oids) of all transactions, newest first

    `_again` is here for storages whose repeats are tids.
    """

    _walk: RecordWalk | None = None

    @abstractmethod
    def _find_transaction(self, tid: Tid) -> tuple[str, list[Change]] | None:
        """Return the transaction's status, and the changes in it."""

    @abstractmethod
    def _data_at(self, place: Any) -> bytes | None:
        """Return the record at *place*; None if it un-creates the object."""

    @abstractmethod
    def _iter_undoable(self, stop: Tid | None) -> Iterator[tuple[Tid, Any, int]]:
        """Yield (tid, metadata, size), newest first."""

    def record_iternext(self, next: Oid | None = None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """See `IStorageCurrentRecordIteration`."""
        self._require_open()
        if self._walk is None:
            self._walk = RecordWalk(self)
        return self._walk.step(next)

    def lastInvalidations(self, count: int) -> list[tuple[Tid, list[Oid]]]:
        """See `IStorageCurrentRecordIteration`."""
        self._require_open()
        return last_transactions(self, count)

    def _iter_oids(self) -> Iterator[Oid]:
        """Yield the oids of all objects."""
        raise Unsupported(f"{self._name} does not list its objects one by one")

    def _iter_newest(self) -> Iterator[tuple[Tid, list[Oid]]]:
        """Yield (tid, oids) of all transactions, newest first."""
        raise Unsupported(f"{self._name} does not list its last transactions")

    def _again(
        self, entries: dict[Oid, Entry]
    ) -> tuple[dict[Oid, bytes | None], dict[Oid, Repeat]]:
        records = {oid: self._data_at(place) for oid, (place, _) in entries.items()}
        repeats: dict[Oid, Repeat] = {
            oid: tid for oid, (_, tid) in entries.items() if records[oid] is not None
        }
        return records, repeats

    # -- undoing

    def supportsUndo(self) -> bool:
        """See `IStorageUndoable`."""
        return True

    def undo(self, transaction_id: Any, transaction: Any) -> tuple[Tid | None, list[Oid]]:
        """See `IStorageUndoable`."""
        staged = self._slot.staged(transaction)
        tid = tid_from_id(transaction_id)
        return staged.tid, self._request(staged, partial(self._undo, staged, tid))

    def preview_undo(self, transaction_ids: Iterable[Any]) -> list[UndoneObject]:
        """See `IStorageUndoable`."""
        self._require_open()
        with self._places_lock:
            return self._preview_all(transaction_ids)

    def _preview_all(self, transaction_ids: Iterable[Any]) -> list[UndoneObject]:
        staged = Staged(TransactionMetaData(), None, " ")
        found: dict[Oid, UndoneObject] = {}
        impossible: list[UndoneObject] = []
        for transaction_id in transaction_ids:
            try:
                tid = tid_from_id(transaction_id)
                changes = self._changes_of(tid)
            except UndoError as error:
                impossible.append(UndoneObject(None, None, None, str(error)))
                continue
            for change in changes:
                if change.oid not in found or found[change.oid].obstacle is None:
                    found[change.oid] = self._preview(staged, tid, change)
        return [*found.values(), *impossible]

    def _preview(self, staged: Staged, tid: Tid, change: Change) -> UndoneObject:
        entry = self._find_current([change.oid])[change.oid]
        now = None if entry is None else self._data_at(entry[0])
        try:
            staged.write_requested(change.oid, *self._result(staged, tid, change))
        except UndoError as error:
            return UndoneObject(change.oid, now, None, error.reason)
        return UndoneObject(change.oid, now, self._staged_data(staged, change.oid))

    def _changes_of(self, tid: Tid) -> list[Change]:
        """Return what the transaction changed; `UndoError` if it cannot be undone at all."""
        self._require_open()
        found = self._find_transaction(tid)
        if found is None:
            reason = "there is no such transaction (any more)"
        elif found[0] == "p":
            reason = "it was packed: what was before it is gone"
        elif found[0] == "u":
            reason = "it is marked as undone, as ZODB did long ago"
        else:
            return found[1]
        raise UndoError(
            f"transaction {format_tid(tid)} of {self._name} cannot be undone: {reason}. undoLog "
            "lists those that can", tid=tid, reason=reason,
        )

    def _undo(self, staged: Staged, tid: Tid) -> list[Oid]:
        """Stage what undoing the transaction *tid* makes of its objects, all or none; return
        their oids."""
        changes = self._changes_of(tid)
        results, obstacles = [], []
        for change in changes:
            try:
                results.append((change.oid, *self._result(staged, tid, change)))
            except UndoError as error:
                obstacles.append(error)
        if len(obstacles) == 1:
            raise obstacles[0]
        if obstacles:
            raise _several(tid, obstacles)
        for result in results:
            staged.write_requested(*result)
        return [change.oid for change in changes]

    def _result(
        self, staged: Staged, tid: Tid, change: Change
    ) -> tuple[tuple[Any, Tid], bytes | None, Repeat | None, str]:
        """Return (what is current, record, repeat, version) of what undoing makes of an object."""
        oid, place, before = change
        version, version_before = self._version_of(place), ""
        if before is not None:
            version_before = self._version_of(before)
        if oid in staged.requested:
            entry = staged.requested[oid]
            current, is_undone = self._staged_data(staged, oid), False
            current_version = staged.versions.get(oid, "")
        elif oid in staged.bases:
            raise _obstacle(tid, oid, "it is changed in the same transaction")
        else:
            found = self._find_current([oid])[oid]
            assert found is not None  # it has a revision
            entry, is_undone = found, found[0] == place
            current = None if is_undone else self._data_at(entry[0])
            current_version = self._version_of(entry[0])
        if not is_undone:
            if current_version != version:
                raise _obstacle(tid, oid, _moved(entry[1], version, current_version))
            undone = self._data_at(place)
            if not self._is_equal(oid, current, undone):
                if version_before not in ("", version):
                    raise _obstacle(tid, oid, _left(entry[1], version_before))
                if version and oid in staged.requested and not self._is_in(oid, version):
                    raise _obstacle(
                        tid, oid, f"it comes back to the version {version!r} in this transaction. "
                        "Commit that first"
                    )
                merged = self._merged(staged, tid, change, undone, current, entry[1])
                return entry, merged, None, version
        record, repeat = (None, None) if before is None else self._bring_back(before)
        is_uncreated = record is None and repeat is None
        if is_uncreated and oid == ROOT_OID:
            raise _obstacle(tid, oid, "the root object would not exist")
        return entry, record, repeat, "" if is_uncreated else version_before

    def _is_in(self, oid: Oid, version: str) -> bool:
        """Whether the current revision is in a version."""
        return self._locked_among(self._find_current([oid])).get(oid) == version

    def _merged(
        self, staged: Staged, tid: Tid, change: Change, undone: bytes | None,
        current: bytes | None, base: Tid,
    ) -> bytes:
        later = f"transaction {format_tid(base)}"
        before = None if change.before is None else self._data_at(change.before)
        if current is None:
            raise _obstacle(tid, change.oid, f"it was un-created by {later}")
        if undone is None:
            raise _obstacle(tid, change.oid, f"it was created again, last by {later}")
        if before is None:
            raise _obstacle(tid, change.oid, f"it was created here, and changed by {later}")
        try:
            return self._merge(staged, change.oid, undone, current, before, (base, tid))
        except ConflictError as error:
            of_class = f" of {error.class_name}" if error.class_name else ""
            raise _obstacle(
                tid, change.oid, f"it was changed by {later}, and the changes{of_class} cannot "
                "be merged",
            ) from error

    def _staged_data(self, staged: Staged, oid: Oid) -> bytes | None:
        """Return the data that a staged revision will have."""
        record = staged.record(oid)
        if record is None and oid in staged.repeats:
            return self._data_at(staged.repeats[oid])
        return record

    # -- the log

    def undoLog(
        self, first: Any = 0, last: Any = -20, filter: Filter | None = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`. `UsageError` for bounds that make no sense."""
        self._require_open()
        wanted = span(first, last)
        entries: list[dict[str, Any]] = []
        position = 0
        if wanted.limit == 0:
            return entries
        for tid, metadata, size in self._iter_undoable(wanted.stop_tid):
            entry = undo_entry(transaction_id(tid), tid, metadata, size)
            if entry["time"] < wanted.start:
                break
            if entry["time"] > wanted.stop or (filter is not None and not filter(entry)):
                continue
            if position >= wanted.skip:
                entries.append(entry)
                if len(entries) == wanted.limit:
                    break
            position += 1
        return entries

    def undoInfo(
        self, first: Any = 0, last: Any = -20, specification: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`."""
        if not specification:
            return self.undoLog(first, last)
        items, missing = specification.items(), object()
        return self.undoLog(
            first, last, lambda entry: all(entry.get(key, missing) == value for key, value in items)
        )


def _obstacle(tid: Tid, oid: Oid, reason: str) -> UndoError:
    return UndoError(
        f"transaction {format_tid(tid)} cannot be undone: object {format_oid(oid)} stands in the "
        f"way, since {reason}", tid=tid, oid=oid, reason=reason,
    )


def _moved(tid: Tid, version: str, current: str) -> str:
    here = f"in the version {version!r}" if version else "outside any version"
    now = f"in the version {current!r}" if current else "outside any version"
    return f"it was changed {here} there, and is now {now}, by transaction {format_tid(tid)}"


def _left(tid: Tid, version: str) -> str:
    return (
        f"it left the version {version!r} there, and was changed since, by transaction "
        f"{format_tid(tid)}"
    )


def _several(tid: Tid, obstacles: list[UndoError]) -> MultipleUndoErrors:
    reasons = tuple((error.oid, error.reason) for error in obstacles)
    lines = [f"object {format_oid(oid)}: {reason}" for oid, reason in reasons[:_MOST_LISTED]]
    if len(reasons) > _MOST_LISTED:
        lines.append(f"and {len(reasons) - _MOST_LISTED} more")
    listed = "\n  ".join(lines)
    return MultipleUndoErrors(
        f"transaction {format_tid(tid)} cannot be undone, since {len(reasons)} objects stand in "
        f"the way:\n  {listed}", tid=tid, reasons=reasons,
    )
