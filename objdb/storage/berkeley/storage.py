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
        """Write a copy of the database to *directory*, which is made, while others work. It has
        all that was committed when this was called, and can be opened as it is.

        FileExistsError if there is such a directory.
        """
        self._access.require_open()
        self.engine.back_up(path_given(directory, "backup"))
