"""BerkeleyStorage: revisions in tables of Berkeley DB, beside the log that makes them durable.

    load     one get of the current revision; of an older one, a search in `old`
    vote     conflicts checked ─► a transaction of the engine: replaced rows to `old`, new ones
    finish   commit without sync ─► slot freed ─► shared sync of the log ─► callback ─► visible

Locks: the commit slot covers `_decided`; `_writing` is held for each use of `_change`, the
engine's transaction. Reading takes none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet
from zlib import crc32

from zope.interface import alsoProvides

from objdb.errors import (
    ObjdbError,
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
    StorageWriteError,
    UsageError,
    require_at_least,
)
from objdb.ids import NO_TID, Oid, Tid
from objdb.interfaces import (
    IStorageHistory,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.berkeley.change import Change, read_facts, read_places
from objdb.storage.berkeley.directory import (
    Marker,
    lock_directory,
    read_marker,
    settle_log_directory,
    write_marker,
)
from objdb.storage.berkeley.engine import DIRTY, bdb, explained, require_package
from objdb.storage.berkeley.environment import Environment
from objdb.storage.berkeley.reading import BerkeleyRows
from objdb.storage.clock import Clock
from objdb.storage.commit import Staged
from objdb.storage.durability import Durability, GroupCommit, Ticket
from objdb.storage.files import free_bytes, path_given, require_folder
from objdb.storage.tables.pack import Rows, Transactions
from objdb.storage.tables.rows import (
    CRC_BYTES,
    SOUND,
    Row,
    TransactionRow,
)

DURABILITIES = ("sync", "os")
_CLOCK_SECONDS = 1.0
_PIECE = 500  # rows
_PRUNE_OIDS = 5000  # about how many objects are seen to at a time
# What a commit of some bytes may take in the log and the tables.
_BYTES_BESIDE, _TIMES = 1 << 20, 3


class _Gone:
    """In the place of an environment that cannot be used any more."""

    def __init__(self, error: Callable[[], ObjdbError]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error()

    def load(self, *args: Any) -> Any:
        """In the place of the function that gets a row."""
        raise self._error()


class BerkeleyStorage(BerkeleyRows):
    """Keeps revisions in tables of Berkeley DB in *directory*, made if it does not exist (unless
    *create* is false). One process at a time can have it open.

    *history*: whether old revisions are kept, for undo, versions and the past (default: as the
    database was made; true for a new one). Without, they stay while somebody reads them.
    *durability*: `"sync"`: a commit returns when it is on the medium; `"os"`: when the operating
    system has it. *cache_bytes*: of the engine's cache. *log_directory*: where the log is, if
    not in the directory; on another disk, say (default: where it was). *keep_logs*: keep log
    files that are not needed to recover from a crash. *checkpoint_bytes*, *checkpoint_minutes*:
    how far the log may grow before the tables are put on the medium: what a crash leaves to be
    recovered.

    Raises `MissingPackageError` without the package `berkeleydb`, `FileFormatError` for a
    directory of something else or of a newer release, `StorageLockedError`,
    `CorruptedDataError`, `StorageError` without permission, FileNotFoundError.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, history: bool | None = None,
        create: bool = True, durability: Durability = "sync", cache_bytes: int = 64 << 20,
        log_directory: str | os.PathLike[str] | None = None, keep_logs: bool = False,
        checkpoint_bytes: int = 32 << 20, checkpoint_minutes: int = 1,
    ) -> None:
        require_package()
        if durability not in DURABILITIES:
            raise UsageError(f"durability is {durability!r}; it can be {' or '.join(DURABILITIES)}")
        require_at_least(1 << 20, cache_bytes=cache_bytes)
        require_at_least(1024, checkpoint_bytes=checkpoint_bytes)
        require_at_least(1, checkpoint_minutes=checkpoint_minutes)
        path = path_given(directory, "directory")
        logs = None if log_directory is None else path_given(log_directory, "log directory")
        self._checkpoint = checkpoint_bytes >> 10, checkpoint_minutes
        self._commit_flags = (
            bdb.DB_TXN_NOSYNC if durability == "sync" else bdb.DB_TXN_WRITE_NOSYNC
        )
        self._durability = durability
        self._lock = lock_directory(path, create)
        try:
            marker = read_marker(path, history)
            self._home = os.path.abspath(path)
            self._log_directory = settle_log_directory(self._home, logs, not marker.is_complete)
            super().__init__(path, keeps_history=marker.history, path=path)
            self._open(cache_bytes, keep_logs, marker)
        except BaseException:
            self._lock.release()
            raise
        if marker.history:
            alsoProvides(self, IStorageHistory, IStorageUndoable, IStorageVersions)
        self._clock = Clock(_CLOCK_SECONDS, self._tick, f"{path} clock")

    def _open(self, cache_bytes: int, keep_logs: bool, marker: Marker) -> None:
        self._failed: str | None = None
        self._marker = marker
        self._has_checksums = marker.has_checksums
        self._free_bytes = 0
        self._writing = threading.Lock()
        self._backup_lock = threading.Lock()
        self._change: Change | None = None
        self._group: GroupCommit[Ticket] = GroupCommit(self._sync, self._publish_ticket)
        self._environment: Any = Environment(
            self._name, log_directory=self._log_directory, cache_bytes=cache_bytes,
            has_checksums=marker.has_checksums, keep_logs=keep_logs,
            create=not marker.is_complete,
        )
        try:
            if not marker.is_complete:
                write_marker(self._name, marker._replace(is_complete=True))
            self._decided, self._facts = read_facts(self._environment)
            self._in_versions = read_places(self._environment)
        except BaseException:
            self._environment.close_handles(is_written=False)
            raise
        self._get_current = self._environment.current.get
        self._max_oid = self._facts.max_oid
        if self._decided != NO_TID:
            self._publish(self._decided)
        _open_storages.add(self)

    # -- reading

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        try:
            found = self._get_current(oid, None, None, DIRTY)
        except bdb.DBError as error:
            self._environment.is_damage(error)
            found = None
        # Of a plain row that is seen, which is almost always, this is all.
        if found is not None and not found[8]:
            serial = found[:8]
            if serial < tid and serial < self._visible_before:
                if not self._has_checksums:
                    return found[9:], serial, None
                if crc32(found, crc32(oid)) == SOUND:
                    return found[9:-CRC_BYTES], serial, None
        return super().loadBefore(oid, tid, version)

    def __len__(self) -> int:
        """The number of objects."""
        self._require_open()
        return self._facts.objects

    def getSize(self) -> int:
        """Return the size of all rows, in bytes. The files are somewhat larger."""
        return self._facts.size

    # -- committing

    def tpc_begin(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        """See `RevisionStorage.tpc_begin`."""
        if self._failed is not None:
            raise StorageFailedError(self._failed)
        super().tpc_begin(transaction, tid, status)

    def _decided_tid(self) -> Tid:
        return self._decided

    def _begin_vote(self) -> None:
        if self._failed is not None:
            raise StorageFailedError(self._failed)

    def _rows_of(self, staged: Staged, tid: Tid) -> Iterator[tuple[Oid, Any]]:
        if staged.versions or staged.repeats:
            yield from super()._rows_of(staged, tid)
            return
        for oid, record in staged.records():
            yield oid, Row(tid, None) if record is None else record

    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Any]], replaced: list[Oid]
    ) -> None:
        self._require_space(transaction.size)
        with self._writing:
            self._end_change(None)  # that of a finish that was interrupted
            try:
                self._change = Change(self._environment, self._facts)
                self._change.add(transaction, rows, replaced, self._in_versions)
            except (bdb.DBError, MemoryError) as error:
                self._environment.is_damage(error)  # and else it could not be taken back
                raise explained(error, self._name) from error

    def _require_space(self, size: int) -> None:
        """Raise `StorageWriteError` if a transaction would fill the disk: at the vote, where
        nothing is lost by it, rather than later."""
        needed = size * _TIMES + _BYTES_BESIDE
        if needed > self._free_bytes:
            self._look_for_space()
        if needed > self._free_bytes:
            raise StorageWriteError(
                f"{self._name}: the disk is full: a commit of {size} bytes may need {needed}, and "
                f"{self._free_bytes} are free; nothing was committed. Make room, and try again"
            )
        self._free_bytes -= size

    def _look_for_space(self) -> None:
        """Note how much can be written (called now and then)."""
        self._free_bytes = min(free_bytes(self._home), free_bytes(self._log_directory))

    def _end_change(self, flags: int | None) -> None:
        """Commit the engine's transaction, or abort it (None), if there is one. `_writing` is
        held."""
        change = self._change
        if change is None:
            return
        try:
            if flags is None:
                change.abort()
            else:
                change.commit(flags)
                self._take_in(change)
        except (bdb.DBError, MemoryError) as error:
            self._fail(f"a transaction could not be ended ({explained(error, self._name)})")
            raise StorageFailedError(self._failed or "") from error
        finally:
            self._change = None

    def _take_in(self, change: Change) -> None:
        self._facts = change.facts
        for oid, place in change.places.items():
            if place is not None:
                self._in_versions[oid] = place
            else:
                self._in_versions.pop(oid, None)

    def _decide(self) -> None:
        with self._writing:
            self._end_change(self._commit_flags)

    def _take_back(self) -> None:
        with self._writing:
            self._end_change(None)

    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        self._require_open()
        assert staged.tid is not None
        self._decide()
        ticket = Ticket(staged.tid, finished)
        later = getattr(staged.transaction, "later", None)
        self._group.join(ticket, waits_at_once=later is None)
        self._decided = staged.tid
        self._slot.release(staged)
        if later is None:
            self._group.wait(ticket)
        else:
            later.append(partial(self._group.wait, ticket))

    def _settle(self, staged: Staged) -> None:
        ticket = self._join_group()
        self._give_up(staged)
        if ticket is not None:
            self._group.wait(ticket)

    def _join_group(self) -> Ticket | None:
        """Return a ticket to wait with, behind those that are decided and not visible yet; None
        if there are none. The slot is held."""
        if not self._group.unpublished:
            return None
        ticket = Ticket(self._decided, lambda tid: None)
        self._group.join(ticket)
        return ticket

    def _sync(self) -> None:
        """Put what is decided on the medium (called by the leader of a group)."""
        if self._durability == "sync":
            if self._failed is not None:
                raise StorageFailedError(self._failed)
            try:
                self._environment.flush()
            except BaseException as error:
                self._fail(f"the log could not be synced ({error!r})")
                raise

    def _publish_ticket(self, ticket: Ticket) -> None:
        """Let others see a durable transaction (called by the leader, in tid order)."""
        try:
            ticket.finished(ticket.tid)
        finally:
            self._note_oid(self._facts.max_oid.to_bytes(8, "big"))
            self._publish(ticket.tid)

    def _fail(self, what: str) -> None:
        self._failed = (
            f"{self._name} commits no more, since {what}. Close it, see to the disk, and open it "
            "again: what it then shows is what was committed"
        )

    # -- maintenance

    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        self._change_alone(lambda change: change.amend(rows, transactions))

    def _change_alone(self, action: Callable[[Change], object]) -> None:
        """Call *action* with a transaction of the engine, and commit that. The slot is held."""
        if self._failed is not None:
            raise StorageFailedError(self._failed)
        with self._writing:
            self._end_change(None)
            try:
                self._change = Change(self._environment, self._facts)
                action(self._change)
            except BaseException as error:
                self._environment.is_damage(error)
                self._end_change(None)
                if isinstance(error, (bdb.DBError, MemoryError)):
                    raise explained(error, self._name) from error
                raise
            self._end_change(self._commit_flags)

    def _prune(self, horizon: Tid) -> Tid:
        last, done, count = self._decided, self._pruned_tid, 0
        gone: Transactions = {}
        found: list[TransactionRow] = []
        for transaction in self._iter_transactions(NO_TID, horizon):
            if count > _PRUNE_OIDS:
                break
            done = transaction.tid
            count += len(transaction.oids) + 1
            found.append(transaction)
            if transaction.tid != last:
                gone[transaction.tid] = None
        else:
            done = horizon

        def forget(change: Change) -> None:
            for transaction in found:
                change.forget_replaced(transaction.oids, transaction.tid)
            change.amend({}, gone)

        self._change_alone(forget)
        return done

    def _tick(self) -> None:
        if self._failed is None:
            self._look_for_space()
            self._environment.checkpoint(*self._checkpoint)
            if not self._keeps_history:
                self._forget_old(0)

    def backup(self, directory: str | os.PathLike[str]) -> None:
        """Write a copy of the database to *directory*, which is made, while others work. It has
        all that was committed when this was called, and can be opened as it is.

        FileExistsError if there is such a directory.
        """
        from objdb.storage.berkeley.backup import back_up

        self._require_open()
        with self._backup_lock:
            target = os.path.abspath(path_given(directory, "backup"))  # no slash at its end
            require_folder(target, "backup")
            back_up(self._environment, self._marker._replace(is_complete=True), target)

    # -- closing, and forks

    def _end_work(self, seconds: float) -> None:
        self._clock.stop(seconds)

    def _close(self) -> None:
        _open_storages.discard(self)
        if self._pid != os.getpid():
            return  # the environment is the parent's
        try:
            ticket = self._join_group()
            if ticket is not None:
                self._group.wait(ticket)
        finally:
            with self._backup_lock, self._writing:
                self._close_environment()

    def _close_environment(self) -> None:
        try:
            self._end_change(None)
        finally:
            environment = self._environment
            self._use_no_more(
                lambda: StorageClosedError(f"{self._name} is closed. Open it again to use it")
            )
            try:
                environment.close(in_order=self._failed is None)
            finally:
                self._lock.release()

    def _use_no_more(self, error: Callable[[], ObjdbError]) -> None:
        gone = _Gone(error)
        self._environment, self._get_current = gone, gone.load

    def _leave_to_parent(self) -> None:
        """Never touch the environment again (called in a process that was forked)."""
        self._environment.abandon()
        if self._change is not None:
            self._change.abandon()
        self._use_no_more(
            lambda: StorageForkedError(
                f"{self._name} was opened by process {self._pid}, of which this one is a fork. "
                "One process at a time can have it: use it there"
            )
        )


_open_storages: WeakSet[BerkeleyStorage] = WeakSet()


def _leave_all_to_parent() -> None:
    for storage in list(_open_storages):
        storage._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
