"""SQLite: an engine in one file, for several threads and several processes at once.

    loads     each thread has a connection of its own, in a read transaction that is begun again
              after a commit; in the order of the oids, some rows at a time
    commits   one connection, used by the holder of the commit slot
    poll      takes in commits of other processes: transactions after the last known one

    vote      file lock ─► BEGIN IMMEDIATE ─► poll ─► checks ─► rows written
    finish    COMMIT (and sync) ─► file lock freed ─► callback ─► visible

SQLite's write-ahead log allows reading meanwhile. Processes wait for each other at a lock file,
since SQLite itself only offers polling; BEGIN IMMEDIATE waits for programs that do not use the
lock file.

A read transaction prevents a restart of the write-ahead log, so a thread (`Clock`) ends old ones,
once a second, and makes a checkpoint.
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

from zope.interface import implementer

from objdb.errors import (
    CorruptedDataError,
    ObjdbError,
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
)
from objdb.ids import ROOT_OID, Oid, Tid, format_tid
from objdb.storage.engine import (
    ICurrentLoad,
    IMaintained,
    IPrunable,
    ISelfChecking,
    IShared,
    Visibility,
)
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.rows import PLAIN, TransactionRow
from objdb.storage.sql.connections import Link, Links
from objdb.storage.sql.opening import (
    SQLITE_ERRORS,
    Grip,
    ProcessLock,
    connect,
    explained,
    open_database,
    pragmas,
)
from objdb.storage.sql.rows import SQLRows, name_of, number
from objdb.storage.sql.space import require_space
from objdb.storage.sql.statements import (
    NEW_TRANSACTIONS,
    NOTE_LAST_OID,
    SET_OIDS_ASIDE,
    Statements,
)
from objdb.storage.sql.verify import find_problems
from objdb.storage.staging import StagedRows

_CLOSE_SECONDS = 5.0  # the time that closing waits for a call of SQLite
_LONG_LOG_BYTES = 4 << 20


@implementer(IShared, ICurrentLoad, IPrunable, ISelfChecking, IMaintained)
class SQLiteEngine(SQLRows):
    """Keeps rows in the SQLite database *path*; see `SQLiteStorage` for the arguments.

    `_polling` has its own lock, `_poll_lock`, which covers `visibility` and `_own_tid` too. One
    thread at a time borrows and uses the writer.
    """

    tick_seconds = 1.0
    max_oid = 0  # all oids are reserved first

    @drops_what_it_opened
    def __init__(
        self, path: str, history: bool | None, create: bool, read_only: bool, durability: Any,
        busy_seconds: float, cache_bytes: int, keep_seconds: float,
    ) -> None:
        self.name = path
        self.path = os.path.abspath(path)  # valid even if the process changes directory
        self.keep_seconds = keep_seconds
        self.visibility = Visibility(path)
        # Called with the tid and oids of each commit of another process.
        self.tell: Callable[[Tid, list[Oid]], object] = _tell_nobody
        self._pragmas = pragmas(durability, cache_bytes)
        self._is_read_only = read_only
        self._busy_seconds = busy_seconds
        made, self._grip = open_database(
            path, history, create and not read_only, read_only, busy_seconds, durability
        )
        self.keeps_history = made.keeps_history
        self.has_checksums = made.has_checksums
        self._statements = Statements(made.has_checksums)
        self._pid = os.getpid()
        self._is_closed = False
        self._poll_lock = threading.Condition(threading.Lock())
        self._links = Links(self._connect, self._statements)
        self._process_lock = ProcessLock(self.path + ".lock", busy_seconds)
        self._writer = Link(self._connect(), self._statements)
        self._polling = self._connect()
        self._grip.take()
        self._own_tid: Tid | None = None  # of the transaction being committed here
        self._last_oid = 0  # a lower bound of the last oid reserved, or stored, by any process
        self._noted_oid = 0  # the last oid noted by this process's transactions
        self._paused = ExitStack()  # the locks held during a fork
        last = self._find("SELECT max(tid) FROM transactions")[0]
        if last is not None:
            self.visibility.show(name_of(last))

    def _connect(self) -> sqlite3.Connection:
        try:
            return connect(self.path, self._is_read_only, self._busy_seconds, self._pragmas)
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    # -- calls of SQLite

    def _link(self) -> Link:
        """Return the link of this thread, which another thread may close at any moment."""
        link: Link | None = getattr(self._links.local, "link", None)
        if link is None or link.is_ending:
            if self._is_closed:
                raise self._closed_error()
            if self._pid != os.getpid():
                raise StorageForkedError(
                    f"{self.name} was opened by process {self._pid}, and this is a forked child. "
                    "Open the storage in the child"
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
        visibility = self.visibility
        try:
            lent: Link | None = getattr(self._links.local, "lent", None)
            if lent is not None:
                return fetch(lent.execute(statement, parameters))
            while True:
                link = self._link()
                with link.lock:
                    if link.is_closed:  # just now, for a fork
                        continue
                    if link.tid is not visibility.tid:
                        link.renew(visibility.tid)
                    found = fetch(link.execute(statement, parameters))
                link.end_if_told()
                return found
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._writer.connection.executemany(statement, rows)

    def _explained(self, error: BaseException) -> ObjdbError:
        return self._closed_error() if self._is_closed else explained(error, self.name)

    def _closed_error(self) -> StorageClosedError:
        return StorageClosedError(f"{self.name} is closed. Open it again to use it")

    def load_current(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, None] | None:
        """See `ICurrentLoad`."""
        visibility = self.visibility
        try:
            link = self._links.local.link
            with link.lock:
                if link.tid is not visibility.tid:
                    link.renew(visibility.tid)
                key = int.from_bytes(oid, "big", signed=True)
                found = link.ahead.pop(key, None) or link.find(key)
            if link.is_ending:
                link.end()
        except (AttributeError, *SQLITE_ERRORS):
            # First use in this thread, or a vote; the slow path handles, or raises, other errors.
            return None
        if found is not None:
            _, tid_number, data, own, crc = found
            if own is None and type(data) is bytes and type(tid_number) is int and tid_number >= 0:
                serial = tid_number.to_bytes(8, "big")
                if serial < tid and serial < visibility.before and (
                    crc == crc32(data, crc32(oid + serial + PLAIN)) or not self.has_checksums
                ):
                    return data, serial, None
        return None

    # -- commits of other processes

    def poll(self) -> None:
        """Take in the commits of other processes."""
        try:
            with self._poll_lock:
                # Commits of others after a transaction of this process become visible with it.
                while (own := self._take_in(self._polling)) is not None:
                    self._poll_lock.wait_for(partial(self.is_foreign, own))
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error

    def is_foreign(self, tid: Tid) -> bool:
        """See `IShared`."""
        return tid != self._own_tid

    def _take_in(self, connection: sqlite3.Connection) -> Tid | None:
        """Take in commits, up to a transaction of this process that is committed but not visible
        yet; return its tid if others have committed after it. `_poll_lock` is held."""
        visible = self.visibility.tid
        last = connection.execute("SELECT max(tid) FROM transactions").fetchone()[0]
        if last is None or last == number(visible):
            return None
        own = self._own_tid
        found = connection.execute(NEW_TRANSACTIONS, (number(visible),)).fetchall()
        for tid_number, oids in found:
            tid = name_of(tid_number)
            if own is not None and tid >= own:
                return own if last > number(own) else None
            if type(oids) is not bytes:
                raise CorruptedDataError(
                    f"{self.name}: the row of transaction {format_tid(tid)} is damaged: its oids "
                    f"are {oids!r:.40}", path=self.path,
                )
            self.tell(tid, [oids[i : i + 8] for i in range(0, len(oids), 8)])
            self.visibility.show(tid)
        return None

    def reserve_oids(self, least: int, count: int) -> int:
        """See `IShared`."""
        self._change(SET_OIDS_ASIDE, [(least, count)])
        self._last_oid = self.fact("last_oid", None)
        return self._last_oid

    # -- committing

    def begin_vote(self) -> None:
        """See `IShared`."""
        self._links.lend(self._writer)
        self._begin_writing()

    def end_vote(self) -> None:
        """See `IShared`."""
        self._links.give_back()

    def _begin_writing(self) -> None:
        """Keep all other processes from writing, and take in their commits. This thread borrows
        the writer."""
        if self._is_closed:
            raise self._closed_error()
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
        self._writer.see(self.visibility.tid)

    def _end_writing(self, how: str) -> None:
        try:
            with self._links.using(self._writer):
                if self._writer.connection.in_transaction:
                    self._writer.execute(how)
        finally:
            self._process_lock.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `IShared`."""
        try:
            self._links.lend(self._writer)
            self._begin_writing()
            yield
            self._end_writing("COMMIT")
            self._links.rest()  # other threads read what is there now
        except BaseException as error:
            self._end_writing("ROLLBACK")
            if isinstance(error, SQLITE_ERRORS):
                raise self._explained(error) from error
            raise
        finally:
            try:
                self._links.give_back()
            except BaseException:
                self._links.give_back()
                raise

    def write(self, transaction: TransactionRow, rows: StagedRows) -> Tid:
        """See `IEngine`; the token is the tid."""
        require_space(
            self.path, transaction, len(rows.replaced), lambda: self._find("PRAGMA page_count")[0]
        )
        try:
            self._write(transaction, rows)
            self._note_largest(transaction.oids)
        except SQLITE_ERRORS as error:
            raise self._explained(error) from error
        self._own_tid = transaction.tid
        return transaction.tid

    def _note_largest(self, oids: list[Oid]) -> None:
        """Prevent all processes from handing out oids up to the largest of *oids*, which another
        storage may have assigned."""
        largest = number(max(oids, default=ROOT_OID))
        if largest < 0:  # the first bit is the sign
            largest = max(map(number, oids))
        if largest > self._last_oid:
            self._change(NOTE_LAST_OID, [(largest, largest)])
            self._noted_oid = largest

    def commit(self, token: Tid) -> None:
        """See `IEngine`."""
        if self._writer.is_closed:  # the commit took too long
            raise self._closed_error()
        try:
            self._end_writing("COMMIT")
            self._require_in_place(only_log=True)
        except StorageFailedError:
            self._own_tid = None
            raise
        except SQLITE_ERRORS as error:
            self._own_tid = None
            told = self._explained(error)
            with suppress(*SQLITE_ERRORS):
                self._end_writing("ROLLBACK")
            raise StorageFailedError(f"a commit failed ({told})") from error

    def is_committed(self, token: Tid) -> bool:
        """See `IEngine`."""
        return not (self._writer.is_closed or self._writer.connection.in_transaction)

    def _require_in_place(self, only_log: bool = False) -> None:
        """Raise `StorageFailedError` if writes would go to files that are no longer those of the
        database."""
        gone = self._grip.what_is_gone(only_log)
        if gone is not None:
            raise StorageFailedError(gone)

    def rollback(self, token: Tid | None) -> None:
        """See `IEngine`."""
        self._own_tid, self._noted_oid = None, 0
        if not self._writer.is_closed:
            self._end_writing("ROLLBACK")

    def publish(self, token: Tid) -> None:
        """See `IEngine`."""
        with self._poll_lock:
            self.visibility.show(token)
            self._last_oid = max(self._last_oid, self._noted_oid)
            self._own_tid = None
            self._poll_lock.notify_all()

    # -- facts and maintenance

    def size(self) -> int:
        """See `IEngine`: the size of the pages in use."""
        names = "page_count", "freelist_count", "page_size"
        pages, free, size = (self._find(f"PRAGMA {name}")[0] for name in names)
        return int((pages - free) * size)

    def tick(self) -> None:
        """See `IMaintained`: end old read transactions, make a checkpoint of a long log."""
        self._links.rest()
        with suppress(OSError, *SQLITE_ERRORS):
            if os.path.getsize(self.path + "-wal") > _LONG_LOG_BYTES:
                with self._poll_lock:
                    self._polling.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def self_check(self) -> list[str]:
        """See `ISelfChecking`: the problems that SQLite finds, and those that `verify` finds in
        the rows."""
        return list(
            find_problems(self._find_all, self._statements, self.name, self.keeps_history)
        )

    def close(self) -> None:
        """See `IEngine`."""
        self._is_closed = True
        if self._pid == os.getpid():  # else the connections are the parent's
            self._close(_CLOSE_SECONDS)

    def _close(self, seconds: float) -> None:
        self._links.close(seconds)
        with self._poll_lock:
            self._polling.close()
        self._writer.end(seconds)  # which rolls back an uncommitted transaction
        self._grip.let_go()
        self._process_lock.close()

    def drop_opened(self) -> None:
        """Close what the constructor has opened (see `owning`)."""
        self._is_closed = True
        for name, end in (
            ("_links", lambda links: links.close(0)), ("_polling", sqlite3.Connection.close),
            ("_writer", Link.end), ("_grip", Grip.let_go), ("_process_lock", ProcessLock.close),
        ):
            if (found := self.__dict__.get(name)) is not None:
                end(found)

    # -- forks

    def pause(self, seconds: float, may_write: bool) -> bool:
        """Close all connections before a fork, including the writer if *may_write*; return whether
        none was in use, after at most *seconds*."""
        self._paused.enter_context(self._poll_lock)
        self._paused.callback(self._links.go_on)
        is_unused = self._links.pause(seconds)
        if may_write:
            self._writer.end()
        self._polling.close()
        return is_unused

    def go_on(self) -> None:
        """Open the connections again, in the parent."""
        if self._writer.is_closed:
            self._writer = Link(self._connect(), self._statements)
        self._polling = self._connect()
        self._grip.take()
        self._paused.close()

    def leave_to_parent(self) -> None:
        """Release, in the child, handles that would outlive the parent."""
        self._process_lock.close()


def _tell_nobody(tid: Tid, oids: list[Oid]) -> None:
    """Do nothing: stands for the database until one is registered."""
