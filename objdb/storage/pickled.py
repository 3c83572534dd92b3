"""A storage in memory that is written to a file, whole, after each commit: for prototypes.

    magic 16   CRC-32 of the rest 4   length of the rest 8   pickle of a dict: see `memory`

    vote     the dict with the transaction in it ─► PATH.new ─► sync
    finish   PATH.new ─► PATH

The time and the disk space that a commit takes grow with the whole database.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    StorageError,
    StorageFailedError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import Oid
from objdb.storage.clock import Clock
from objdb.storage.files import (
    File,
    Files,
    Lock,
    OSFiles,
    path_given,
    take_lock,
    what_is_gone,
    write_file,
)
from objdb.storage.memory import MappingStorage
from objdb.storage.packing import PackResult, Progress, References
from objdb.storage.tables.rows import Row, TransactionRow, encode_row, encode_transaction

MAGIC = b"objdb pickle 1\r\n"
_HEADER = struct.Struct(">16sIQ")
assert len(MAGIC) == 16
assert _HEADER.size == 28
LARGE_BYTES = 50_000_000


class LargePickleWarning(UserWarning):
    """The file of a `PickledMappingStorage` has become so large that commits take long."""


class PickledMappingStorage(MappingStorage):
    """Keeps everything in memory, and writes it to the file *path*, for prototypes and tests.

    The file is read when the storage is opened, and replaced as a whole: after each commit; or,
    with *every_seconds*, so often if there were commits, and when it is closed. Then a crash
    loses what was committed since the last time. Above 50 MB it warns (`LargePickleWarning`):
    move to a FileStorage. *read_only*: take no lock and no transactions. *files*: the file
    system.

    Raises `FileFormatError`, `CorruptedDataError`, `StorageLockedError`, or OSError from the
    operating system.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every_seconds: float = 0, read_only: bool = False,
        files: Files | None = None,
    ) -> None:
        if not (isinstance(every_seconds, (int, float)) and every_seconds >= 0):
            raise UsageError(f"every_seconds is {every_seconds!r}; it is a number, 0 or more")
        self._files = files or OSFiles()
        self._path = path = self._files.real_path(path_given(path, "file"))
        self._is_large = False
        self._file: File | None = None  # the one at the path, if there is one
        if self._files.is_directory(path):
            raise FileFormatError(f"{path} is a directory. Name a file in it", path=path)
        folder = os.path.dirname(path)
        if folder and not self._files.exists(folder):
            raise FileNotFoundError(
                errno.ENOENT, "the folder of the database does not exist", folder
            )
        self._lock: Lock | None = None if read_only else take_lock(self._files, path)
        try:
            super().__init__(path, self._read(must_exist=read_only))
            if not read_only and self._files.exists(path):
                self._note_file()
            self._sort_key = os.path.realpath(path)
        except BaseException:
            self._let_go()
            raise
        self._is_read_only = read_only
        self._changes = self._saved = 0  # how many there were, and are in the file
        self._saving = threading.Lock()  # around writing aside of commits
        self._clock: Clock | None = None
        if every_seconds and not read_only:
            self._clock = Clock(every_seconds, self._save, f"{path} writer")

    def _read(self, *, must_exist: bool) -> dict[bytes, bytes]:
        if not must_exist and not self._files.exists(self._path):
            return {}
        file = self._files.open(self._path, "r")
        try:
            content = file.read_at(file.size(), 0)
        finally:
            file.close()
        return _decode(self._path, content)

    # -- writing

    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]], replaced: list[Oid]
    ) -> None:
        if self._clock is not None:
            if self._clock.error is not None:
                raise self._clock.error
            super()._write(transaction, rows, replaced)
            return
        rows = list(rows)
        super()._write(transaction, rows, replaced)
        new = {oid + row.tid: encode_row(row) for oid, row in rows}
        new[transaction.tid] = encode_transaction(transaction)
        self._write_new({**self._data, **new})

    def _decide(self) -> None:
        if self._clock is None:
            self._replace()
        super()._decide()
        self._changes += 1

    def _take_back(self) -> None:
        super()._take_back()
        self._remove_new()

    def _write_new(self, data: dict[bytes, bytes]) -> None:
        """Write the new file beside the old one. `StorageWriteError` if that fails."""
        content = _encode(data)
        gone = self._what_is_gone()
        if gone is not None:
            raise StorageError(f"{gone}. Nothing was committed. Close the storage, see to the file")
        if len(content) > LARGE_BYTES and not self._is_large:
            self._is_large = True
            warnings.warn(
                f"{self._path} is {len(content) / 1e6:.0f} MB, which are written anew at each "
                "commit. Move to a FileStorage: objdb migrate does it", LargePickleWarning,
                stacklevel=2,
            )
        # A new one is for whom the lock is, which was made first.
        model = self._path if self._files.exists(self._path) else self._path + ".lock"
        try:
            write_file(self._files, self._path + ".new", content, model)
        except OSError as error:
            self._remove_new()
            raise StorageWriteError(
                f"{self._path}.new could not be written: {error}. Nothing was committed"
            ) from error

    def _note_file(self) -> None:
        """Remember which file is the one that was read, or written."""
        if self._file is not None:
            self._file.close()
        self._file = self._files.open(self._path, "r")

    def _what_is_gone(self) -> str | None:
        if self._file is not None:
            return what_is_gone(self._files, self._path, self._file)
        if self._files.exists(self._path):
            return f"{self._path} was made by somebody else while it was open"
        return None

    def _remove_new(self) -> None:
        try:
            if self._files.exists(self._path + ".new"):
                self._files.remove(self._path + ".new")
        except OSError:  # the next one is written over it
            return

    def _replace(self) -> None:
        try:
            if self._lock is not None:
                self._lock.hold(self._path + ".new")
            self._files.rename(self._path + ".new", self._path)
            if self._lock is not None:
                self._lock.settle()
            self._note_file()
        except OSError as error:
            self._failed = (
                f"{self._path} could not be replaced by what was written: {error}. Whether the "
                "transaction is on the medium is unknown, so the storage commits no more. Close "
                "it, see to the disk, and open it again"
            )
            raise StorageFailedError(self._failed) from error

    def _save(self) -> None:
        """Write what there is, if it is not written yet (called when it is time; commits do not
        write then)."""
        if self._changes == self._saved:
            return
        with self._slot.held():
            data, changes = dict(self._data), self._changes
        with self._saving:
            self._require_open()  # who closes it writes
            self._write_new(data)
            self._replace()
            self._saved = changes

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: Callable[[Oid], bool] | None = None,
    ) -> PackResult:
        """See `IStoragePackable`. The file is written once, at the end."""
        result = super().pack(
            time, referencesf, gc, progress=progress, keep_old=keep_old, dry_run=dry_run,
            roots=roots, elsewhere=elsewhere,
        )
        if not dry_run:
            with self._slot.held():
                self._changes += 1
                if self._clock is None:
                    self._write_new(dict(self._data))
                    self._replace()
        return result

    def _end_work(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.stop(seconds)

    def _close(self) -> None:
        if self._pid != os.getpid():  # a fork's copy: file and lock are the parent's
            return
        try:
            with self._saving:
                if self._clock is not None and self._changes != self._saved:
                    self._write_new(dict(self._data))
                    self._replace()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.release()


def _encode(data: dict[bytes, bytes]) -> bytes:
    body = pickle.dumps(data, 4)
    return _HEADER.pack(MAGIC, zlib.crc32(body), len(body)) + body


def _decode(path: str, content: bytes) -> dict[bytes, bytes]:
    """Return the dict in a file's content; `FileFormatError` if it is another kind of file,
    `CorruptedDataError` if it is damaged."""
    if not content:
        raise FileFormatError(
            f"{path} is empty, so it is no database. Remove it to let a new one be made", path=path
        )
    if content[: len(MAGIC)] != MAGIC[: len(content)]:
        raise FileFormatError(
            f"{path} was not written by a PickledMappingStorage: it begins with "
            f"{content[:16]!r} instead of {MAGIC!r}", path=path,
        )
    body = content[_HEADER.size :]
    length = crc = None
    if len(content) >= _HEADER.size:
        _, crc, length = _HEADER.unpack_from(content)
    if length != len(body):
        raise _damaged(path, len(content), f"it is cut off: {len(body)} bytes of {length}")
    if zlib.crc32(body) != crc:
        raise _damaged(path, _HEADER.size, "its checksum is wrong")
    try:
        data = _PlainUnpickler(io.BytesIO(body)).load()
    except Exception as error:
        raise _damaged(path, _HEADER.size, str(error)) from error
    if not isinstance(data, dict):
        raise _damaged(path, _HEADER.size, "it has no dict in it")
    return data


def _damaged(path: str, position: int, what: str) -> CorruptedDataError:
    return CorruptedDataError(
        f"{path} is damaged: {what}. Nothing was changed. Put back a copy of it",
        path=path, position=position,
    )


class _PlainUnpickler(pickle.Unpickler):
    """Loads dicts and bytes, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} has no place in this file")
