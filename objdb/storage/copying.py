"""Copying transactions from one storage to another, as they are.

    source.iterator() ─► tpc_begin(tid, status) ─► restore … ─► tpc_vote ─► tpc_finish

Tids, users, notes, extensions and back pointers stay. The source's iterator verifies its data
while they are copied.

A destination with transactions is continued, if its last one is also in the source: so an
interrupted copy goes on, and one of last night is brought up to date. Whenever the copy ends, each
transaction is complete or absent. If the destination lets the caller wait for durability, many
transactions share a sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from objdb.errors import StorageError, Unsupported, UsageError
from objdb.ids import NO_TID, Oid, Tid, format_tid, next_tid
from objdb.interfaces import IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.storage.extension import INTEGRITY_KEYS, loads_extension, without_integrity

_MOST_WAITING = 64  # transactions


class CopyProgress(NamedTuple):
    """The progress of a copy: transactions and revisions copied, and the last tid."""

    transactions: int
    revisions: int
    tid: Tid


def copy_transactions(
    source: Any, destination: Any, progress: Callable[[CopyProgress], object] | None = None
) -> int:
    """Copy the transactions missing in *destination*; return their number.

    *progress* is called after each. `StorageError` if the destination has other transactions;
    `Unsupported` if it does not support versions, and the source has changes in one. Earlier
    changes in versions, since committed or aborted, are then left out: no view shows them.
    """
    if source is destination:
        raise UsageError(f"{destination.getName()} cannot be copied to itself")
    versions = destination.supportsVersions()
    if not versions:
        _require_no_versions(source, destination)
    last = destination.lastTransaction()
    if last != NO_TID:
        _require_same(source, destination, last, versions)
    waiting: list[Callable[[], None]] = []
    transactions = revisions = 0
    try:
        with _iterating(source, None if last == NO_TID else next_tid(last)) as iterator:
            for transaction in iterator:
                revisions += _copy(transaction, destination, waiting, versions)
                transactions += 1
                if len(waiting) >= _MOST_WAITING:
                    _wait(waiting)
                if progress:
                    progress(CopyProgress(transactions, revisions, transaction.tid))
    finally:
        _wait(waiting)
    return transactions


@contextmanager
def _iterating(source: Any, start: Tid | None, stop: Tid | None = None) -> Iterator[Any]:
    """Yield the source's iterator, and close it if it needs that."""
    iterator = source.iterator(start, stop)
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _require_no_versions(source: Any, destination: Any) -> None:
    found = source.versions() if IStorageVersions.providedBy(source) else ()
    if found:
        raise Unsupported(
            f"{destination.getName()} does not support versions, but {source.getName()} has "
            f"changes in {', '.join(map(repr, found))}. Commit or abort them first (objdb versions "
            "--commit, --abort), or copy to a storage that supports versions"
        )


def _copy(
    transaction: Any, destination: Any, waiting: list[Callable[[], None]], versions: bool
) -> int:
    """Copy one transaction; return the number of its revisions."""
    metadata = _metadata(transaction)
    metadata.later = waiting
    count = 0
    try:
        destination.tpc_begin(metadata, transaction.tid, transaction.status)
        for revision in _copied(transaction, versions):
            destination.restore(
                revision.oid, revision.tid, revision.data, revision.version, revision.data_txn,
                metadata,
            )
            count += 1
        destination.tpc_vote(metadata)
        destination.tpc_finish(metadata)
    except BaseException:
        destination.tpc_abort(metadata)
        raise
    return count


def _copied(transaction: Any, versions: bool) -> Iterator[Any]:
    return (revision for revision in transaction if versions or not revision.version)


def _metadata(transaction: Any) -> TransactionMetaData:
    """Return a transaction's metadata, its extension byte for byte, but without integrity items
    that belong to another file, from which another program copied it."""
    pickled = transaction.extension_bytes
    if any(key.encode() in pickled for key in INTEGRITY_KEYS):
        extension = loads_extension(pickled)
        if without_integrity(extension) != extension:
            pickled = TransactionMetaData(extension=without_integrity(extension)).extension_bytes
    return TransactionMetaData(transaction.user, transaction.description, pickled)


def _wait(waiting: list[Callable[[], None]]) -> None:
    """Wait until all copied transactions are durable."""
    functions = list(waiting)
    waiting.clear()
    for function in functions:
        function()


def _require_same(source: Any, destination: Any, tid: Tid, versions: bool) -> None:
    """Raise `StorageError` unless the transaction *tid* is the same in both."""
    found = [_content(storage, tid, versions) for storage in (source, destination)]
    if found[0] is None or found[0] != found[1]:
        what = "does not have" if found[0] is None else "has another content for"
        raise StorageError(
            f"{destination.getName()} ends with transaction {format_tid(tid)}, which "
            f"{source.getName()} {what}: it is not an earlier copy. Copy to an empty storage"
        )


def _content(storage: Any, tid: Tid, versions: bool) -> tuple[Any, ...] | None:
    with _iterating(storage, tid, tid) as iterator:
        for transaction in iterator:
            metadata = _metadata(transaction)
            copied = _copied(transaction, versions)
            records: dict[Oid, bytes | None] = {r.oid: r.data for r in copied}
            return metadata.user, metadata.description, metadata.extension_bytes, records
    return None
