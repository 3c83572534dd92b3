"""SQLiteStorage: a storage over the SQLite engine, and its handling of forks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from zope.interface import implementer

from objdb.interfaces import IStorageShared
from objdb.storage.durability import Durability
from objdb.storage.files import path_given
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.sql.backup import back_up
from objdb.storage.sql.connections import unwatch, watch
from objdb.storage.sql.opening import SQLITE_ERRORS, explained, require_seconds
from objdb.storage.sql.sqlite_engine import SQLiteEngine
from objdb.storage.storage import Storage


@implementer(IStorageShared)
class SQLiteStorage(Storage):
    """Keeps revisions in the SQLite database *path*, created if it does not exist (unless
    *create* is false). Several processes may have it open at once, and see each other's commits.

    *history*: whether to keep old revisions, for undo, versions and historical connections
    (default: as the database was created; true for a new one). Without, they stay for
    *keep_seconds*, for existing views. *read_only*: refuse transactions. *durability*: `"sync"`: a
    commit returns after a sync (`synchronous=FULL`); `"os"`: when the operating system has the
    data. *busy_seconds*: how long a commit waits for another process's. *cache_bytes*: size of
    SQLite's cache, for each thread.

    Raises `FileFormatError` for a file of another kind or of a newer release,
    `StorageLockedError`, `CorruptedDataError`, or OSError from the operating system.
    """

    engine: SQLiteEngine

    @drops_what_it_opened
    def __init__(
        self, path: str | os.PathLike[str], *, history: bool | None = None, create: bool = True,
        read_only: bool = False, durability: Durability = "sync", busy_seconds: float = 30,
        cache_bytes: int = 16 << 20, keep_seconds: float = 600,
    ) -> None:
        require_seconds(busy_seconds=busy_seconds, keep_seconds=keep_seconds)
        self._options: dict[str, Any] = {
            "history": history, "create": False, "read_only": read_only, "durability": durability,
            "busy_seconds": busy_seconds, "cache_bytes": cache_bytes, "keep_seconds": keep_seconds,
        }
        self._paused = ExitStack()  # the locks held during a fork
        engine = SQLiteEngine(
            path_given(path, "file"), history, create, read_only, durability, busy_seconds,
            cache_bytes, keep_seconds,
        )
        super().__init__(engine, read_only=read_only)
        watch(self)

    def registerDB(self, db: Any) -> None:
        """See `IStorage`; *db* receives the invalidations of other processes' commits."""
        super().registerDB(db)
        self.engine.tell = self._db.invalidate

    def poll(self) -> None:
        """See `IStoragePolling`."""
        self.engine.poll()

    def again(self) -> SQLiteStorage:
        """See `IStorageShared`."""
        return SQLiteStorage(self.engine.path, **self._options)

    def backup(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Write a copy of the database, as of now, to the new file *path*, while others read and
        commit.

        `progress(pages, of)` is called periodically. FileExistsError if the file exists.
        """
        self._access.require_open()
        try:
            back_up(
                self.engine._connect, self.engine.path, path_given(path, "backup"), progress
            )
        except SQLITE_ERRORS as error:
            raise explained(error, self._name) from error

    def drop_opened(self) -> None:
        """See `Storage`."""
        unwatch(self)
        super().drop_opened()

    def close(self) -> None:
        """See `IStorage`."""
        unwatch(self)
        super().close()

    # -- forks

    def real_path(self) -> str:
        """See `connections.Forkable`."""
        return os.path.realpath(self.engine.path)

    def before_fork(self, seconds: float) -> bool:
        """See `connections.Forkable`."""
        if self._clock is not None:
            self._clock.stop(seconds)
        is_quiet = self._paused.enter_context(self._slot.quiet(seconds))
        for lock in self._oids.locks:
            self._paused.enter_context(lock)
        return self.engine.pause(seconds, may_write=is_quiet) and is_quiet

    def after_fork(self) -> None:
        """See `connections.Forkable`."""
        self.engine.go_on()
        self._paused.close()
        self._start_clock()

    def leave_to_parent(self) -> None:
        """See `connections.Forkable`."""
        self.engine.leave_to_parent()
