"""FileEngine: the log and its index put together.

    load      index.get(oid) ─► one read at the position ─► header checked ─► record
    write     space and index pages reserved ─► written with status `c`
    commit    status byte
    sync      of the log, for all committed transactions
    publish   index ─► visible

The commit slot covers the generation's `end` and writing to its log; only the publishing thread
changes index entries, the visible part and the counters; `_unpublished_lock` covers
`_unpublished`; `_checkpoint_lock` is held during a checkpoint. Reading takes no lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from zope.interface import implementer

from objdb.errors import StorageError, StorageFailedError, StorageWriteError
from objdb.ids import Oid, Tid
from objdb.storage.durability import Durability
from objdb.storage.engine import (
    IChained,
    ICurrentLoad,
    IOwnHistory,
    IOwnPack,
    IPackedTid,
    IReadChecks,
    ISelfChecking,
    ISynced,
    Visibility,
)
from objdb.storage.file import history
from objdb.storage.file.follower import Follower, open_beside_writer
from objdb.storage.file.format import STATUS_AT
from objdb.storage.file.generation import Generation, Published
from objdb.storage.file.history import FileRow
from objdb.storage.file.log import POSITION, Before, Record, Written
from objdb.storage.file.lookup import IN_VERSION
from objdb.storage.file.opening import create_file, open_files, require_openable
from objdb.storage.file.pack import FilePack, remove_leftovers
from objdb.storage.file.verify import check_structure
from objdb.storage.files import Files, Lock, hold_or_release, take_lock, what_is_gone
from objdb.storage.iteration import TransactionRecord
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.packing import PackOptions, PackResult
from objdb.storage.rows import Current, TransactionRow, new_current
from objdb.storage.staging import StagedRows


@implementer(
    IChained, ICurrentLoad, ISynced, IReadChecks, IOwnHistory, IOwnPack, IPackedTid, ISelfChecking
)
class FileEngine:
    """Keeps every revision in the file *path*; see `FileStorage` for the arguments. `generation`
    is the log and index in use; `load_current` is its method."""

    keeps_history, has_checksums = True, True
    lock: Lock | None = None
    generation: Generation
    _is_dropped = False

    @drops_what_it_opened
    def __init__(
        self, path: str, files: Files, *, create: bool, read_only: bool, durability: Durability,
        preallocate_bytes: int, checkpoint_records: int,
    ) -> None:
        self.name = self.path = path
        self.files = files
        self.is_read_only = read_only
        self.durability = durability
        self.visibility = Visibility(path)
        self.max_oid = 0
        self.is_failed = False
        self.since_checkpoint = 0  # records
        self._preallocate_bytes = preallocate_bytes
        self._checkpoint_records = checkpoint_records
        self._pid = os.getpid()
        self._unpublished: tuple[Written, ...] = ()  # committed, but not visible
        self._unpublished_lock = threading.Lock()
        self._writing_to = 0  # the end position of the transaction being written
        self._packed_tid: Tid | None = None
        self.checkpoint_lock = threading.Lock()
        self.follower = Follower(self)
        require_openable(files, path, create=create and not read_only)
        if not read_only:
            self.lock = take_lock(files, path)
        self._open(create and not read_only)

    # -- opening

    def _open(self, create: bool) -> None:
        files, path = self.files, self.path
        if create and not files.exists(path):
            create_file(files, path)
            if self.lock is not None:
                hold_or_release(self.lock, path)
        if not self.is_read_only:
            remove_leftovers(files, path)
        generation = open_beside_writer(self) if self.is_read_only else self.open_generation()
        self.visibility.show(generation.published.tid)
        self.use(generation)

    def open_generation(self) -> Generation:
        """Open the log and its index, and recover after a crash."""
        generation, state, is_complete = open_files(
            self.files, self.path, read_only=self.is_read_only, durability=self.durability,
            most_replayed=self._checkpoint_records // 4,
        )
        self.max_oid = max(self.max_oid, state.max_oid)
        self.since_checkpoint = 0 if is_complete else state.replayed
        return generation

    def use(self, generation: Generation) -> None:
        """Read and write *generation* from now on."""
        self._writing_to = 0
        self.generation = generation
        self.load_current = generation.reader.load

    # -- rows

    def _entry(self, oid: Oid, generation: Generation | None = None) -> tuple[int, Tid] | None:
        """Return (position, tid) of the last committed record."""
        # Read before the index: a transaction leaves only when its entries are in the index.
        for written in reversed(self._unpublished):
            if oid in written.positions:
                return written.positions[oid], written.tid
        return (generation or self.generation).index.settled(oid)

    def _chain(self, generation: Generation, oid: Oid) -> Iterator[Record]:
        entry = self._entry(oid, generation)
        if entry is None:
            return iter(())
        if entry[0] & POSITION >= generation.published.end and not generation.is_shared:
            return generation.chain_from(generation.log.record(entry[0]))
        return generation.chain(oid, *entry)

    def _record(self, generation: Generation, oid: Oid, tid: Tid) -> Record | None:
        met = generation.met.get((oid, tid))
        return met or history.revision(generation.log, self._chain(generation, oid), tid)

    def row(self, oid: Oid, tid: Tid) -> FileRow | None:
        """See `IEngine`."""
        generation = self.generation
        record = self._record(generation, oid, tid)
        return None if record is None else FileRow(generation, record)

    def before(self, oid: Oid, tid: Tid) -> FileRow | None:
        """See `IEngine`."""
        generation = self.generation
        older = (record for record in self._chain(generation, oid) if record.tid < tid)
        found = next(older, None)
        return None if found is None else FileRow(generation, found)

    def after(self, oid: Oid, tid: Tid) -> FileRow | None:
        """See `IEngine`."""
        generation, found = self.generation, None
        for record in self._chain(generation, oid):
            if record.tid <= tid:
                break
            found = record
        return None if found is None else FileRow(generation, found)

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        find = self._entry if self._unpublished else self.generation.index.get
        found: dict[Oid, Current | None] = {}
        in_versions: dict[Oid, tuple[int, Tid]] = {}
        made: dict[Tid, Current] = {}  # see `FileVersions.currents`
        for oid in oids:
            entry = find(oid)
            if entry is None:
                found[oid] = None
            elif entry[0] >= IN_VERSION:
                in_versions[oid] = entry
            else:
                found[oid] = made.get(entry[1]) or made.setdefault(entry[1], Current(entry[1], ""))
        if in_versions:
            for oid, version in self.generation.versions.of(in_versions).items():
                found[oid] = new_current(Current, (in_versions[oid][1], version))
        return found

    def changed(self, serials: dict[Oid, Tid]) -> dict[Oid, Tid]:
        """See `IReadChecks`."""
        unpublished = self._unpublished  # read before the index
        changed = dict(self.generation.index.changed(serials))
        for written in unpublished:
            changed.update((oid, written.tid) for oid in written.positions if oid in serials)
        return {oid: tid for oid, tid in changed.items() if tid != serials[oid]}

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        unpublished = self._unpublished  # read before the visible part
        found = self.generation.versions.currents()
        for written in unpublished:
            for oid, version in written.versions.items():
                found.pop(oid, None)
                if version:
                    found[oid] = Current(written.tid, version)
        return found

    def had_versions(self) -> bool:
        """See `IEngine`: always true, since versions are not counted."""
        return True

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`."""
        return history.transaction(self.generation, tid)

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`."""
        return history.transactions(self.generation, start, stop, newest_first)

    def chains(self) -> Iterator[tuple[Oid, list[tuple[Tid, int]]]]:
        """See `IEngine`."""
        generation = self.generation
        for oid in generation.index.oids():
            chain = [(record.tid, record.size) for record in self._chain(generation, oid)]
            yield oid, chain[::-1]

    # -- history

    def oids(self) -> Iterator[Oid]:
        """See `IOwnHistory`."""
        return iter(self.generation.index.oids())

    def load_before(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IOwnHistory`. Raises `CorruptedDataError` if index and log disagree."""
        return history.load_before(self.generation, self.name, oid, tid, version)

    def load_serial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IOwnHistory`."""
        return history.load_serial(self.generation, self.name, oid, serial)

    def list_revisions(self, oid: Oid, size: int) -> list[dict[str, Any]]:
        """See `IOwnHistory`."""
        return history.list_revisions(self.generation, self.name, oid, size)

    def iterate(self, start: Tid | None, stop: Tid | None) -> Iterator[TransactionRecord]:
        """See `IOwnHistory`."""
        return history.iterate(self.generation, start, stop)

    def undoable(self, stop: Tid | None) -> Iterator[TransactionRow]:
        """See `IOwnHistory`."""
        return history.undoable(self.generation, stop)

    # -- writing

    def write(self, transaction: TransactionRow, rows: StagedRows) -> Written:
        """See `IEngine`."""
        generation = self.generation
        log = generation.log
        head = log.head(transaction, rows, generation.end)
        self._writing_to = end = generation.end + head.size
        try:
            self.make_room(end, transaction.oids)
            before = self._before(rows)
            generation.met.clear()
            return log.write(transaction, rows, head, before)
        except OSError as error:
            raise StorageWriteError(
                f"{self.name}: the transaction ({head.size} bytes) could not be written: {error}. "
                "Nothing was committed; free disk space, or check the disk, and try again"
            ) from error

    def make_room(self, end: int, oids: Iterable[Oid]) -> None:
        """Allocate space for the log up to *end*, and index pages for *oids*."""
        generation = self.generation
        if end > generation.log.allocated and self._preallocate_bytes:
            generation.log.allocate(end + self._preallocate_bytes)
        generation.index.reserve(oids)

    def _before(self, rows: StagedRows) -> Before:
        """Return the records that those of a transaction point to."""
        find = self._entry if self._unpublished else self.generation.index.get
        entries = {oid: entry for oid in rows.replaced if (entry := find(oid)) is not None}
        if not (rows.locked or rows.versions or rows.back_pointers):
            return Before({oid: entry[0] for oid, entry in entries.items()}, {}, {}, {})
        previous = {oid: entry[0] & POSITION for oid, entry in entries.items()}
        data = {
            oid: previous[oid] if oid in entries and entries[oid][1] == tid
            else self._position_of(oid, tid)
            for oid, tid in rows.back_pointers.items()
        }
        log, versions, locked = self.generation.log, self.generation.versions, rows.locked
        versions.forget_outside(locked.keys() ^ rows.versions.keys())
        outside = {}
        for oid in rows.versions.keys() & previous.keys():
            if oid in locked:
                outside[oid] = versions.outside(oid, previous[oid])
                continue
            outside[oid] = previous[oid]
            if oid in data:
                target = log.record(data[oid])
                if target.version:
                    outside[oid] = target.outside
        latest = {version: self._latest_in(version) for version in set(rows.versions.values())}
        return Before(previous, data, outside, latest)

    def _position_of(self, oid: Oid, tid: Tid) -> int:
        """Return the position of the existing revision *tid*."""
        record = self._record(self.generation, oid, tid)
        if record is None:
            raise self.generation.log.damaged(0, f"revision {tid.hex()} cannot be found", oid)
        return record.position

    def _latest_in(self, version: str) -> int:
        """Return the position of the last record in *version*, 0 if there is none."""
        for written in reversed(self._unpublished):
            here = [
                written.positions[oid] & POSITION for oid, own in written.versions.items()
                if own == version
            ]
            if here:
                return max(here)
        return self.generation.versions.latest(version)

    def rollback(self, token: Written | None) -> None:
        """See `IEngine`: overwrite with zeros.

        They must be durable before the next transaction is written there: otherwise a crash could
        leave the old bytes with the status byte of the new transaction.
        """
        if self._writing_to > self.generation.end:  # bytes were written
            self.erase(self._writing_to)

    def erase(self, end: int) -> None:
        """Write zeros from the end of the log to *end*."""
        generation = self.generation
        try:
            if end <= generation.log.allocated:
                generation.log.erase(generation.end, end)
            else:
                generation.log.truncate(generation.end)
            if self.durability == "sync":
                generation.file.sync()
            self._writing_to = 0
        except OSError as error:
            self.is_failed = True
            raise StorageFailedError(
                f"an uncommitted transaction could not be rolled back: {error}"
            ) from error

    def commit(self, token: Written) -> None:
        """See `IEngine`."""
        try:
            self.generation.log.decide(token.position, token.status)
        except OSError as error:
            self.is_failed = True
            raise StorageFailedError(f"a commit could not be finished: {error}") from error
        self.take_in(token)

    def is_committed(self, token: Written) -> bool:
        """See `IEngine`."""
        return self.generation.file.read_at(1, token.position + STATUS_AT) == token.status

    def take_in(self, written: Written) -> None:
        """Note a transaction that is committed, but not visible yet."""
        with self._unpublished_lock:
            is_new = not self._unpublished or self._unpublished[-1].tid < written.tid
            if is_new and not self.is_failed:  # else a previous call was interrupted
                self._unpublished += (written,)
        self.generation.end = written.end

    def sync(self) -> None:
        """See `ISynced`."""
        if self.durability == "sync":
            try:
                self.generation.file.sync()
            except OSError as error:
                self.is_failed = True
                self._unpublished = ()  # it is unknown whether they are durable
                raise StorageFailedError(f"a sync failed: {error!r}") from error

    def publish(self, token: Written) -> None:
        """See `IEngine`."""
        if self.visibility.tid < token.tid:
            self._show(token)
        with self._unpublished_lock:
            while self._unpublished and self._unpublished[0].tid <= token.tid:
                self._unpublished = self._unpublished[1:]

    def _show(self, token: Written) -> None:
        generation = self.generation
        generation.reader.end = token.end  # before the index refers to it
        generation.index.set_many(token.positions, token.tid)
        generation.index.note_synced(token.end)
        if token.versions:
            generation.versions.update(token.versions, token.positions, token.tid)
        if token.new_objects:
            self.max_oid = max(self.max_oid, int.from_bytes(max(token.positions), "big"))
        self.since_checkpoint += len(token.positions) + 1
        if generation.published.tid < token.tid:  # else a previous call was interrupted
            objects = generation.published.objects + token.new_objects
            generation.publish(Published(token.end, token.tid, self.max_oid, objects))
        self.visibility.show(token.tid)

    def show(self, generation: Generation, end: int, tid: Tid, objects: int) -> None:
        """Make everything up to *end* visible."""
        generation.publish(Published(end, tid, self.max_oid, objects))
        self.visibility.show(tid)

    def after_commit(self) -> None:
        """See `ISynced`: make a checkpoint of the index, when it is time."""
        is_time = self.since_checkpoint >= self._checkpoint_records
        if not is_time or not self.checkpoint_lock.acquire(blocking=False):
            return
        try:
            self.since_checkpoint = 0
            generation = self.generation
            gone = what_is_gone(self.files, self.name, generation.file)
            if gone is not None:
                self.is_failed = True
                raise StorageFailedError(gone)
            synced = self.durability == "sync"
            generation.index.write_checkpoint(*generation.published, synced=synced)
        except OSError as error:
            self.is_failed = True
            raise StorageFailedError(f"the index could not be synced: {error}") from error
        finally:
            self.checkpoint_lock.release()

    # -- packing

    def pack(
        self, options: PackOptions, alone: Callable[[], AbstractContextManager[None]]
    ) -> PackResult:
        """See `IOwnPack`."""
        return FilePack(self, options, alone).run()

    def packed_tid(self) -> Tid:
        """See `IPackedTid`."""
        if self._packed_tid is None:
            self._packed_tid = self.generation.last_packed()
        return self._packed_tid

    def note_packed(self, tid: Tid) -> None:
        """See `IPackedTid`."""
        self._packed_tid = max(self.packed_tid(), tid)

    # -- facts, checks and the end

    def count(self) -> int:
        """See `IEngine`."""
        return self.generation.published.objects

    def size(self) -> int:
        """See `IEngine`: the size of the log, without space allocated ahead."""
        return self.generation.end

    def self_check(self) -> list[str]:
        """See `ISelfChecking`: checks the index against the log, the chains of records, and the
        bytes after the last transaction."""
        tail = self.follower.tail_problem() if self.is_read_only else None
        generation = self.generation
        seen = generation.published
        problems = check_structure(generation.log, generation.index, seen.end, seen.objects)
        return problems if tail is None else [*problems, tail]

    def close(self) -> None:
        """See `IEngine`."""
        if self._is_dropped or self._pid != os.getpid():  # the files are the parent's
            return
        generation, is_settled = self.generation, self.is_read_only or self.is_failed
        gone = None if is_settled else what_is_gone(self.files, self.name, generation.file)
        try:
            if not (is_settled or gone):
                self._settle(generation)
        finally:
            self.drop_opened()
        if gone is not None:
            raise StorageError(f"{gone}: no file of this name has the committed transactions")

    def _settle(self, generation: Generation) -> None:
        """Leave the log as long as it is, synced, with its index; once more, if interrupted."""
        try:
            generation.settle()
        except OSError:
            raise
        except BaseException:
            generation.settle()
            raise

    def drop_opened(self) -> None:
        """Close the files and let go of the lock, writing nothing (see `owning`)."""
        generation: Generation | None = getattr(self, "generation", None)
        if generation is not None:
            generation.close()
        if self.lock is not None:
            self.lock.release()
        self._is_dropped = True
