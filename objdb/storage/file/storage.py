"""FileStorage: the log, its index and group commit put together.

    load     index.get(oid) ─► one read at the position ─► header checked ─► record
    vote     conflicts checked ─► space and index pages reserved ─► written with status `c`
    finish   status byte ─► slot freed ─► shared sync ─► callback ─► index ─► lastTransaction()

Locks: the commit slot (`revisions`) covers `_decided`, the medium's `end` and writing to its log;
the leader of a group commit alone changes index entries, what is published, `_last_tid` and the
counters; `_checkpoint_lock` is held while the index is made durable. Reading takes none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from zope.interface import implementer

from objdb.errors import (
    POSKeyError,
    StorageError,
    StorageFailedError,
    StorageWriteError,
    UsageError,
    require_at_least,
)
from objdb.ids import Oid, Tid
from objdb.interfaces import (
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePolling,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageSelfCheck,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import Staged
from objdb.storage.durability import Durability, GroupCommit
from objdb.storage.file.checking import check_structure
from objdb.storage.file.copying import FileCopying
from objdb.storage.file.following import FollowingFile
from objdb.storage.file.format import START
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Before, Log, LogTicket, Written
from objdb.storage.file.lookup import IN_VERSION
from objdb.storage.file.medium import Medium, Published
from objdb.storage.file.opening import create_file, require_openable
from objdb.storage.file.pack import PackableFile, remove_leftovers
from objdb.storage.file.recovery import LogState, cut_tail, open_log, tail_problem
from objdb.storage.files import (
    Files,
    Lock,
    OSFiles,
    hold_or_release,
    path_given,
    take_lock,
    what_is_gone,
)

DURABILITIES = ("sync", "os")
# How often, and how long apart, what lies behind the last transaction is looked at.
_LOOKS_AT_TAIL, _BETWEEN_LOOKS_SECONDS = 4, 0.01


@implementer(
    IStorage, IStorageReadChecks, IStorageHistory, IStorageIteration, IStoragePolling,
    IStorageSelfCheck, IStorageCurrentRecordIteration, IStorageRestoreable, IStorageUndoable,
    IStorageVersions, IStoragePackable,
)
class FileStorage(FollowingFile, PackableFile, FileCopying):
    """Keeps every revision in one file, in ZODB's format.

    *path*: the file; made if it does not exist (unless *create* is false, or *read_only*).
    *read_only*: take no lock and no transactions; may be open while another process writes,
    whose commits are seen as they come.
    *durability*: `"sync"`: a commit returns when it is on the medium; `"os"`: when the
    operating system has it, which survives the process but not a loss of power.
    *preallocate_bytes*: how far ahead disk space is allocated (0: not at all).
    *checkpoint_records*: after how many records the index is made durable: what a crash leaves
    to be replayed.
    *files*: the file system.

    Raises `FileFormatError`, `NeedsMigrationError`, `StorageLockedError`, `CorruptedDataError`,
    or OSError from the operating system.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, read_only: bool = False,
        durability: Durability = "sync", preallocate_bytes: int = 1024 * 1024,
        checkpoint_records: int = 16_384, files: Files | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise UsageError(f"durability is {durability!r}; it can be {' or '.join(DURABILITIES)}")
        require_at_least(0, preallocate_bytes=preallocate_bytes)
        require_at_least(1, checkpoint_records=checkpoint_records)
        self._files = files or OSFiles()
        path = self._files.real_path(path_given(path, "file"))
        super().__init__(path, read_only=read_only, path=path)
        self._durability = durability
        self._preallocate_bytes = preallocate_bytes
        self._checkpoint_records = checkpoint_records
        self._failed: str | None = None
        self._db: Any = None
        require_openable(self._files, path, create=create and not read_only)
        self._lock: Lock | None = None if read_only else take_lock(self._files, path)
        try:
            self._open(path, create and not read_only)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._group = GroupCommit(self._sync, self._publish)
        self._checkpoint_lock = threading.Lock()
        self._poll_lock = threading.Lock()
        self._pack_lock = threading.Lock()

    # -- opening

    def _open(self, path: str, create: bool) -> None:
        files, read_only = self._files, self._is_read_only
        if create and not files.exists(path):
            create_file(files, path)
            if self._lock is not None:
                hold_or_release(self._lock, path)
        if not read_only:
            remove_leftovers(files, path)
        medium = self._open_current(path) if read_only else self._open_medium(path)
        self._last_tid = self._decided = medium.published.tid
        self._use(medium)

    def _open_medium(self, path: str) -> Medium:
        """Open the log and its index, and see to what a crash left."""
        files, read_only = self._files, self._is_read_only
        file = files.open(path, "r" if read_only else "w")
        log, index, is_new = Log(file), None, not files.exists(path + ".oidx")
        try:
            index = self._open_index(path + ".oidx")
            state = open_log(log, index, read_only=read_only)
            if not read_only:
                was_closed = file.size() == state.end > START and not state.replayed
                cut_tail(log, files, state)
                self._after_recovery(index, state, was_closed)
        except BaseException:
            file.close()
            if index is not None:
                index.close()
                if is_new and not read_only:
                    files.remove(path + ".oidx")
            raise
        self._note_oid(state.max_oid.to_bytes(8, "big"))
        medium = Medium(file, log, index, is_shared=read_only)
        medium.end = state.end
        medium.publish(Published(state.end, state.tid, self._max_oid, state.objects))
        return medium

    def _use(self, medium: Medium) -> None:
        """Read and write *medium* from now on."""
        self._medium = medium
        self._load_plain = medium.reader.load

    def _open_index(self, path: str) -> Index:
        read_only = self._is_read_only
        if read_only and not self._files.exists(path):
            return Index(None, writable=False)
        return Index(self._files.open(path, "r" if read_only else "c"), writable=not read_only)

    def _after_recovery(self, index: Index, state: LogState, was_closed: bool) -> None:
        """Make durable what the replay found out, if it was much, or nothing was known; and what
        the index says, unless the file *was_closed* in order: a process that was killed may have
        left it to the operating system only."""
        self._since_checkpoint = state.replayed
        checkpoint = index.checkpoint
        unsynced = self._durability == "os"
        is_old = checkpoint is None or not checkpoint.synced
        if is_old or unsynced or state.replayed > self._checkpoint_records // 4:
            index.write_checkpoint(
                state.end, state.tid, state.max_oid, state.objects, synced=not unsynced
            )
            self._since_checkpoint = 0
        elif not was_closed:
            index.sync()

    # -- reading

    def __len__(self) -> int:
        """The number of objects."""
        return self._medium.published.objects

    def getSize(self) -> int:
        """Return the size of the log, without space allocated ahead, in bytes."""
        return self._medium.end

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`. Raises `CorruptedDataError` where the index and the
        log disagree."""
        found = self._load_plain(oid, tid, version) if version else self._load_plain(oid, tid)
        if found is not None:
            return found
        medium = self._medium
        entry = medium.index.settled(oid)
        if entry is None:
            self._require_open()
            raise POSKeyError(oid, database=self._name)
        return self._load_unusual(medium, oid, tid, version, entry)

    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, tuple[int, Tid] | None]:
        find = self._current if self._group.unpublished else self._medium.index.get
        return {oid: find(oid) for oid in oids}

    def _find_changed(self, serials: dict[Oid, Tid]) -> list[tuple[Oid, Tid]]:
        # Read before the index: a ticket leaves only when its entries are in the index.
        unpublished = self._group.unpublished
        changed = dict(self._medium.index.changed(serials))
        for ticket in unpublished:
            changed.update((oid, ticket.tid) for oid in ticket.positions if oid in serials)
        return list(changed.items())

    def _current(self, oid: Oid) -> tuple[int, Tid] | None:
        """Return (position, tid) of the current record, decided ones included."""
        # Read before the index: a ticket leaves only when its entries are in the index.
        for ticket in reversed(self._group.unpublished):
            if oid in ticket.positions:
                return ticket.positions[oid], ticket.tid
        return self._medium.index.get(oid)

    def _load_decided(self, oid: Oid, tid: Tid) -> bytes:
        entry = self._current(oid)
        assert entry is not None and entry[1] == tid
        log = self._medium.log
        data = log.data(log.record(entry[0]))
        if data is None:
            raise POSKeyError(oid, database=self._name)
        return data

    # -- versions

    def _modified_in(self, version: str) -> dict[Oid, tuple[int, Tid]]:
        unpublished = self._group.unpublished  # read before what is published
        found = self._medium.versions.objects(version)
        for ticket in unpublished:
            for oid, own in ticket.written.versions.items():
                found.pop(oid, None)
                if own == version:
                    found[oid] = ticket.positions[oid], ticket.tid
        return found

    def _version_names(self) -> list[str]:
        names = set(self._medium.versions.names())
        for ticket in self._group.unpublished:
            names.update(ticket.written.versions.values())
        return [name for name in names if name and self._modified_in(name)]

    def _locked_among(self, entries: dict[Oid, tuple[int, Tid] | None]) -> dict[Oid, str]:
        locked = {
            oid: entry for oid, entry in entries.items()
            if entry is not None and entry[0] >= IN_VERSION
        }
        return self._medium.versions.of(locked) if locked else {}

    def _latest_in(self, version: str) -> int:
        """Return where the last record in *version* is, 0 if there is none. The slot is held."""
        for ticket in reversed(self._group.unpublished):
            here = [
                ticket.positions[oid] & POSITION for oid, own in ticket.written.versions.items()
                if own == version
            ]
            if here:
                return max(here)
        return self._medium.versions.latest(version)

    def self_check(self) -> list[str]:
        """See `IStorageSelfCheck`: the index against the log, the chains of records, and what is
        behind the last transaction."""
        tail = self._tail_problem()
        medium = self._medium
        seen = medium.published
        problems = check_structure(medium.log, medium.index, seen.end, seen.objects)
        return problems if tail is None else [*problems, tail]

    def _tail_problem(self) -> str | None:
        """Return what is wrong behind the last transaction, where nobody has seen to that; not
        what another process is just writing, which is something else a moment later."""
        if not self._is_read_only:
            return None
        found = ""
        for _ in range(_LOOKS_AT_TAIL):
            self.poll()
            medium = self._medium
            again = tail_problem(medium.log, medium.published.end, medium.published.tid)
            if again is None:
                return None
            found = again
            time.sleep(_BETWEEN_LOOKS_SECONDS)
        return found

    # -- committing

    def tpc_begin(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        """See `RevisionStorage.tpc_begin`."""
        if self._failed is not None:
            self._require_not_failed()
        super().tpc_begin(transaction, tid, status)

    def _decided_tid(self) -> Tid:
        return self._decided

    def _prepare(self, staged: Staged) -> None:
        if self._failed is not None:
            self._require_not_failed()
        medium = self._medium
        log = medium.log
        head = log.head(staged, staged.transaction, medium.end)
        end = medium.end + head.size
        current, before = staged.current, self._before(staged)
        try:
            if end > log.allocated and self._preallocate_bytes:
                log.allocate(end + self._preallocate_bytes)
            medium.index.reserve(current)
            staged.medium = log.write(staged, head, before)
        except OSError as error:
            self._take_back(end)
            raise StorageWriteError(
                f"{self._name}: the transaction ({head.size} bytes) could not be written: {error}. "
                "Nothing was committed; make space, or see to the disk, and try again"
            ) from error

    def _before(self, staged: Staged) -> Before:
        """Return what the records that are staged point to."""
        current, locked = staged.current, staged.locked
        previous = {oid: entry[0] for oid, entry in current.items() if entry is not None}
        if not locked and not staged.versions:
            return Before(previous, {}, {})
        previous = {oid: place & POSITION for oid, place in previous.items()}
        log, versions = self._medium.log, self._medium.versions
        versions.forget_outside(locked.keys() ^ staged.versions.keys())
        outside = {}
        for oid in staged.versions.keys() & previous.keys():
            if oid in locked:
                outside[oid] = versions.outside(oid, previous[oid])
                continue
            outside[oid] = previous[oid]
            if oid in staged.repeats:
                repeated = log.record(staged.repeats[oid])
                if repeated.version:
                    outside[oid] = repeated.outside
        latest = {version: self._latest_in(version) for version in set(staged.versions.values())}
        return Before(previous, outside, latest)

    def _take_back(self, end: int) -> None:
        """Leave zeros where a transaction was written that will not be.

        They must be on the medium before the next one is written there: else a crash could keep
        the old bytes together with the status byte of the new.
        """
        medium = self._medium
        try:
            if end <= medium.log.allocated:
                medium.log.erase(medium.end, end)
            else:
                medium.log.truncate(medium.end)
            if self._durability == "sync":
                medium.file.sync()
        except OSError as error:
            self._fail(f"an undecided transaction could not be taken back: {error}")

    def _discard(self, staged: Staged) -> None:
        self._take_back(staged.medium.end)

    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        self._require_open()
        written: Written = staged.medium
        medium = self._medium
        assert staged.tid is not None and written.position == medium.end
        try:
            medium.log.decide(written.position, staged.status.encode())
        except OSError as error:
            self._fail(f"a commit could not be finished: {error}")
            self._require_not_failed()
        medium.end = written.end
        ticket = LogTicket(staged.tid, written, finished)
        later = getattr(staged.transaction, "later", None)
        self._group.join(ticket, waits_at_once=later is None)
        self._decided = staged.tid  # who sees that, sees the ticket
        self._slot.release(staged)
        if later is None:
            self._wait(ticket)
        else:
            later.append(partial(self._wait, ticket))

    def _wait(self, ticket: LogTicket) -> None:
        self._group.wait(ticket)
        if self._since_checkpoint >= self._checkpoint_records:
            self._write_checkpoint()

    def _settle(self, staged: Staged) -> None:
        ticket = self._join_group()
        self._slot.release(staged)
        if ticket is not None:
            self._group.wait(ticket)

    def _join_group(self) -> LogTicket | None:
        """Return a ticket to wait with, like a transaction that wrote nothing, behind those that
        are decided and not visible yet; None if there are none. The slot is held."""
        if not self._group.unpublished:
            return None
        nothing = Written(self._medium.end, self._medium.end, {}, 0, {})
        ticket = LogTicket(self._decided, nothing, lambda tid: None)
        self._group.join(ticket)
        return ticket

    def _sync(self) -> None:
        """Put what is decided on the medium (called by the leader of a group)."""
        if self._durability == "sync":
            if self._failed is not None:
                self._require_not_failed()
            try:
                self._medium.file.sync()
            except BaseException as error:
                self._fail(f"a sync failed: {error!r}")
                raise

    def _publish(self, ticket: LogTicket) -> None:
        """Let others see a durable transaction (called by the leader, in tid order)."""
        try:
            ticket.finished(ticket.tid)
        finally:
            medium, written = self._medium, ticket.written
            medium.reader.end = written.end  # before the index leads there
            medium.index.set_many(written.positions, ticket.tid)
            medium.index.note_synced(written.end)
            if written.versions:
                medium.versions.update(written.versions, written.positions, ticket.tid)
            if written.positions:
                self._note_oid(max(written.positions))
            self._since_checkpoint += len(written.positions) + 1
            objects = medium.published.objects + written.new_objects
            self._publish_state(medium, written.end, ticket.tid, objects)

    def _write_checkpoint(self) -> None:
        """Make the index durable up to here, by the thread whose commit made it due."""
        if not self._checkpoint_lock.acquire(blocking=False):
            return
        try:
            self._since_checkpoint = 0
            medium = self._medium
            gone = what_is_gone(self._files, self._name, medium.file)
            if gone is not None:
                return self._fail(gone)
            medium.index.write_checkpoint(*medium.published, synced=self._durability == "sync")
        except OSError as error:
            self._fail(f"the index could not be synced: {error}")
        finally:
            self._checkpoint_lock.release()

    # -- failing and closing

    def _fail(self, what: str) -> None:
        self._failed = what

    def _require_not_failed(self) -> None:
        if self._failed is not None:
            raise StorageFailedError(
                f"{self._name} commits no more, since {self._failed}. Close it, see to the disk, "
                "and open it again: what it then shows is what was committed"
            )

    def _close(self) -> None:
        if self._pid != os.getpid():  # a fork's copy: the parent's files are not ours to finish
            return
        medium, is_settled = self._medium, self._is_read_only or self._failed is not None
        gone = None if is_settled else what_is_gone(self._files, self._name, medium.file)
        try:
            ticket = self._join_group()
            if ticket is not None:
                self._group.wait(ticket)
            if not (is_settled or self._failed or gone):
                medium.log.truncate(medium.end)
                medium.file.sync()
                medium.index.write_checkpoint(*medium.published)
        finally:
            self._medium.close()
            if self._lock is not None:
                self._lock.release()
        if gone is not None:
            raise StorageError(f"{gone}: what was committed is in no file that has this name")

    def registerDB(self, db: Any) -> None:
        """See `RevisionStorage.registerDB`."""
        super().registerDB(db)
        self._db = db
