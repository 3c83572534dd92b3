"""BerkeleyEngine: rows in tables of Berkeley DB, beside the log that makes them durable.

    load     one get for the current row; a search in `old` for an older one
    write    a transaction of Berkeley DB: replaced rows to `old`, then the new ones
    commit   without a sync
    sync     of the log, for all committed transactions

`_writing` is held for each use of `_change`, the transaction of Berkeley DB. Reading takes no lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet
from zlib import crc32

from zope.interface import implementer

from objdb.errors import (
    ObjdbError,
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
    StorageWriteError,
)
from objdb.forks import Stage, at_fork
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.amending import Rows, Transactions
from objdb.storage.berkeley.change import Change, Facts, read_facts, read_versions
from objdb.storage.berkeley.directory import (
    Marker,
    lock_directory,
    read_marker,
    settle_log_directory,
    write_marker,
)
from objdb.storage.berkeley.environment import Environment
from objdb.storage.berkeley.package import DIRTY, bdb, explained, require_package
from objdb.storage.berkeley.reading import BerkeleyRows
from objdb.storage.durability import Durability
from objdb.storage.engine import (
    ICurrentLoad,
    IMaintained,
    IPrunable,
    ISelfChecking,
    ISynced,
    Visibility,
)
from objdb.storage.files import free_bytes, require_folder
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.rows import CRC_BYTES, SOUND, TransactionRow
from objdb.storage.staging import StagedRows

_PRUNE_OIDS = 5000  # approximate number of objects pruned at a time
# The space that a commit may take in the log and the tables: fixed, and per byte.
_BYTES_BESIDE, _TIMES = 1 << 20, 3


class _Gone:
    """Replaces an environment that cannot be used any more."""

    def __init__(self, error: Callable[[], ObjdbError]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error()

    def load(self, *args: Any) -> Any:
        """Replaces the function that gets a row."""
        raise self._error()


@implementer(ICurrentLoad, ISynced, IPrunable, ISelfChecking, IMaintained)
class BerkeleyEngine(BerkeleyRows):
    """Keeps rows in *directory*; see `BerkeleyStorage` for the arguments. *checkpoint*: the KiB of
    log, and the minutes, after which a checkpoint is made."""

    tick_seconds = 1.0
    keep_seconds = 0.0  # no other process reads

    @drops_what_it_opened
    def __init__(
        self, directory: str, history: bool | None, create: bool, durability: Durability,
        cache_bytes: int, log_directory: str | None, keep_logs: bool, checkpoint: tuple[int, int],
    ) -> None:
        require_package()
        self.name = directory
        self.visibility = Visibility(directory)
        self._checkpoint = checkpoint
        self._commit_flags = (
            bdb.DB_TXN_NOSYNC if durability == "sync" else bdb.DB_TXN_WRITE_NOSYNC
        )
        self._durability = durability
        self._pid = os.getpid()
        self._is_failed = False
        self._free_bytes = 0
        self._writing = threading.Lock()
        self._backup_lock = threading.Lock()
        self._change: Change | None = None
        self._pruned_tid: Tid = NO_TID
        self._lock = lock_directory(directory, create)
        self._marker = marker = read_marker(directory, history)
        self.path = os.path.abspath(directory)
        self._log_directory = settle_log_directory(
            self.path, log_directory, not marker.is_complete
        )
        self.keeps_history = marker.history
        self.has_checksums = marker.has_checksums
        self._open(cache_bytes, keep_logs, marker)

    def _open(self, cache_bytes: int, keep_logs: bool, marker: Marker) -> None:
        self._environment: Any
        self._environment = self._opened = Environment(
            self.name, log_directory=self._log_directory, cache_bytes=cache_bytes,
            has_checksums=marker.has_checksums, keep_logs=keep_logs,
            create=not marker.is_complete,
        )
        if not marker.is_complete:
            write_marker(self.name, marker._replace(is_complete=True))
        self._facts: Facts
        last, self._facts = read_facts(self._environment)
        self._in_versions = read_versions(self._environment)
        self._get_current = self._environment.current.get
        self.max_oid = self._facts.max_oid
        if last != NO_TID:
            self.visibility.show(last)
        _open_engines.add(self)

    # -- reading

    def load_current(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, None] | None:
        """See `ICurrentLoad`."""
        try:
            found = self._get_current(oid, None, None, DIRTY)
        except bdb.DBError as error:
            self._environment.is_damage(error)
            return None
        # A plain, visible row, the usual case, needs no more.
        if found is not None and not found[8]:
            serial = found[:8]
            if serial < tid and serial < self.visibility.before:
                if not self.has_checksums:
                    return found[9:], serial, None
                if crc32(found, crc32(oid)) == SOUND:
                    return found[9:-CRC_BYTES], serial, None
        return None

    def count(self) -> int:
        """See `IEngine`."""
        return self._facts.objects

    def size(self) -> int:
        """See `IEngine`: the size of all rows. The files are somewhat larger."""
        return self._facts.size

    # -- committing

    def write(self, transaction: TransactionRow, rows: StagedRows) -> Tid:
        """See `IEngine`; the token is the tid."""
        self._require_space(transaction.size)
        with self._writing:
            self._end_change(None)  # that of an interrupted commit
            try:
                self._change = Change(self._environment, self._facts)
                self._change.add(transaction, rows, rows.replaced, self._in_versions)
            except (bdb.DBError, MemoryError) as error:
                self._environment.is_damage(error)  # otherwise it could not be rolled back
                raise explained(error, self.name) from error
        return transaction.tid

    def _require_space(self, size: int) -> None:
        """Raise `StorageWriteError` if a transaction would fill the disk: at the vote, when
        failing is still safe."""
        needed = size * _TIMES + _BYTES_BESIDE
        if needed > self._free_bytes:
            self._look_for_space()
        if needed > self._free_bytes:
            raise StorageWriteError(
                f"{self.name}: the disk is full: a commit of {size} bytes may need {needed}, but "
                f"{self._free_bytes} are free; nothing was committed. Free disk space and try again"
            )
        self._free_bytes -= size

    def _look_for_space(self) -> None:
        """Note the free disk space (called periodically)."""
        self._free_bytes = min(free_bytes(self.path), free_bytes(self._log_directory))

    def _end_change(self, flags: int | None) -> None:
        """Commit the Berkeley DB transaction, or abort it (None), if there is one. `_writing` is
        held."""
        change = self._change
        if change is None:
            return
        try:
            if flags is None and not change.is_committed:  # else a commit was interrupted
                change.abort()
            elif flags is not None:
                change.commit(flags)
            if change.is_committed:
                self._take_in(change)
        except (bdb.DBError, MemoryError) as error:
            self._is_failed = True
            self._change = None
            raise StorageFailedError(
                f"a transaction could not be ended ({explained(error, self.name)})"
            ) from error
        self._change = None

    def _take_in(self, change: Change) -> None:
        self._facts = change.facts
        for oid, current in change.versions.items():
            if current is not None:
                self._in_versions[oid] = current
            else:
                self._in_versions.pop(oid, None)

    def commit(self, token: Tid) -> None:
        """See `IEngine`."""
        with self._writing:
            self._end_change(self._commit_flags)

    def is_committed(self, token: Tid) -> bool:
        """See `IEngine`."""
        return self._change is None or self._change.is_committed

    def rollback(self, token: Tid | None) -> None:
        """See `IEngine`."""
        with self._writing:
            self._end_change(None)

    def sync(self) -> None:
        """See `ISynced`."""
        if self._durability == "sync":
            try:
                self._environment.flush()
            except (ObjdbError, OSError, bdb.DBError) as error:
                self._is_failed = True
                raise StorageFailedError(f"the log could not be synced ({error!r})") from error

    def after_commit(self) -> None:
        """See `ISynced`: does nothing."""

    def publish(self, token: Tid) -> None:
        """See `IEngine`."""
        self.visibility.show(token)

    # -- maintenance

    def amend(self, rows: Rows, transactions: Transactions) -> None:
        """See `IEngine`."""
        self._change_alone(lambda change: change.amend(rows, transactions))

    def _change_alone(self, action: Callable[[Change], object]) -> None:
        """Call *action* with a Berkeley DB transaction, and commit that. The slot is held."""
        with self._writing:
            self._end_change(None)
            try:
                self._change = Change(self._environment, self._facts)
                action(self._change)
            except BaseException as error:
                self._environment.is_damage(error)
                self._end_change(None)
                if isinstance(error, (bdb.DBError, MemoryError)):
                    raise explained(error, self.name) from error
                raise
            self._end_change(self._commit_flags)

    def prune(self, horizon: Tid) -> Tid:
        """See `IPrunable`."""
        last, done, count = self.visibility.committed_tid, self._pruned_tid, 0
        gone: Transactions = {}
        found: list[TransactionRow] = []
        for transaction in self.transactions(NO_TID, horizon):
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
        self._pruned_tid = done
        return done

    def tick(self) -> None:
        """See `IMaintained`: make a checkpoint when it is time."""
        self._look_for_space()
        self._environment.checkpoint(*self._checkpoint)

    def back_up(self, directory: str) -> None:
        """Write a copy to the new *directory*, while others read and commit."""
        from objdb.storage.berkeley.backup import back_up

        with self._backup_lock:
            target = os.path.abspath(directory)  # no slash at its end
            require_folder(target, "backup")
            back_up(self._environment, self._marker._replace(is_complete=True), target)

    # -- closing, and forks

    def close(self) -> None:
        """See `IEngine`."""
        _open_engines.discard(self)
        if self._pid != os.getpid():
            return  # the environment is the parent's
        with self._backup_lock, self._writing:
            try:
                self._end_change(None)
            finally:
                self._use_no_more(
                    lambda: StorageClosedError(f"{self.name} is closed. Open it again to use it")
                )
            try:
                self._opened.close(in_order=not self._is_failed)
            except ObjdbError:
                self._lock.release()
                raise
            self._lock.release()

    def drop_opened(self) -> None:
        """Close what the constructor has opened, writing nothing (see `owning`)."""
        _open_engines.discard(self)
        if (environment := self.__dict__.get("_opened")) is not None:
            environment.close_handles(is_written=False)
        if (lock := self.__dict__.get("_lock")) is not None:
            lock.release()

    def _use_no_more(self, error: Callable[[], ObjdbError]) -> None:
        gone: Any = _Gone(error)
        self._environment, self._facts, self._get_current = gone, gone, gone.load

    def leave_to_parent(self) -> None:
        """Never use the environment again (called in a forked child)."""
        self._environment.abandon()
        if self._change is not None:
            self._change.abandon()
        self._use_no_more(
            lambda: StorageForkedError(
                f"{self.name} was opened by process {self._pid}, and this is a forked child. One "
                "process at a time can have it open: use it there"
            )
        )


_open_engines: WeakSet[BerkeleyEngine] = WeakSet()


def _leave_all_to_parent() -> None:
    for engine in list(_open_engines):
        engine.leave_to_parent()


at_fork(Stage.STORAGES, in_child=_leave_all_to_parent)
