"""Helpers of the conformance suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from objdb.errors import ConflictError
from objdb.ids import Oid, Tid
from objdb.storage.commit import TransactionMetaData

Make = Callable[[], Any]


class Joining:
    """A database whose resolver joins the three records, unless one says otherwise."""

    calls: list[tuple[bytes, bytes, bytes]]

    def __init__(self) -> None:
        self.calls = []

    def resolve(
        self, oid: Oid, old: bytes, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Return what the arguments were; refuse where one contains "stubborn"."""
        if b"stubborn" in old + committed + new:
            raise ConflictError(oid=oid, class_name="Stubborn", serials=serials)
        self.calls.append((old, committed, new))
        return b"|".join((old, committed, new))


def commit(
    storage: Any, changes: dict[Oid, tuple[Tid, bytes | None]], **metadata: Any
) -> Tid:
    """Commit {oid: (base tid, record, or None for a tombstone)}; return the tid."""

    def stage(transaction: TransactionMetaData) -> None:
        for oid, (base, record) in changes.items():
            if record is None:
                storage.deleteObject(oid, base, transaction)
            else:
                storage.store(oid, base, record, "", transaction)

    return _commit(storage, stage, metadata)


def undo(storage: Any, *transaction_ids: Any, **metadata: Any) -> Tid:
    """Undo these, in this order, in one transaction; return its tid."""

    def stage(transaction: TransactionMetaData) -> None:
        for transaction_id in transaction_ids:
            storage.undo(transaction_id, transaction)

    return _commit(storage, stage, metadata)


def _commit(
    storage: Any, stage: Callable[[TransactionMetaData], None], metadata: dict[str, Any]
) -> Tid:
    transaction = TransactionMetaData(**metadata)
    storage.tpc_begin(transaction)
    try:
        stage(transaction)
        storage.tpc_vote(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    tid: Tid = storage.tpc_finish(transaction)
    return tid


def require(storage: Any, interface: Any) -> None:
    """Skip the test unless the storage declares *interface*."""
    if not interface.providedBy(storage):
        pytest.skip(f"the storage does not declare {interface.__name__}")


def current(storage: Any, oid: Oid) -> bytes | None:
    """Return the current record, None if there is no object."""
    try:
        record: bytes = storage.load(oid)[0]
        return record
    except KeyError:
        return None


def contents(storage: Any) -> list[Any]:
    """Return all that a storage's iterator shows, in plain values."""
    return [
        (
            transaction.tid, transaction.status, transaction.user, transaction.description,
            transaction.extension,
            [(r.oid, r.tid, r.data, r.data_txn, r.version) for r in transaction],
        )
        for transaction in storage.iterator()
    ]
