"""Copying a file to an empty one: where a transaction has the same place in both, as it is.

    source       START ├ t1 ┼ t2 ┼ t3 ┼ t4 ┤ t5 (packed, of another program, …) …
                         same bytes, at the same positions  │ from here on: `copy_transactions`
    destination  START ├ t1 ┼ t2 ┼ t3 ┼ t4 ┤

The positions in a transaction lead to what is before it, so while nothing differs, they are right
in both files, and so is the checksum, which covers them. What has no checksum that says so ends
this; the rest is copied revision by revision, as to any storage.

Many transactions are written at once, and wait for the medium together. None becomes visible
before it is durable. If power is lost in the middle, the checksums tell which are complete.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from objdb.errors import CorruptedDataError, StorageWriteError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.commit import Staged, TransactionMetaData
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.durability import GroupCommit
from objdb.storage.file.format import COMMITTED, START
from objdb.storage.file.history import FileHistory
from objdb.storage.file.index import Index
from objdb.storage.file.log import Log, LogTicket, Written
from objdb.storage.file.medium import Medium
from objdb.storage.file.walking import Walk

_BATCH_BYTES = 1024 * 1024
_CHUNK = 4 * 1024 * 1024


class _Batch(NamedTuple):
    """Transactions that follow one another, and lie from *position* to *end* in both files."""

    position: int
    end: int
    tickets: list[LogTicket]
    oids: set[Oid]


class FileCopying(FileHistory):
    """The part of a FileStorage that copies from another one."""

    _group: GroupCommit[LogTicket]
    _decided: Tid
    _preallocate_bytes: int

    @abstractmethod
    def _take_back(self, end: int) -> None:
        """Leave zeros from the end of the log to *end*."""

    @abstractmethod
    def _require_not_failed(self) -> None:
        """Raise if commits are refused."""

    @abstractmethod
    def _wait(self, ticket: LogTicket) -> None:
        """Return when a transaction is durable and visible."""

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        if not isinstance(other, FileCopying) or self._last_tid != NO_TID:
            return copy_transactions(other, self, progress)
        tell = progress or (lambda state: None)
        copied = CopyProgress(0, 0, NO_TID)
        for copied in self._copy_as_it_is(other):
            tell(copied)
        if self._last_tid == other.lastTransaction():
            return copied.transactions
        before, revisions, _ = copied
        return before + copy_transactions(
            other, self, lambda state: tell(
                CopyProgress(before + state.transactions, revisions + state.revisions, state.tid)
            ),
        )

    def _copy_as_it_is(self, other: FileHistory) -> Iterator[CopyProgress]:
        """Copy transactions from the beginning of *other* as far as their bytes can stay."""
        transactions = revisions = 0
        log, medium = other._medium.log, self._medium
        for batch in _batches(log, other._medium.published.end, medium.index):
            if not self._write_batch(log, batch, medium):
                return
            for ticket in batch.tickets:
                transactions += 1
                revisions += len(ticket.positions)
                yield CopyProgress(transactions, revisions, ticket.tid)

    def _write_batch(self, log: Log, batch: _Batch, medium: Medium) -> bool:
        """Commit the transactions in a batch; false if their place is not at the end any more."""
        staged = Staged(TransactionMetaData(), None, " ")
        self._slot.take(staged)
        try:
            self._require_writable()
            self._require_not_failed()
            if medium is not self._medium or medium.end != batch.position:
                return False
            try:
                if batch.end > medium.log.allocated and self._preallocate_bytes:
                    medium.log.allocate(batch.end + self._preallocate_bytes)
                medium.index.reserve(batch.oids)
                for position in range(batch.position, batch.end, _CHUNK):
                    size = min(_CHUNK, batch.end - position)
                    medium.log.write_at(log.file.read_at(size, position), position)
            except OSError as error:
                self._take_back(batch.end)
                raise StorageWriteError(
                    f"{self._name}: transactions could not be copied: {error}. Make space, or "
                    "see to the disk, and copy again: that goes on from here"
                ) from error
            medium.end = batch.end
            for ticket in batch.tickets:
                self._group.join(ticket, waits_at_once=False)
            self._decided = batch.tickets[-1].tid
        finally:
            self._slot.release(staged)
        self._wait(batch.tickets[-1])
        return True


def _batches(log: Log, end: int, index: Index) -> Iterator[_Batch]:
    """Yield the transactions from the beginning of a log on whose bytes can stay; *index* is that
    of the copy, which has what was yielded before. `CorruptedDataError` behind them."""
    walk, locked, damage = Walk(log, START, end, NO_TID), set[Oid](), None
    batch = _Batch(START, START, [], set())
    try:
        for header in walk:
            if header.status != COMMITTED or not header.has_checksum:
                break
            positions, versions = walk.places(header)
            versions.update(dict.fromkeys(locked & positions.keys() - versions.keys(), ""))
            locked.update(versions)
            fresh = dict.fromkeys(positions.keys() - batch.oids, NO_TID)
            new_objects = len(fresh) - len(index.changed(fresh))
            written = Written(header.position, header.end, positions, new_objects, versions)
            batch.tickets.append(LogTicket(header.tid, written, _nobody))
            batch.oids.update(positions)
            batch = batch._replace(end=header.end)
            if batch.end - batch.position >= _BATCH_BYTES:
                yield batch
                batch = _Batch(batch.end, batch.end, [], set())
    except CorruptedDataError as error:
        damage = error
    if batch.tickets:
        yield batch
    if damage is not None:
        raise damage


def _nobody(tid: Tid) -> None:
    """Nobody is told of what is copied."""
