"""BerkeleyStorage: a storage over the engine of Berkeley DB."""

from __future__ import annotations

import os

from objdb.errors import UsageError, require_at_least
from objdb.storage.berkeley.engine import BerkeleyEngine
from objdb.storage.durability import Durability
from objdb.storage.files import path_given
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.storage import Storage

_DURABILITIES = ("sync", "os")


class BerkeleyStorage(Storage):
    """Keeps revisions in Berkeley DB tables in *directory*, created if it does not exist (unless
    *create* is false). One process at a time can have it open.

    *history*: whether to keep old revisions, for undo, versions and historical connections
    (default: as the database was created; true for a new one). Without, they stay while a view
    needs them. *durability*: `"sync"`: a commit returns after a sync of the log; `"os"`: when the
    operating system has the data. *cache_bytes*: size of the engine's cache. *log_directory*: the
    directory of the log, on another disk, for example (default: as the database was created).
    *keep_logs*: keep log files that are not needed for recovery. *checkpoint_bytes*,
    *checkpoint_minutes*: the growth of the log, and the time, between checkpoints: the part of the
    log to recover after a crash.

    Raises `MissingPackageError` without the package `berkeleydb`, `FileFormatError` for a
    directory of another kind or of a newer release, `StorageLockedError`,
    `CorruptedDataError`, `StorageError` without permission, FileNotFoundError.
    """

    engine: BerkeleyEngine

    @drops_what_it_opened
    def __init__(
        self, directory: str | os.PathLike[str], *, history: bool | None = None,
        create: bool = True, durability: Durability = "sync", cache_bytes: int = 64 << 20,
        log_directory: str | os.PathLike[str] | None = None, keep_logs: bool = False,
        checkpoint_bytes: int = 32 << 20, checkpoint_minutes: int = 1,
    ) -> None:
        if durability not in _DURABILITIES:
            raise UsageError(
                f"durability is {durability!r}; it can be {' or '.join(_DURABILITIES)}"
            )
        require_at_least(1 << 20, cache_bytes=cache_bytes)
        require_at_least(1024, checkpoint_bytes=checkpoint_bytes)
        require_at_least(1, checkpoint_minutes=checkpoint_minutes)
        path = path_given(directory, "directory")
        logs = None if log_directory is None else path_given(log_directory, "log directory")
        super().__init__(BerkeleyEngine(
            path, history, create, durability, cache_bytes, logs, keep_logs,
            (checkpoint_bytes >> 10, checkpoint_minutes),
        ))

    def backup(self, directory: str | os.PathLike[str]) -> None:
        """Write a copy of the database to the new *directory*, while others read and commit. It
        has all transactions committed before the call, and can be opened directly.

        FileExistsError if the directory exists.
        """
        self._access.require_open()
        self.engine.back_up(path_given(directory, "backup"))
