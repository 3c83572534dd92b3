"""Undoing transactions: requests that take part in a transaction, and what they would do.

    db.undo(id) ─► UndoRequest joins the transaction ─► commit: storage.undo, newest first
                ─► vote, finish: with all others of the database ─► every connection is told

There is one request in a transaction for each database; it collects the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from objdb.database.shared_commit import StorageCommit, StorageRequest, request_for
from objdb.errors import ReadOnlyError, UndoError, Unsupported
from objdb.ids import Oid, Tid
from objdb.interfaces import IStorageHistory, IStorageUndoable
from objdb.records.differences import changed_attributes
from objdb.records.references import record_class_name
from objdb.storage.foreign import preview_undo_in, provides, readable, undo_in
from objdb.storage.undo import tid_from_id


class ObjectChange(NamedTuple):
    """The change of an object that undoing would make.

    `attributes` maps names to (value now, value then), `...` where there is none. References to
    persistent objects are `PersistentReference`; a state that is not a dict is the attribute `""`.
    `now` and `then` are the records, None where the object does not exist.
    """

    oid: Oid
    class_name: str | None
    attributes: dict[str, tuple[Any, Any]]
    now: bytes | None
    then: bytes | None


class Obstacle(NamedTuple):
    """An object that cannot be undone, and why; oid None: nothing can."""

    oid: Oid | None
    class_name: str | None
    reason: str


class UndoPreview(NamedTuple):
    """The outcome of undoing: only `changes`, if there are no `obstacles`."""

    changes: list[ObjectChange]
    obstacles: list[Obstacle]


class DatabaseUndo:
    """The part of `DB` that undoes, and lists what can be undone."""

    name: str
    storage: Any
    _require_usable: Callable[[], None]
    storage_commit: Callable[[Any], StorageCommit]

    def supportsTransactionalUndo(self) -> bool:
        """Whether transactions can be undone."""
        can = provides(self.storage, IStorageUndoable)
        return can and bool(getattr(self.storage, "supportsUndo", bool)())

    def undo(self, transaction_id: Any, txn: Any = None) -> None:
        """Undo a transaction when *txn* (default: the thread's current transaction) commits.

        *transaction_id*: from `undoLog`, or a tid. That commit raises `UndoError`, or
        `MultipleUndoErrors`, when an object was changed later and cannot be merged, and for an
        id that names no transaction that can be undone. `Unsupported`, `ReadOnlyError` at once.
        """
        self.undoMultiple([transaction_id], txn)

    def undoMultiple(self, transaction_ids: Iterable[Any], txn: Any = None) -> None:
        """Undo several transactions at once, the newest first, when *txn* commits: see `undo`."""
        self._require_usable()
        self._require_undo()
        if self.storage.isReadOnly():
            raise ReadOnlyError(f"{self.name} is open for reading only: nothing can be undone")
        request_for(self, txn, UndoRequest).asked += transaction_ids

    def undoLog(
        self, first: Any = 0, last: Any = -20, filter: Callable[[dict[str, Any]], Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the transactions that can be undone, newest first, as dicts: id, time (seconds
        since 1970), user_name, description, size (bytes), and what the extension has.

        Integers are positions from the newest; a negative *last* is a number of entries. Floats
        (seconds since 1970) and datetimes are times. *filter* is called with each entry.
        """
        self._require_usable()
        self._require_undo()
        return readable(self.storage, self.storage.undoLog(first, last, filter))

    def undoInfo(
        self, first: Any = 0, last: Any = -20, specification: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the entries of `undoLog` that have all items of *specification*."""
        self._require_usable()
        self._require_undo()
        return readable(self.storage, self.storage.undoInfo(first, last, specification))

    def undo_preview(self, transaction_ids: Any) -> UndoPreview:
        """Return what undoing these transactions would do now, committing nothing.

        *transaction_ids*: one id, or several.
        """
        self._require_usable()
        self._require_undo()
        if isinstance(transaction_ids, (str, bytes)):
            transaction_ids = [transaction_ids]
        changes, obstacles = [], []
        for oid, now, then, obstacle in preview_undo_in(
            self.storage, newest_first(transaction_ids)
        ):
            record = then if now is None else now
            class_name = None if record is None else record_class_name(record)
            if obstacle is not None:
                obstacles.append(Obstacle(oid, class_name, obstacle))
            elif now != then:
                attributes = changed_attributes(oid, now, then)
                changes.append(ObjectChange(oid, class_name, attributes, now, then))
        return UndoPreview(changes, obstacles)

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """Return the last *size* revisions of an object, newest first, as dicts: tid, time
        (seconds since 1970), user_name, description, size (bytes), and what the transaction's
        extension has. `POSKeyError` if there is no object."""
        self._require_usable()
        if not provides(self.storage, IStorageHistory):
            raise Unsupported(f"{self.name} cannot list the revisions of an object")
        return readable(self.storage, self.storage.history(oid, size))

    def _require_undo(self) -> None:
        if not self.supportsTransactionalUndo():
            raise Unsupported(f"{self.name} is a storage that cannot undo transactions")


def newest_first(transaction_ids: Iterable[Any]) -> list[Any]:
    """Return the ids, each transaction once, in the order in which they have to be undone. What
    is no id comes last."""
    found = {_sort_key(transaction_id): transaction_id for transaction_id in transaction_ids}
    return [found[key] for key in sorted(found, reverse=True)]


def _sort_key(transaction_id: Any) -> tuple[int, Tid, str]:
    try:
        return 1, tid_from_id(transaction_id), ""
    except UndoError:
        return 0, b"", repr(transaction_id)


class UndoRequest(StorageRequest):
    """Undoes transactions when the one it is in commits. `asked` has their ids."""

    def _stage(self, metadata: Any) -> Iterable[Oid]:
        for transaction_id in newest_first(self.asked):
            yield from undo_in(self._db.storage, transaction_id, metadata)

    def _tell(self, tid: Tid, oids: list[Oid]) -> None:
        self._db.note_commit(tid, oids)
