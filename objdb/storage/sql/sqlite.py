"""SQLite: a storage in one file, for several threads and several processes at once.

    loads     each thread has a connection of its own, in a read transaction that is begun anew
              when something was committed; in the order of the oids, some rows at a time
    commits   one connection, used by the holder of the commit slot
    poll      what other processes have committed: transactions after the last one known

    vote      file lock ─► BEGIN IMMEDIATE ─► poll ─► checks ─► rows written
    finish    COMMIT (and sync) ─► file lock freed ─► callback ─► lastTransaction()

SQLite's write-ahead log lets everybody read meanwhile. Processes wait for each other at a lock
file, since SQLite itself can only be asked again and again; programs that do not know of it are
waited for at BEGIN IMMEDIATE.

A read transaction keeps the write-ahead log from being started over, so a thread (`Clock`) ends
those that are not new, once a second, and copies the log into the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from zlib import crc32

from zope.interface import alsoProvides, implementer

from objdb.errors import (
    CorruptedDataError,
    ObjdbError,
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
)
from objdb.ids import ROOT_OID, Oid, Tid, format_tid
from objdb.interfaces import (
    IStorageHistory,
    IStorageSelfCheck,
    IStorageShared,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.clock import Clock
from objdb.storage.commit import Staged
from objdb.storage.durability import Durability
from objdb.storage.files import path_given
from objdb.storage.sql.backup import back_up
from objdb.storage.sql.checking import find_problems
from objdb.storage.sql.links import Link, Links, unwatch, watch
from objdb.storage.sql.opening import (
    SQLITE_ERRORS,
    ProcessLock,
    connect,
    explained,
    open_database,
    pragmas,
    require_seconds,
)
from objdb.storage.sql.space import require_space
from objdb.storage.sql.statements import (
    NEW_TRANSACTIONS,
    NOTE_LAST_OID,
    SET_OIDS_ASIDE,
    Statements,
)
from objdb.storage.sql.storage import SQLStorage, name_of, number
from objdb.storage.tables.rows import PLAIN, Row, TransactionRow

_CLOCK_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  # how long closing waits for a call of SQLite
_LONG_LOG_BYTES = 4 << 20
_FIRST_OIDS, _MOST_OIDS = 50, 12_800  # how many oids are set aside at a time


@implementer(IStorageShared, IStorageSelfCheck)
class SQLiteStorage(SQLStorage):
    """Keeps revisions in the SQLite database *path*, made if it does not exist (unless *create*
    is false). Several processes may have it open at once, and see each other's commits.

    *history*: whether old revisions are kept, for undo, versions and the past (default: as the
    database was made; true for a new one). Without, they stay for *keep_seconds*, for those who
    still read them. *read_only*: take no transactions. *durability*: `"sync"`: a commit returns
    when it is on the medium (`synchronous=FULL`); `"os"`: when the operating system has it.
    *busy_seconds*: how long a commit waits for another process's. *cache_bytes*: of SQLite's
    cache, for each thread.

    Raises `FileFormatError` for a file of something else or of a newer release,
    `StorageLockedError`, `CorruptedDataError`, or OSError from the operating system.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, history: bool | None = None, create: bool = True,
        read_only: bool = False, durability: Durability = "sync", busy_seconds: float = 30,
        cache_bytes: int = 16 << 20, keep_seconds: float = 600,
    ) -> None:
        self._pragmas = pragmas(durability, cache_bytes)
        require_seconds(busy_seconds=busy_seconds, keep_seconds=keep_seconds)
        path = path_given(path, "file")
        self._path = os.path.abspath(path)  # it stays, when the process changes its directory
        self._options: dict[str, Any] = {
            "history": history, "create": False, "read_only": read_only, "durability": durability,
            "busy_seconds": busy_seconds, "cache_bytes": cache_bytes, "keep_seconds": keep_seconds,
        }
        self._keep_seconds = keep_seconds
        self._busy_seconds = busy_seconds
        made, self._grip = open_database(
            path, history, create and not read_only, read_only, busy_seconds, durability
        )
        super().__init__(path, read_only=read_only, keeps_history=made.keeps_history, path=path)
        self._has_checksums = made.has_checksums
        self._statements = Statements(made.has_checksums)
        if made.keeps_history:
            alsoProvides(self, IStorageHistory, IStorageUndoable, IStorageVersions)
        self._open()

    def _open(self) -> None:
        self._failed: str | None = None
        self._poll_lock = threading.Condition(threading.Lock())
        self._links = Links(self._connect, self._statements)
        self._process_lock = ProcessLock(self._path + ".lock", self._busy_seconds)
        self._writer = Link(self._connect(), self._statements)
        self._polling = self._connect()
        self._grip.take()
        self._own_tid: Tid | None = None  # of the transaction that is being committed here
        self._aside_lock = threading.Lock()  # of setting oids aside
        self._oids_until = 0  # up to which oids are set aside for this process
        self._oids_at_a_time = _FIRST_OIDS
        self._forking = ExitStack()  # what is held during a fork
        last = self._find("SELECT max(tid) FROM transactions")[0]
        if last is not None:
            self._publish(name_of(last))
        self._start_clock()
        watch(self)

    def _start_clock(self) -> None:
        self._clock = Clock(_CLOCK_SECONDS, self._tick, f"{self._path} clock")

    def _connect(self) -> sqlite3.Connection:
        try:
            return connect(self._path, self._is_read_only, self._busy_seconds, self._pragmas)
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def again(self) -> SQLiteStorage:
        """See `IStorageShared`."""
        return SQLiteStorage(self._path, **self._options)

    # -- reading

    def _link(self) -> Link:
        """Return the link of this thread, which may be closed at any moment."""
        link: Link | None = getattr(self._links.local, "link", None)
        if link is None or link.is_ending:
            self._require_open()
            if self._pid != os.getpid():
                raise StorageForkedError(
                    f"{self._name} was opened by process {self._pid}, of which this one is a "
                    "fork. Open the storage in the child"
                )
            link = self._links.open()
            if link is None:
                raise self._closed_error()
        return link

    def _find(self, statement: str, *parameters: Any) -> Any:
        return self._ask(statement, parameters, sqlite3.Cursor.fetchone)

    def _find_all(self, statement: str, *parameters: Any) -> list[Any]:
        rows: list[Any] = self._ask(statement, parameters, sqlite3.Cursor.fetchall)
        return rows

    def _ask(
        self, statement: str, parameters: Sequence[Any], fetch: Callable[[sqlite3.Cursor], Any]
    ) -> Any:
        try:
            lent: Link | None = getattr(self._links.local, "lent", None)
            if lent is not None:
                return fetch(lent.execute(statement, parameters))
            while True:
                link = self._link()
                with link.lock:
                    if link.is_closed:  # at this moment, for a fork
                        continue
                    if link.tid is not self._last_tid:
                        link.renew(self._last_tid)
                    found = fetch(link.execute(statement, parameters))
                link.end_if_told()
                return found
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def _explained(self, error: BaseException) -> ObjdbError:
        return self._closed_error() if self._closed else explained(error, self._name)

    def _closed_error(self) -> StorageClosedError:
        return StorageClosedError(f"{self._name} is closed. Open it again to use it")

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `VersionedStorage.loadBefore`."""
        try:
            link = self._links.local.link
            with link.lock:
                if link.tid is not self._last_tid:
                    link.renew(self._last_tid)
                key = int.from_bytes(oid, "big", signed=True)
                found = link.ahead.pop(key, None) or link.find(key)
            if link.is_ending:
                link.end()
        except (AttributeError, *SQLITE_ERRORS):
            # The first time in this thread, or in a vote; or told, or got over, by what is slower.
            found = None
        if found is not None:
            _, tid_number, data, own, crc = found
            if own is None and type(data) is bytes and type(tid_number) is int and tid_number >= 0:
                serial = tid_number.to_bytes(8, "big")
                if serial < tid and serial < self._visible_before and (
                    crc == crc32(data, crc32(oid + serial + PLAIN)) or not self._has_checksums
                ):
                    return data, serial, None
        return super().loadBefore(oid, tid, version)

    def getSize(self) -> int:
        """Return how much of the file is in use, in bytes."""
        names = "page_count", "freelist_count", "page_size"
        pages, free, size = (self._find(f"PRAGMA {name}")[0] for name in names)
        return int((pages - free) * size)

    # -- what other processes do

    def poll(self) -> None:
        """See `IStoragePolling`."""
        try:
            with self._poll_lock:
                # What others committed behind a transaction of this process is seen with it.
                while (own := self._take_in(self._polling)) is not None:
                    self._poll_lock.wait_for(partial(self._is_foreign, own))
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def _is_foreign(self, tid: Tid) -> bool:
        return tid != self._own_tid

    def _take_in(self, connection: sqlite3.Connection) -> Tid | None:
        """Note what was committed, up to a transaction of this process that is decided and not
        shown yet; return that if others have committed behind it. `_poll_lock` is held."""
        last = connection.execute("SELECT max(tid) FROM transactions").fetchone()[0]
        if last is None or last == number(self._last_tid):
            return None
        own = self._own_tid
        found = connection.execute(NEW_TRANSACTIONS, (number(self._last_tid),)).fetchall()
        for tid_number, oids in found:
            tid = name_of(tid_number)
            if own is not None and tid >= own:
                return own if last > number(own) else None
            if type(oids) is not bytes:
                raise CorruptedDataError(
                    f"{self._name}: the row of transaction {format_tid(tid)} is damaged: its oids "
                    f"are {oids!r:.40}", path=self._path,
                )
            if hasattr(self._db, "invalidate"):
                self._db.invalidate(tid, [oids[i : i + 8] for i in range(0, len(oids), 8)])
            self._publish(tid)
        return None

    # -- oids

    def new_oid(self) -> Oid:
        """Return an oid that was never returned before, by any process."""
        while True:
            with self._oid_lock:
                if self._max_oid < self._oids_until:
                    self._max_oid = number = self._max_oid + 1
                    return number.to_bytes(8, "big")
            self._require_writable()
            with self._aside_lock:
                if self._max_oid >= self._oids_until:
                    self._set_oids_aside()

    def _set_oids_aside(self) -> None:
        """Take some oids that no other process gets. `_aside_lock` is held."""
        with self._alone():
            self._change(SET_OIDS_ASIDE, [(self._max_oid, self._oids_at_a_time)])
            until = self._fact("last_oid", None)
        with self._oid_lock:
            self._max_oid = max(self._max_oid, until - self._oids_at_a_time)
            self._oids_until = until
        self._oids_at_a_time = min(self._oids_at_a_time * 2, _MOST_OIDS)

    # -- committing

    def tpc_vote(self, transaction: Any) -> list[Oid]:
        """See `RevisionStorage.tpc_vote`."""
        try:
            return super().tpc_vote(transaction)
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error
        finally:
            self._links.give_back()

    def _begin_vote(self) -> None:
        if self._failed is not None:
            raise StorageFailedError(self._failed)
        self._links.lend(self._writer)  # until the end of the vote
        self._begin_writing()

    def _begin_writing(self) -> None:
        """Keep all other processes from writing, and take in what they wrote. The writer is lent
        to this thread."""
        self._require_open()
        self._process_lock.acquire()
        try:
            self._require_in_place()
            self._writer.execute("BEGIN IMMEDIATE")
            with self._poll_lock:
                self._take_in(self._writer.connection)
        except BaseException as error:
            self._end_writing("ROLLBACK")
            if isinstance(error, SQLITE_ERRORS):
                raise self._explained(error) from error
            raise
        self._writer.see(self._last_tid)

    def _end_writing(self, how: str) -> None:
        try:
            with self._links.using(self._writer):
                if self._writer.connection.in_transaction:
                    self._writer.execute(how)
        finally:
            self._process_lock.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._slot.held():
            self._links.lend(self._writer)
            try:
                self._begin_writing()
                yield
                self._end_writing("COMMIT")
            except BaseException as error:
                self._end_writing("ROLLBACK")
                if isinstance(error, SQLITE_ERRORS):
                    raise self._explained(error) from error
                raise
            finally:
                self._links.give_back()

    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._writer.connection.executemany(statement, rows)

    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]], replaced: list[Oid]
    ) -> None:
        self._require_space(transaction, replaced)
        super()._write(transaction, rows, replaced)

    def _write_plain(
        self, transaction: TransactionRow, records: Iterable[tuple[Oid, bytes | None]],
        replaced: list[Oid],
    ) -> None:
        self._require_space(transaction, replaced)
        super()._write_plain(transaction, records, replaced)

    def _require_space(self, transaction: TransactionRow, replaced: list[Oid]) -> None:
        require_space(
            self._path, transaction, len(replaced), lambda: self._find("PRAGMA page_count")[0]
        )

    def _prepare(self, staged: Staged) -> None:
        super()._prepare(staged)
        largest = number(max(staged.bases, default=ROOT_OID))
        if largest < 0:  # the first bit is the sign
            largest = max(map(number, staged.bases))
        if largest > self._max_oid:  # it comes from elsewhere
            self._note_oid(name_of(largest))
            self._change(NOTE_LAST_OID, [(largest, largest)])
        self._own_tid = staged.tid

    def _decide(self) -> None:
        if self._writer.is_closed:  # it took too long
            raise self._closed_error()
        try:
            self._end_writing("COMMIT")
            self._require_in_place(only_log=True)
        except StorageFailedError:
            self._own_tid = None
            raise
        except SQLITE_ERRORS as error:
            self._own_tid = None
            with suppress(*SQLITE_ERRORS):
                self._end_writing("ROLLBACK")
            told = self._explained(error)
            self._failed = (
                f"{self._name}: a commit failed ({told}). Whether the transaction is on the "
                "medium is unknown, so the storage commits no more. Close it, see to the disk, "
                "and open it again"
            )
            raise StorageFailedError(self._failed) from error

    def _require_in_place(self, only_log: bool = False) -> None:
        """Raise `StorageFailedError`, now and from now on, if what is written would go to files
        that are no longer those of the database."""
        gone = self._grip.what_is_gone(only_log)
        if gone is not None:
            self._failed = gone
            raise StorageFailedError(gone)

    def _take_back(self) -> None:
        self._own_tid = None
        if not self._writer.is_closed:
            self._end_writing("ROLLBACK")

    def _show(self, tid: Tid) -> None:
        with self._poll_lock:
            self._publish(tid)
            self._own_tid = None
            self._poll_lock.notify_all()

    # -- maintenance

    def _tick(self) -> None:
        self._links.rest()
        if not self._keeps_history and not self._is_read_only:
            self._forget_old(self._keep_seconds)
        with suppress(OSError, *SQLITE_ERRORS):
            if os.path.getsize(self._path + "-wal") > _LONG_LOG_BYTES:
                with self._poll_lock:
                    self._polling.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def backup(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Write a copy of the database, as of now, to the new file *path*, while others work.

        `progress(pages, of)` is called now and then. FileExistsError if there is such a file.
        """
        self._require_open()
        try:
            back_up(self._connect, self._path, path_given(path, "backup"), progress)
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def self_check(self) -> list[str]:
        """Return what SQLite finds wrong with the file, and what `checking` does with the rows."""
        keeps = self._keeps_history
        return list(find_problems(self._find_all, self._statements, self._name, keeps))

    def _end_work(self, seconds: float) -> None:
        self._clock.stop(seconds)

    def _close(self) -> None:
        unwatch(self)
        if self._pid != os.getpid():
            return  # the connections are the parent's
        self._links.close(_CLOSE_SECONDS)
        with self._poll_lock:
            self._polling.close()
        self._writer.end(_CLOSE_SECONDS)  # which takes back what was not decided
        self._grip.let_go()
        self._process_lock.close()

    # -- forks

    def real_path(self) -> str:
        """See `links.Forkable`."""
        return os.path.realpath(self._path)

    def before_fork(self, seconds: float) -> bool:
        """See `links.Forkable`."""
        self._end_work(seconds)
        hold = self._forking.enter_context
        is_quiet = hold(self._slot.quiet(seconds))
        for lock in (self._oid_lock, self._poll_lock):
            hold(lock)
        self._forking.callback(self._links.go_on)
        is_unused = self._links.pause(seconds)
        if is_quiet:
            self._writer.end()
        self._polling.close()
        return is_quiet and is_unused

    def after_fork(self) -> None:
        """See `links.Forkable`."""
        if self._writer.is_closed:
            self._writer = Link(self._connect(), self._statements)
        self._polling = self._connect()
        self._grip.take()
        self._forking.close()
        self._start_clock()

    def leave_to_parent(self) -> None:
        """See `links.Forkable`."""
        self._process_lock.close()
