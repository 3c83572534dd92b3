"""Undoing transactions: a new transaction restores each object that the undone one changed.

    before ───► undone ───► … ───► current
      ▲                                │
      └────────── result ◄─────────────┘

    the current data is                   the result is
    the undone data, or equal to them     the data before; a tombstone if there were none
    something else                        _p_resolveConflict(undone, current, before)
    gone, or something else that cannot
      be merged                           an obstacle: `UndoError`, and nothing is changed

All objects are planned first, and their results staged if none has an obstacle. At the vote they
are planned again if one of them was changed meanwhile.

An undo is a transaction like others, so undoing it is a redo. When one transaction undoes several,
each undo is based on the results of those before it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from objdb.errors import ConflictError, MultipleUndoErrors, UndoError
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid, format_tid, tid_from_text
from objdb.storage.conflicts import Merge
from objdb.storage.rows import Current, Row
from objdb.storage.staging import Plan, Writes, data_of, staged_data
from objdb.storage.versions import original

# Whether two records, or None, of an object are equal.
IsEqual = Callable[[Oid, "bytes | None", "bytes | None"], bool]
_MOST_LISTED = 20  # obstacles in a message


class UndoneObject(NamedTuple):
    """The effect of an undo on an object: its record before and after it (None: no object), or
    the reason that prevents it. Without an oid: a reason that prevents the whole undo."""

    oid: Oid | None
    now: bytes | None
    then: bytes | None
    obstacle: str | None = None


class _Result(NamedTuple):
    """The result of an undo for an object: the arguments of `Writes.write_result` after the oid."""

    current: Current
    record: bytes | None
    back_pointer: Tid | None
    version: str


def transaction_id(tid: Tid) -> str:
    """Return the id by which undoLog names a transaction."""
    return base64.urlsafe_b64encode(tid).decode("ascii")


def tid_from_id(transaction_id: Any) -> Tid:
    """Return the tid of an id, text or bytes; a tid, or its hexadecimal digits, is accepted too.
    Raises `UndoError` for anything else."""
    if isinstance(transaction_id, bytes) and len(transaction_id) == 8:
        return transaction_id
    text = transaction_id
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    tid = tid_from_text(text) if isinstance(text, str) else None
    if tid is None:
        raise UndoError(
            f"{transaction_id!r} is not the id of a transaction. Use one from undoLog",
            reason="it is not the id of a transaction",
        )
    return tid


class Undo:
    """Undoes transactions of *engine* in the transaction *writes*; *merge* and *is_equal* are the
    database's."""

    def __init__(self, engine: Any, writes: Writes, merge: Merge, is_equal: IsEqual) -> None:
        self._engine = engine
        self._writes = writes
        self._merge = merge
        self._is_equal = is_equal

    def stage(self, tid: Tid) -> list[Oid]:
        """Stage the undo of the transaction *tid* for all its objects, or none; return their
        oids."""
        results, obstacles = [], []
        rows = self._rows_of(tid)
        for oid, row in rows:
            try:
                results.append((oid, self._result(oid, row)))
            except UndoError as error:
                obstacles.append(error)
        if len(obstacles) == 1:
            raise obstacles[0]
        if obstacles:
            raise _several(tid, obstacles)
        for oid, result in results:
            self._writes.write_result(oid, *result)
        return [oid for oid, _ in rows]

    def preview(self, transaction_ids: Iterable[Any]) -> list[UndoneObject]:
        """Return what undoing these transactions, in this order, would do now. *writes* is of a
        new transaction."""
        self._writes.plan = Plan((NO_TID, 0))
        found: dict[Oid, UndoneObject] = {}
        impossible: list[UndoneObject] = []
        for transaction_id in transaction_ids:
            try:
                rows = self._rows_of(tid_from_id(transaction_id))
            except UndoError as error:
                impossible.append(UndoneObject(None, None, None, str(error)))
                continue
            for oid, row in rows:
                if oid not in found or found[oid].obstacle is None:
                    found[oid] = self._preview(oid, row)
        return [*found.values(), *impossible]

    def _preview(self, oid: Oid, row: Row) -> UndoneObject:
        current = self._engine.current([oid])[oid]
        now = None if current is None else data_of(self._engine, oid, current.tid)
        try:
            self._writes.write_result(oid, *self._result(oid, row))
        except UndoError as error:
            return UndoneObject(oid, now, None, error.reason)
        return UndoneObject(oid, now, staged_data(self._engine, self._writes, oid))

    def _rows_of(self, tid: Tid) -> list[tuple[Oid, Row]]:
        """Return the rows that the transaction wrote. Raises `UndoError` if it cannot be undone
        at all."""
        found = self._engine.transaction(tid)
        if found is None or tid > self._engine.visibility.committed_tid:
            reason = "there is no such transaction (any more)"
        elif found.status == "p":
            reason = "it was packed: the revisions before it are gone"
        elif found.status == "u":
            reason = "it is marked as undone, as ZODB did long ago"
        else:
            rows = ((oid, self._engine.row(oid, tid)) for oid in found.oids)
            return [(oid, row) for oid, row in rows if row is not None]
        raise UndoError(
            f"transaction {format_tid(tid)} of {self._engine.name} cannot be undone: {reason}. "
            "undoLog lists those that can", tid=tid, reason=reason,
        )

    # -- one object

    def _result(self, oid: Oid, undone: Row) -> _Result:
        """Return the result of undoing the revision *undone* for an object."""
        before = self._engine.before(oid, undone.tid)
        current, version, is_undone, data = self._current(oid, undone)
        if is_undone:
            return self._take_back(oid, undone.tid, before, current)
        if version != undone.version:
            raise _obstacle(undone.tid, oid, _moved(current.tid, undone.version, version))
        if self._is_equal(oid, data, undone.data):
            return self._take_back(oid, undone.tid, before, current)
        self._require_same_version(oid, undone, before, current)
        merged = self._merged(oid, undone, data, before, current.tid)
        return _Result(current, merged, None, undone.version)

    def _current(self, oid: Oid, undone: Row) -> tuple[Current, str, bool, bytes | None]:
        """Return the current revision; and of the revision with this transaction's staged
        changes: its version, whether it is the revision *undone* itself, and else its data."""
        writes = self._writes
        assert writes.plan is not None
        if oid in writes.plan.results:
            data = staged_data(self._engine, writes, oid)
            return writes.plan.results[oid], writes.versions.get(oid, ""), False, data
        if oid in writes.bases:
            raise _obstacle(undone.tid, oid, "it is changed in the same transaction")
        current: Current = self._engine.current([oid])[oid]
        if current.tid == undone.tid:
            return current, current.version, True, None
        return current, current.version, False, data_of(self._engine, oid, current.tid)

    def _take_back(self, oid: Oid, tid: Tid, before: Row | None, current: Current) -> _Result:
        """Return the result that has the data of the revision *before* again."""
        pointer = None if before is None else original(self._engine, oid, before)
        if pointer is None and oid == ROOT_OID:
            raise _obstacle(tid, oid, "the root object would not exist")
        version = before.version if before is not None and pointer is not None else ""
        return _Result(current, None, pointer, version)

    def _require_same_version(
        self, oid: Oid, undone: Row, before: Row | None, current: Current
    ) -> None:
        """Raise `UndoError` if merging would move an object from one version to another."""
        assert self._writes.plan is not None
        tid, version = undone.tid, undone.version
        if before is not None and before.version not in ("", version):
            raise _obstacle(tid, oid, _left(current.tid, before.version))
        if version and oid in self._writes.plan.results:
            last = self._engine.current([oid])[oid]
            if last is None or last.version != version:
                raise _obstacle(
                    tid, oid, f"it returns to the version {version!r} in this transaction. "
                    "Commit that first"
                )

    def _merged(
        self, oid: Oid, undone: Row, current: bytes | None, before: Row | None, current_tid: Tid
    ) -> bytes:
        tid, later = undone.tid, f"transaction {format_tid(current_tid)}"
        data = None if before is None else before.data
        if current is None:
            raise _obstacle(tid, oid, f"it was deleted by {later}")
        if undone.data is None:
            raise _obstacle(tid, oid, f"it was created again, last by {later}")
        if data is None:
            raise _obstacle(tid, oid, f"it was created here, and changed by {later}")
        try:
            return self._merge(oid, undone.data, current, data, (current_tid, tid))
        except ConflictError as error:
            of_class = f" of {error.class_name}" if error.class_name else ""
            raise _obstacle(
                tid, oid, f"it was changed by {later}, and the changes{of_class} cannot be merged",
            ) from error


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
