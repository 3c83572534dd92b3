"""A storage in memory, written to a file as a whole after each commit: for prototypes.

    magic 16   CRC-32 of the rest 4   length of the rest 8   pickle of a dict: see `bytesmap`

    vote     the dict with the transaction in it ─► PATH.new ─► sync
    finish   PATH.new ─► PATH

The time and the disk space of a commit grow with the whole database.
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
from collections.abc import Iterable
from typing import Any, NoReturn

from zope.interface import implementer

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    StorageError,
    StorageFailedError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import Oid, Tid
from objdb.storage.bytesmap import BytesEngine, Written
from objdb.storage.engine import IMaintained
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
from objdb.storage.owning import drops_what_it_opened
from objdb.storage.packing import PackResult
from objdb.storage.rows import Row, TransactionRow, encode_transaction
from objdb.storage.storage import Storage

MAGIC = b"objdb pickle 1\r\n"
_HEADER = struct.Struct(">16sIQ")
assert len(MAGIC) == 16
assert _HEADER.size == 28
LARGE_BYTES = 50_000_000


class LargePickleWarning(UserWarning):
    """The file of a `PickledMappingStorage` is so large that commits are slow."""


@implementer(IMaintained)
class PickledEngine(BytesEngine):
    """Keeps rows in a dict that is written to the file *path*; see `PickledMappingStorage`.

    `_changing` is held while rows of committed transactions change, and while they are copied for
    writing; `_saving` while the file is written and replaced.
    """

    _lock: Lock | None = None
    _file: File | None = None  # the one at the path, if there is one

    @drops_what_it_opened
    def __init__(
        self, path: str | os.PathLike[str], every_seconds: float, read_only: bool, files: Files
    ) -> None:
        self._files = files
        path = files.real_path(path_given(path, "file"))
        self._is_large = False
        if files.is_directory(path):
            raise FileFormatError(f"{path} is a directory. Name a file in it", path=path)
        folder = os.path.dirname(path)
        if folder and not files.exists(folder):
            raise FileNotFoundError(
                errno.ENOENT, "the folder of the database does not exist", folder
            )
        self.tick_seconds = 0 if read_only else every_seconds
        self._pid = os.getpid()
        self._changing = threading.Lock()
        self._saving = threading.Lock()
        self._changes = self._saved = 0  # number of changes made, and of those in the file
        self._error: Exception | None = None  # of the last tick
        self._is_closed = False
        if not read_only:
            self._lock = take_lock(files, path)
        super().__init__(path, self._read(path, must_exist=read_only), path)
        if not read_only and files.exists(path):
            self._note_file()

    def _read(self, path: str, *, must_exist: bool) -> dict[bytes, bytes]:
        if not must_exist and not self._files.exists(path):
            return {}
        file = self._files.open(path, "r")
        try:
            content = file.read_at(file.size(), 0)
        finally:
            file.close()
        return _decode(path, content)

    # -- writing

    def write(self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]]) -> Written:
        """See `IEngine`."""
        if self._error is not None:
            raise self._error
        token = super().write(transaction, rows)
        if not self.tick_seconds:
            self._write_new({**self.data, transaction.tid: encode_transaction(transaction)})
        return token

    def commit(self, token: Written) -> None:
        """See `IEngine`."""
        if not self.tick_seconds:
            self._replace()
        with self._changing:
            super().commit(token)
            self._changes += 1

    def rollback(self, token: Written | None) -> None:
        """See `IEngine`."""
        super().rollback(token)
        self._remove_new()

    def amend(
        self, rows: dict[tuple[Oid, Tid], Row | None],
        transactions: dict[Tid, TransactionRow | None],
    ) -> None:
        """See `IEngine`; `save` writes the file, called at the end of a pack."""
        with self._changing:
            super().amend(rows, transactions)
            self._changes += 1

    def save(self) -> None:
        """Write all rows, if there are unsaved changes. No transaction is voting, or they are
        not written one by one."""
        with self._changing:
            if self._changes == self._saved or self._is_closed:
                return
            data, changes = dict(self.data), self._changes
        with self._saving:
            self._write_new(data)
            self._replace()
            self._saved = changes

    def tick(self) -> None:
        """See `IMaintained`: write the committed rows."""
        self._error = None
        try:
            self.save()
        except Exception as error:
            self._error = error
            raise

    # -- the file

    def _write_new(self, data: dict[bytes, bytes]) -> None:
        """Write the new file beside the old one. Raises `StorageWriteError` if that fails."""
        path, content = self.name, _encode(data)
        gone = self._what_is_gone()
        if gone is not None:
            raise StorageError(
                f"{gone}. Nothing was committed. Close the storage and check the file"
            )
        if len(content) > LARGE_BYTES and not self._is_large:
            self._is_large = True
            warnings.warn(
                f"{path} is {len(content) / 1e6:.0f} MB, all written again at each commit. Move "
                "to a FileStorage: objdb migrate does it", LargePickleWarning,
                stacklevel=2,
            )
        # A new file gets the permissions of the lock file, which was created first.
        model = path if self._files.exists(path) else path + ".lock"
        try:
            write_file(self._files, path + ".new", content, model)
        except OSError as error:
            self._remove_new()
            raise StorageWriteError(
                f"{path}.new could not be written: {error}. Nothing was committed"
            ) from error

    def _note_file(self) -> None:
        """Open the file that was just read or written, to detect its replacement."""
        if self._file is not None:
            self._file.close()
        self._file = self._files.open(self.name, "r")

    def _what_is_gone(self) -> str | None:
        if self._file is not None:
            return what_is_gone(self._files, self.name, self._file)
        if self._files.exists(self.name):
            return f"{self.name} was created by another program while it was open"
        return None

    def _remove_new(self) -> None:
        try:
            if self._files.exists(self.name + ".new"):
                self._files.remove(self.name + ".new")
        except OSError:  # the next write replaces it
            return

    def _replace(self) -> None:
        try:
            if self._lock is not None:
                self._lock.hold(self.name + ".new")
            self._files.rename(self.name + ".new", self.name)
            if self._lock is not None:
                self._lock.settle()
            self._note_file()
        except OSError as error:
            raise StorageFailedError(
                f"the file could not be replaced by the new one ({error}): it is unknown whether "
                "the last transaction is durable"
            ) from error

    def close(self) -> None:
        """See `IEngine`."""
        if self._pid != os.getpid():  # a forked child: file and lock are the parent's
            return
        try:
            if self.tick_seconds and not self._is_closed:
                self.save()
        finally:
            self._is_closed = True
            with self._saving:
                self.drop_opened()

    def drop_opened(self) -> None:
        """Close the file and let go of the lock (see `owning`)."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.release()


class PickledMappingStorage(Storage):
    """Keeps everything in memory, and writes it to the file *path*, for prototypes and tests.

    The file is read when the storage is opened, and replaced as a whole: after each commit; or,
    with *every_seconds*, at that interval if there were commits, and on close. Then a crash loses
    the commits since the last write. Above 50 MB it warns (`LargePickleWarning`): move to a
    FileStorage. *read_only*: take no lock and no transactions. *files*: the file system.

    Raises `FileFormatError`, `CorruptedDataError`, `StorageLockedError`, or OSError from the
    operating system.
    """

    engine: PickledEngine

    @drops_what_it_opened
    def __init__(
        self, path: str | os.PathLike[str], *, every_seconds: float = 0, read_only: bool = False,
        files: Files | None = None,
    ) -> None:
        if not (isinstance(every_seconds, (int, float)) and every_seconds >= 0):
            raise UsageError(f"every_seconds is {every_seconds!r}; it must be a number, 0 or more")
        engine = PickledEngine(path, every_seconds, read_only, files or OSFiles())
        super().__init__(engine, read_only=read_only)

    def pack(self, *arguments: Any, dry_run: bool = False, **options: Any) -> PackResult:
        """See `IStoragePackable`. The file is written once, at the end."""
        result = super().pack(*arguments, dry_run=dry_run, **options)
        if not dry_run and not self.engine.tick_seconds:
            with self._amender.alone():
                self.engine.save()
        return result


def _encode(data: dict[bytes, bytes]) -> bytes:
    body = pickle.dumps(data, 4)
    return _HEADER.pack(MAGIC, zlib.crc32(body), len(body)) + body


def _decode(path: str, content: bytes) -> dict[bytes, bytes]:
    """Return the dict in a file's content; `FileFormatError` for another kind of file,
    `CorruptedDataError` for a damaged one."""
    if not content:
        raise FileFormatError(
            f"{path} is empty, so it is not a database. Remove it to create a new one", path=path
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
        raise _damaged(path, len(content), f"it is truncated: {len(body)} bytes of {length}")
    if zlib.crc32(body) != crc:
        raise _damaged(path, _HEADER.size, "its checksum is wrong")
    try:
        data = _PlainUnpickler(io.BytesIO(body)).load()
    except Exception as error:
        raise _damaged(path, _HEADER.size, str(error)) from error
    if not isinstance(data, dict):
        raise _damaged(path, _HEADER.size, "it does not contain a dict")
    return data


def _damaged(path: str, position: int, what: str) -> CorruptedDataError:
    return CorruptedDataError(
        f"{path} is damaged: {what}. Nothing was changed. Restore a copy of it",
        path=path, position=position,
    )


class _PlainUnpickler(pickle.Unpickler):
    """Loads dicts and bytes only, so that no code runs."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in this file")
