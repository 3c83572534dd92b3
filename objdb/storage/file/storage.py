"""FileStorage: a storage over the engine of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from zope.interface import implementer

from objdb.errors import UsageError, require_at_least
from objdb.ids import NO_TID
from objdb.interfaces import IStoragePolling
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.durability import Durability
from objdb.storage.file.copying import copy_as_it_is
from objdb.storage.file.engine import FileEngine
from objdb.storage.files import Files, OSFiles, path_given
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.storage import Storage

_DURABILITIES = ("sync", "os")


@implementer(IStoragePolling)
class FileStorage(Storage):
    """Keeps every revision in one file, in ZODB's format.

    *path*: the file; created if it does not exist (unless *create* is false, or *read_only*).
    *read_only*: take no lock and no transactions; may be open while another process writes,
    and follows its commits.
    *durability*: `"sync"`: a commit returns after a sync; `"os"`: when the operating system has
    the data, which survive the process but not a loss of power.
    *preallocate_bytes*: disk space allocated ahead (0: none).
    *checkpoint_records*: number of records between checkpoints of the index: the records to
    replay after a crash.
    *files*: the file system.

    Raises `FileFormatError`, `NeedsMigrationError`, `StorageLockedError`, `CorruptedDataError`,
    or OSError from the operating system.
    """

    engine: FileEngine

    @drops_what_it_opened
    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, read_only: bool = False,
        durability: Durability = "sync", preallocate_bytes: int = 1024 * 1024,
        checkpoint_records: int = 16_384, files: Files | None = None,
    ) -> None:
        if durability not in _DURABILITIES:
            raise UsageError(
                f"durability is {durability!r}; it can be {' or '.join(_DURABILITIES)}"
            )
        require_at_least(0, preallocate_bytes=preallocate_bytes)
        require_at_least(1, checkpoint_records=checkpoint_records)
        files = files or OSFiles()
        engine = FileEngine(
            files.real_path(path_given(path, "file")), files, create=create, read_only=read_only,
            durability=durability, preallocate_bytes=preallocate_bytes,
            checkpoint_records=checkpoint_records,
        )
        super().__init__(engine, read_only=read_only)

    def registerDB(self, db: Any) -> None:
        """See `IStorage`; *db* receives the invalidations of another process's commits."""
        super().registerDB(db)
        self.engine.follower.db = self._db

    def poll(self) -> None:
        """See `IStoragePolling`: take in the commits of another process, if read-only."""
        if self._access.is_read_only:
            self.engine.follower.poll()

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`. From another file the bytes are copied unchanged, as far as
        possible."""
        if not isinstance(other, FileStorage) or self.lastTransaction() != NO_TID:
            return copy_transactions(other, self, progress)
        self._access.require_writable()
        tell = progress or (lambda state: None)
        copied = CopyProgress(0, 0, NO_TID)
        for copied in copy_as_it_is(other.engine, self.engine, self._slot, self._committer):
            tell(copied)
        if self.lastTransaction() == other.lastTransaction():
            return copied.transactions
        before, revisions, _ = copied
        return before + copy_transactions(
            other, self, lambda state: tell(
                CopyProgress(before + state.transactions, revisions + state.revisions, state.tid)
            ),
        )
