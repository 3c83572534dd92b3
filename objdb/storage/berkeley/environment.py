"""The engine: an environment of Berkeley DB, and its tables.

    current       oid        ─► tid, row     the last revision of each object
    old           oid + tid  ─► row          those before it
    transactions  tid        ─► transaction
    versions      see `change`

Reads include uncommitted rows (DB_READ_UNCOMMITTED), so they never wait for a transaction, but
only for a single engine call that is changing the page.

The environment is private to the process (DB_PRIVATE): its cache and locks are in memory, not in
files, so a killed process leaves only tables and log, and the next opener recovers (DB_RECOVER),
which does nothing after a clean close.

A page with a wrong checksum puts the engine into a panic; that is cleared (DB_PANIC_ENVIRONMENT),
since the other pages are not affected.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from typing import Any, TypeVar

from objdb.errors import CorruptedDataError, StorageWriteError
from objdb.storage.berkeley.directory import TABLES, file_of
from objdb.storage.berkeley.package import DIRTY, abandon, bdb, explained, is_panic
from objdb.storage.berkeley.pages import blank_pages, describe_blank, require_no_blank_pages
from objdb.storage.files import free_bytes, sync_path
from objdb.storage.holding import call_each

Result = TypeVar("Result")
Found = tuple[bytes, bytes]

# The page size of new tables: every disk writes it as a whole or not at all, since the log cannot
# restore a page torn by a loss of power.
PAGE_BYTES = 512
# Opening reads the last log file to its end.
_LOG_FILE_BYTES, _LOG_BUFFER_BYTES = 1 << 20, 1 << 18
_PIECE_BYTES = 1 << 20
_MOST_TRIES, _PAUSE_SECONDS, _SHORT_SECONDS = 10, 0.001, 0.00005
_CLOSE_SECONDS = 5.0
_close = methodcaller("close")
_OWN_REFERENCES = 2  # to an unused table: the attribute, and the argument of getrefcount


class Environment:
    """The open environment in the directory *path*. Tables are created if *create* is true.
    *has_checksums*: whether rows have them.

    Errors are those of `explained`.
    """

    def __init__(
        self, path: str, *, log_directory: str, cache_bytes: int, keep_logs: bool = False,
        has_checksums: bool = True, create: bool = False, is_backup: bool = False,
    ) -> None:
        self.path = path
        self.has_checksums = has_checksums
        # The paths stay valid when the process changes directory.
        self._home = os.path.abspath(path)
        self._keep_logs = keep_logs
        self.handle: Any = None
        self.current: Any = None
        self.old: Any = None
        self.transactions: Any = None
        self.versions: Any = None
        self._log_file = 0  # the number of the last log file whose name is on disk
        self._damage: str | None = None  # the reason why reading is refused
        try:
            self._open(log_directory, cache_bytes, create, is_backup)
        except BaseException as error:
            self.close_handles(is_written=False)
            if is_panic(error) and _is_full(path, log_directory):
                raise StorageWriteError(
                    f"{path} cannot be opened: the disk is full. Free disk space and reopen it: "
                    "all committed transactions are there"
                ) from error
            if is_panic(error):
                raise CorruptedDataError(
                    f"{path} cannot be opened: Berkeley DB says {error.args[1]!r}. Its files are "
                    "damaged: restore a backup; or the memory is too small for cache_bytes "
                    f"({cache_bytes})", path=path,
                ) from error
            if isinstance(error, (bdb.DBError, MemoryError)):
                raise explained(error, path) from error
            raise

    def _open(self, log_directory: str, cache_bytes: int, create: bool, is_backup: bool) -> None:
        handle = self.handle = bdb.DBEnv()
        handle.set_cachesize(cache_bytes >> 30, cache_bytes & ((1 << 30) - 1), 1)
        self._log_directory = os.path.abspath(log_directory)
        handle.set_lg_dir(self._log_directory)
        handle.set_lg_max(_LOG_FILE_BYTES)
        handle.set_lg_bsize(_LOG_BUFFER_BYTES)
        handle.set_lk_detect(bdb.DB_LOCK_DEFAULT)
        self._remove_logs(True)
        # Without set_lk_max_locks the lock table grows with the needs of a transaction.
        parts = bdb.DB_INIT_MPOOL | bdb.DB_INIT_LOCK | bdb.DB_INIT_LOG | bdb.DB_INIT_TXN
        recover = bdb.DB_RECOVER_FATAL if is_backup else bdb.DB_RECOVER
        # The engine's home is an empty directory: in any other it would obey a file DB_CONFIG.
        handle.set_data_dir(self._home)
        with tempfile.TemporaryDirectory(prefix="objdb-berkeley-") as self._empty:
            flags = parts | bdb.DB_CREATE | bdb.DB_THREAD | bdb.DB_PRIVATE | recover
            handle.open(self._empty, flags)
        handle.set_flags(bdb.DB_TXN_NOSYNC, 1)  # opening a table does not sync either
        flags = bdb.DB_AUTO_COMMIT | bdb.DB_THREAD | bdb.DB_READ_UNCOMMITTED
        for name in TABLES if not create else ():
            require_no_blank_pages(os.path.join(self._home, file_of(name)))
        for name in TABLES:
            table = bdb.DB(handle)
            setattr(self, name, table)
            table.set_flags(bdb.DB_CHKSUM)
            table.set_pagesize(PAGE_BYTES)
            is_new = bdb.DB_CREATE if create else 0
            table.open(file_of(name), None, bdb.DB_BTREE, flags | is_new)
        if create:
            self.flush()

    def _remove_logs(self, yes: bool) -> None:
        self.handle.log_set_config(bdb.DB_LOG_AUTO_REMOVE, int(yes and not self._keep_logs))

    # -- reading

    def read(self, action: Callable[..., Result], *args: Any) -> Result:
        """Call *action*, which reads, again if another thread met a damaged page."""
        if self._damage is not None:
            raise CorruptedDataError(self._damage, path=self.path)
        for tries in range(_MOST_TRIES):
            while True:
                try:
                    return action(*args)
                except (bdb.DBLockDeadlockError, bdb.DBLockNotGrantedError):
                    time.sleep(_SHORT_SECONDS)
                    continue
                except (bdb.DBError, MemoryError) as error:
                    is_last = tries == _MOST_TRIES - 1
                    if is_last or self.is_damage(error) or not is_panic(error):
                        raise explained(error, self.path) from error
                break
            # Another thread has met a damaged page, and is about to clear the panic.
            time.sleep(_PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    def is_damage(self, error: BaseException) -> bool:
        """Whether *error* is about a damaged page; if so, clear the engine's panic."""
        is_damage = is_panic(error) and "pgin failed" in str(error)
        if is_damage:
            self.calm()
        return is_damage

    def calm(self) -> None:
        """Clear the engine's panic after a damaged page."""
        self.handle.set_flags(bdb.DB_PANIC_ENVIRONMENT, 0)

    def get(self, table: str, key: bytes, size: int = -1) -> bytes | None:
        """Return the value at *key*, or the first *size* bytes of it, or None."""
        return self.read(self._get, table, key, size)

    def _get(self, table: str, key: bytes, size: int) -> bytes | None:
        start = -1 if size < 0 else 0
        found: bytes | None = getattr(self, table).get(key, None, None, DIRTY, size, start)
        return found

    def first_after(self, table: str, key: bytes) -> Found | None:
        """Return the first (key, value) after *key*."""
        return self.read(self._beside, table, key, True)

    def last_before(self, table: str, key: bytes) -> Found | None:
        """Return the last (key, value) before *key*."""
        return self.read(self._beside, table, key, False)

    def _beside(self, table: str, key: bytes, after: bool) -> Found | None:
        with self._cursor(table) as opened:
            found: Found | None = opened[0].set_range(key)
            if after:
                return opened[0].next() if found is not None and found[0] == key else found
            return _back(opened, found or opened[0].last(), key)

    @contextmanager
    def _cursor(self, table: str) -> Iterator[list[Any]]:
        """Give a list with a cursor in it. It is in no variable, and not in the list at the end: a
        traceback keeps variables, and the table would count as being in use."""
        # In a transaction that never waits for a lock while it has one, so there is no deadlock.
        txn = self.handle.txn_begin(None, bdb.DB_TXN_NOWAIT)
        opened: list[Any] = []
        try:
            opened.extend(map(getattr(self, table).cursor, (txn,), (DIRTY,)))
            yield opened
        except bdb.DBError as error:
            self.is_damage(error)  # otherwise the cursor could not be closed
            raise
        finally:
            try:
                with suppress(bdb.DBError):
                    call_each(opened, _close)
            finally:
                opened.clear()
                with suppress(bdb.DBError):
                    txn.abort()

    def last(self, table: str) -> Found | None:
        """Return the last (key, value)."""
        return self.read(self._last, table)

    def _last(self, table: str) -> Found | None:
        with self._cursor(table) as opened:
            found: Found | None = opened[0].last()
            return found

    def piece(
        self, table: str, start: bytes, stop: bytes, limit: int, newest_first: bool = False
    ) -> list[Found]:
        """Return up to *limit* pairs with *start* <= key <= *stop*, fewer if they are large, but
        at least one if any exists."""
        action = self._piece_back if newest_first else self._piece
        return self.read(action, table, start, stop, limit)

    def _piece(self, table: str, start: bytes, stop: bytes, limit: int) -> list[Found]:
        rows: list[Found] = []
        size = 0
        with self._cursor(table) as opened:
            found = opened[0].set_range(start)
            while found is not None and found[0] <= stop and _fits(rows, size, limit):
                rows.append(found)
                size += len(found[1])
                found = opened[0].next()
        return rows

    def _piece_back(self, table: str, start: bytes, stop: bytes, limit: int) -> list[Found]:
        rows: list[Found] = []
        size = 0
        with self._cursor(table) as opened:
            found = opened[0].set_range(stop)
            if found is None or found[0] != stop:
                found = _back(opened, found or opened[0].last(), stop)
            while found is not None and found[0] >= start and _fits(rows, size, limit):
                rows.append(found)
                size += len(found[1])
                found = opened[0].prev()
        return rows

    def find_blank_pages(self) -> list[str]:
        """Return the problems with pages that are zeros on disk; if there are any, refuse to read
        from now on, since a search might never end."""
        files = [os.path.join(self._home, file_of(name)) for name in TABLES]
        found = {file: positions for file in files if (positions := blank_pages(file))}
        if found:  # possibly pages not written yet
            self.checkpoint()
        problems = [
            describe_blank(file, sorted(still)) for file, positions in found.items()
            if (still := {*positions}.intersection(blank_pages(file)))
        ]
        if problems:
            self._damage = problems[0]
        return problems

    # -- the log

    def flush(self) -> None:
        """Sync the log, and the name of a new log file, which the engine does not sync."""
        self.handle.log_flush()
        number = self.handle.log_stat()["cur_file"]
        if number != self._log_file:
            sync_path(self._log_directory)
            self._log_file = number

    def checkpoint(self, kbytes: int = 0, minutes: int = 0) -> None:
        """Make a checkpoint, if the log has grown by *kbytes* since the last one, or *minutes*
        have passed: the tables are written, and recovery starts from there."""
        try:
            self.handle.txn_checkpoint(kbytes, minutes)
        except (bdb.DBError, MemoryError) as error:
            if is_panic(error) and not _is_full(self._home, self._log_directory):
                self.calm()
                raise CorruptedDataError(
                    f"{self.path} has damaged pages, so Berkeley DB cannot make a checkpoint "
                    f"({error.args[1]}). All committed transactions are in the log, and are "
                    "recovered when it is reopened. Run objdb check, and restore the directory "
                    "from a backup", path=self.path,
                ) from error
            raise explained(error, self.path) from error

    def copy_to(self, target: str) -> None:
        """Copy the tables and the log to the new directory *target*, while others write."""
        self._remove_logs(False)
        os.mkdir(self._empty, 0o700)  # the engine reads this directory too
        try:
            self.flush()
            flags = bdb.DB_CREATE | bdb.DB_EXCL | bdb.DB_BACKUP_SINGLE_DIR
            self.handle.backup(target, flags)
        except (bdb.DBError, MemoryError) as error:
            raise explained(error, self.path) from error
        finally:
            os.rmdir(self._empty)
            self._remove_logs(True)

    # -- the end

    def close(self, *, in_order: bool) -> None:
        """Close everything once all reads have ended; *in_order*: with a checkpoint. No
        transaction is open. `StorageWriteError` when the disk is full; it is closed nevertheless.
        """
        if self.handle is None:
            return
        is_written = False
        try:
            if in_order and self.current is not None:  # else closing was interrupted
                self.checkpoint()
                is_written = True
        except StorageWriteError as error:
            raise StorageWriteError(
                f"{self.path} was closed on a full disk. All committed transactions are in the "
                "log, and are recovered when it is reopened: free disk space for that"
            ) from error
        finally:
            self._close_when_unused(is_written)

    def _close_when_unused(self, is_written: bool) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        if self._is_in_use():
            gc.collect()  # by a traceback in a circle, too
        while self._is_in_use():
            if time.monotonic() > deadline:
                self.abandon()
                return
            time.sleep(_PAUSE_SECONDS)
        self.close_handles(is_written)

    def _is_in_use(self) -> bool:
        """Whether a thread is in a call of a table, so that closing it would not be safe."""
        return self.current is not None and (  # else closing them was interrupted
            sys.getrefcount(self.current) > _OWN_REFERENCES
            or sys.getrefcount(self.old) > _OWN_REFERENCES
            or sys.getrefcount(self.transactions) > _OWN_REFERENCES
            or sys.getrefcount(self.versions) > _OWN_REFERENCES
        )

    def close_handles(self, is_written: bool) -> None:
        """Close the tables and the environment; *is_written*: after a checkpoint.

        Without one, the engine would write the pages in its cache, although the log that they
        depend on may not fit on the disk: the tables would be ahead of the log, and could not be
        recovered. In a panic it writes nothing. All committed transactions are in the log.
        """
        if not is_written and self.handle is not None:
            with suppress(bdb.DBError):
                self.handle.set_flags(bdb.DB_PANIC_ENVIRONMENT, 1)
        for name in (*TABLES, "handle"):
            # In no variable, which a traceback would keep: that would count as being in use.
            if getattr(self, name) is not None:
                with suppress(bdb.DBError):  # it may be closed already
                    getattr(self, name).close()
                setattr(self, name, None)

    def abandon(self) -> None:
        """Never close this: closing would write to files that belong to another process."""
        for name in (*TABLES, "handle"):
            abandon(getattr(self, name))


def _is_full(*folders: str) -> bool:
    """Whether one of the folders has no space for another log file."""
    return min(map(free_bytes, folders)) < _LOG_FILE_BYTES


def _back(opened: list[Any], found: Found | None, key: bytes) -> Found | None:
    """Move the cursor back from *found* to before *key*: by several steps, if others insert pairs
    meanwhile."""
    while found is not None and found[0] >= key:
        found = opened[0].prev()
    return found


def _fits(rows: list[Found], size: int, limit: int) -> bool:
    return len(rows) < limit and size < _PIECE_BYTES
