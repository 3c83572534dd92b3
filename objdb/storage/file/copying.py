"""Copying a file to an empty one, byte by byte as long as the positions are the same.

    source       START ├ t1 ┼ t2 ┼ t3 ┼ t4 ┤ t5 (packed, of another program, …) …
                         same bytes, at the same positions  │ from here on: `copy_transactions`
    destination  START ├ t1 ┼ t2 ┼ t3 ┼ t4 ┤

The positions in a transaction refer to earlier records, so as long as the files are equal, they
are right in both, and so is the checksum, which covers them. The first transaction without a
matching checksum ends this; the rest is copied revision by revision, as to any storage.

Many transactions are written at once, and share a sync. None becomes visible before it is durable.
After a loss of power the checksums tell which are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from objdb.errors import CorruptedDataError, StorageWriteError
from objdb.ids import NO_TID, Oid
from objdb.storage.commit import CommitSlot
from objdb.storage.copying import CopyProgress
from objdb.storage.file.format import COMMITTED, START
from objdb.storage.file.index import Index
from objdb.storage.file.log import Log, Written
from objdb.storage.file.scan import Walk

if TYPE_CHECKING:
    from objdb.storage.committer import Committer
    from objdb.storage.file.engine import FileEngine

_BATCH_BYTES = 1024 * 1024
_CHUNK = 4 * 1024 * 1024


class _Batch(NamedTuple):
    """Consecutive transactions, from *position* to *end* in both files."""

    position: int
    end: int
    transactions: list[Written]
    oids: set[Oid]


def copy_as_it_is(
    source: FileEngine, target: FileEngine, slot: CommitSlot, committer: Committer
) -> Iterator[CopyProgress]:
    """Copy transactions from the beginning of *source* to the empty *target*, as long as their
    bytes can stay the same; *slot* and *committer* are the target's."""
    transactions = revisions = 0
    log, generation = source.generation.log, target.generation
    for batch in _batches(log, source.generation.published.end, generation.index):
        with slot.held():
            if generation is not target.generation or generation.end != batch.position:
                return
            _write(log, batch, target)
            try:
                wait = _adopt(batch, target, committer)
            except BaseException:
                _adopt(batch, target, committer)()  # they are written: finish them
                raise
        wait()
        for written in batch.transactions:
            transactions += 1
            revisions += len(written.positions)
            yield CopyProgress(transactions, revisions, written.tid)


def _adopt(batch: _Batch, target: FileEngine, committer: Committer) -> Callable[[], None]:
    for written in batch.transactions:
        target.take_in(written)
    return committer.adopt(batch.transactions)


def _write(log: Log, batch: _Batch, target: FileEngine) -> None:
    try:
        target.make_room(batch.end, batch.oids)
        for position in range(batch.position, batch.end, _CHUNK):
            size = min(_CHUNK, batch.end - position)
            target.generation.log.write_at(log.file.read_at(size, position), position)
    except BaseException as error:
        target.erase(batch.end)
        if not isinstance(error, OSError):
            raise
        raise StorageWriteError(
            f"{target.name}: transactions could not be copied: {error}. Free disk "
            "space, or check the disk, and copy again: that continues from here"
        ) from error


def _batches(log: Log, end: int, index: Index) -> Iterator[_Batch]:
    """Yield the transactions at the beginning of a log whose bytes can stay the same; *index* is
    that of the copy, which has those yielded before. `CorruptedDataError` after them."""
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
            batch.transactions.append(Written(
                header.tid, header.status, header.position, header.end, positions, new_objects,
                versions,
            ))
            batch.oids.update(positions)
            batch = batch._replace(end=header.end)
            if batch.end - batch.position >= _BATCH_BYTES:
                yield batch
                batch = _Batch(batch.end, batch.end, [], set())
    except CorruptedDataError as error:
        damage = error
    if batch.transactions:
        yield batch
    if damage is not None:
        raise damage

