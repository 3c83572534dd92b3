"""Opening an SQLite database: checks, creation, locks, and the translation of errors."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    ObjdbError,
    ReadOnlyError,
    StorageError,
    StorageForkedError,
    StorageLockedError,
    StorageWriteError,
    UsageError,
    require_at_least,
)
from objdb.storage.files import (
    NO_FILE,
    open_descriptor,
    require_folder,
    require_no_link,
    require_regular,
    sync_path,
)
from objdb.storage.libraries import has_locks, looking, note_locks
from objdb.storage.sql.connections import is_open_in_parent
from objdb.storage.sql.statements import SCHEMA
from objdb.storage.sql.wal import require_whole_log

DURABILITIES = {"sync": "FULL", "os": "NORMAL"}
APPLICATION_ID = 0x6F626A64  # "objd", at byte 68 of the file
SCHEMA_VERSION = 2
_WITH_CHECKSUMS = 2  # from this version on
# SQLite's error codes, by parts of the messages.
_BUSY, _LOCKED, _READONLY, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 11, 13, 14, 26
_TEXTS = {
    "database is locked": _BUSY, "is locked": _LOCKED, "readonly": _READONLY,
    "malformed": _CORRUPT, "is full": _FULL, "unable to open": _CANTOPEN,
    "not a database": _NOTADB,
}
# The errors of SQLite; the second, for damaged text.
SQLITE_ERRORS = sqlite3.Error, UnicodeDecodeError
_MAGIC = b"SQLite format 3\0"
_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.0001, 0.005

# A tid has the minutes since 1900, months counted as 31 days, and 1/2**32 of a minute.
_TIME = (
    "printf('%04d-%02d-%02d %02d:%02d:%06.3f', (tid >> 32) / 535680 + 1900,"
    " (tid >> 32) / 44640 % 12 + 1, (tid >> 32) / 1440 % 31 + 1, (tid >> 32) / 60 % 24,"
    " (tid >> 32) % 60, (tid & 4294967295) * 60.0 / 4294967296)"
)
_VIEW = (
    f"CREATE VIEW history AS SELECT printf('%016x', tid) AS tid, {_TIME} AS time, user,"
    " description, length(oids) / 8 AS objects, size, status FROM transactions ORDER BY tid"
)


def require_seconds(**options: float) -> None:
    """Raise `UsageError` for a value that is not a number of seconds."""
    for name, value in options.items():
        if not (isinstance(value, (int, float)) and value >= 0):
            raise UsageError(f"{name} is {value!r}; it must be a number of seconds, 0 or more")


def pragmas(durability: str, cache_bytes: int) -> tuple[str, ...]:
    """Return the first statements of each connection. `UsageError` for values not valid."""
    if durability not in DURABILITIES:
        raise UsageError(f"durability is {durability!r}; it can be {' or '.join(DURABILITIES)}")
    require_at_least(0, cache_bytes=cache_bytes)
    return (
        f"PRAGMA synchronous={DURABILITIES[durability]}",
        f"PRAGMA cache_size=-{cache_bytes // 1024}",
        # The clock makes checkpoints; this is for when it cannot keep up.
        "PRAGMA wal_autocheckpoint=10000",
    )


class Made(NamedTuple):
    """The fixed properties of a database, from its creation."""

    keeps_history: bool
    has_checksums: bool


class ProcessLock:
    """A lock file at which processes wait. The system releases it when a process ends."""

    def __init__(self, path: str, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._file = NO_FILE
        self._is_held = False

    def acquire(self) -> None:
        """Take the lock; `StorageLockedError` if another process holds it too long."""
        if self._file < 0:
            self._file = open_descriptor(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        deadline, wait = time.monotonic() + self._seconds, _FIRST_WAIT_SECONDS
        self._is_held = True  # set before, so that an interrupted caller releases it
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StorageLockedError(
                        f"{self._path} was held by another process for {self._seconds:g} s, which "
                        "commits, packs, or hangs. Try again, or raise busy_seconds",
                        path=self._path,
                    ) from None
            time.sleep(wait)
            wait = min(wait * 1.3, _MOST_WAIT_SECONDS)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._is_held:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._is_held = False

    def close(self) -> None:
        """Close the file. In a forked child, this does not release the parent's lock."""
        self._file, self._is_held = NO_FILE, False


class Grip:
    """A process's hold on the open database *path*: the files that SQLite writes to, and its locks
    on them. The locks end when any other code in the process opens and closes such a file; then
    another process may take itself for the last one, and remove the write-ahead log."""

    _forget: Callable[[], None] | None = None

    def __init__(self, path: str, look: Callable[[], object]) -> None:
        """Note that SQLite opens *path* from now on; first call *look*, which opens its files, if
        this process does not have it open yet."""
        self._log = path + "-wal"
        self._files = {path: _identity(path), self._log: None}
        with looking:
            if not has_locks(path):
                look()
            self._forget = note_locks(path)

    def take(self) -> None:
        """Note the identity of the files, now that they are open."""
        self._files = {name: _identity(name) for name in self._files}

    def let_go(self) -> None:
        """Note that SQLite has closed the database."""
        forget, self._forget = self._forget, None
        if forget is not None:
            forget()

    __del__ = let_go

    def what_is_gone(self, only_log: bool = False) -> str | None:
        """Return a clause about a removed or replaced file, as a reason to refuse commits; None if
        both are in place. Checked before a commit, since no checkpoint would copy it to the
        database; with *only_log* after one, since the log may be gone since."""
        for name in (self._log,) if only_log else self._files:
            there = _identity(name)
            if there != self._files[name]:
                how = "was removed" if there is None else "was replaced"
                return (
                    f"{name} {how} while the database was open: further commits of this process "
                    "would be lost, and its last ones may be lost"
                )
        return None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return None
    return there.st_dev, there.st_ino


def connect(
    path: str, read_only: bool, busy_seconds: float, pragmas: Iterable[str] = ()
) -> sqlite3.Connection:
    """Return a connection to an existing database, without Python's implicit transactions, that
    has read it once. Raises sqlite3.Error."""
    mode = "ro" if read_only else "rw"
    place = quote(os.fsencode(os.path.abspath(path)))
    connection = sqlite3.connect(
        f"file:{place}?mode={mode}", uri=True, timeout=busy_seconds,
        isolation_level=None, check_same_thread=False, cached_statements=200,
    )
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            for statement in (*pragmas, "SELECT count(*) FROM sqlite_master"):
                connection.execute(statement).fetchall()
            return connection
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait for a process that recovers or removes the log.
            if _code(error) not in (_BUSY, _LOCKED) or time.monotonic() >= deadline:
                connection.close()
                raise
            time.sleep(_MOST_WAIT_SECONDS)
        except BaseException:
            connection.close()
            raise


def open_database(
    path: str, history: bool | None, create: bool, read_only: bool, busy_seconds: float,
    durability: str,
) -> tuple[Made, Grip]:
    """Create the database if necessary, and return its fixed properties, and the hold on it.

    `FileFormatError`, `UsageError` if it cannot be opened this way.
    """
    if is_open_in_parent(path):
        raise StorageForkedError(
            f"{path} was in use by another thread when this process was forked, so SQLite cannot "
            "open it here. Fork while no transaction is being committed"
        )
    _require_openable(path, create)
    lock = ProcessLock(path + ".lock", busy_seconds)
    try:
        if create:
            lock.acquire()
            if not os.path.exists(path):
                _make_file(path, history is not False, busy_seconds)
        grip = Grip(os.path.abspath(path), lambda: require_whole_log(path, durability))
        connection = connect(path, read_only, busy_seconds)
        try:
            return _look_at(connection, path, history), grip
        finally:
            connection.close()
    except SQLITE_ERRORS as error:
        raise explained(error, path) from error
    finally:
        lock.close()


def _require_openable(path: str, create: bool) -> None:
    if os.path.isdir(path):
        raise FileFormatError(f"{path} is a directory. Name a file in it", path=path)
    require_no_link(path + ".lock")
    if create:
        require_folder(path, "database")
    if not os.path.exists(path):
        if not create:
            raise FileNotFoundError(errno.ENOENT, "there is no such database", path)
        return
    require_regular(path)
    _require_one_name(path)
    for ending in ("-wal", "-shm"):
        require_no_link(path + ending)
    with looking:
        if has_locks(path):  # so it is one
            return
        with open(path, "rb") as file:
            magic = file.read(16)
    if not magic:
        raise FileFormatError(
            f"{path} is empty, so it is not a database. Remove it to create a new one", path=path
        )
    if magic != _MAGIC:
        raise FileFormatError(
            f"{path} is not an SQLite database: it begins with {magic!r}", path=path
        )


def _require_one_name(path: str) -> None:
    """Raise `StorageLockedError` if the database is in use under another name (a hard link) in
    the same directory: the two names would have separate logs."""
    there = os.stat(path)
    if there.st_nlink == 1:
        return
    folder = os.path.dirname(os.path.abspath(path))
    for entry in list(os.scandir(folder)):
        if entry.name == os.path.basename(path) or entry.inode() != there.st_ino:
            continue
        if os.path.samefile(entry.path, path) and os.path.exists(entry.path + "-wal"):
            raise StorageLockedError(
                f"{path} is open as {entry.path}, another name of the same file (a hard link), or "
                "was when its process died. Open it by that name", path=path,
            )


def _look_at(connection: sqlite3.Connection, path: str, history: bool | None) -> Made:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise FileFormatError(
            f"{path} is an SQLite database of another program (application id {application:#x}). "
            "Nothing was changed; name another file", path=path,
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise FileFormatError(
            f"{path} was written by a newer release of objdb (schema {version}; this one knows "
            f"{SCHEMA_VERSION}). Nothing was changed; open it with that release", path=path,
        )
    found = connection.execute("SELECT value FROM facts WHERE name = 'keeps_history'").fetchone()
    if found is None or found[0] not in (0, 1):
        raise CorruptedDataError(
            f"{path}: keeps_history in the table facts is not 0 or 1: {found!r:.40}", path=path
        )
    if history is not None and bool(found[0]) is not history:
        raise UsageError(
            f"{path} was created with history={bool(found[0])}, which cannot change. Omit the "
            "argument, or copy it to a database created with the other (objdb migrate)"
        )
    return Made(bool(found[0]), version >= _WITH_CHECKSUMS)


def _make_file(path: str, history: bool, busy_seconds: float) -> None:
    """Create the database atomically, under another name first. The lock is held."""
    if os.path.exists(path + "-wal"):
        raise CorruptedDataError(
            f"{path} is missing, but {path}-wal, with its last transactions, exists. Restore the "
            "first; or, for a new database, remove the other", path=path,
        )
    new = path + ".new"
    for name in (new, new + "-wal", new + "-shm"):  # leftovers of a crash
        with suppress(FileNotFoundError):
            os.remove(name)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    try:
        connection = connect(new, False, busy_seconds)
        try:
            _make(connection, path, history)
        finally:
            connection.close()
        sync_path(new)
        os.rename(new, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(new)
        raise
    sync_path(os.path.dirname(os.path.abspath(path)))


def _make(connection: sqlite3.Connection, path: str, history: bool) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise StorageError(
            f"{path}: SQLite has no write-ahead log here (its journal mode is {mode!r}). It needs "
            "a local file system"
        )
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA:
        connection.execute(statement.format(by_key="WITHOUT ROWID"))
    connection.execute(_VIEW)
    connection.executemany(
        "INSERT INTO facts VALUES (?, ?)", [("keeps_history", int(history)), ("last_oid", 0)]
    )
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def explained(error: BaseException, path: str) -> ObjdbError:
    """Return the objdb error for an error of SQLite."""
    code = _code(error)
    if code in (_BUSY, _LOCKED):
        return StorageLockedError(
            f"{path}: another program has locked the database for longer than busy_seconds "
            f"({error}). End its transaction, or raise busy_seconds", path=path,
        )
    if code in (_CORRUPT, _NOTADB) or "decode" in str(error):
        return CorruptedDataError(
            f"{path} is damaged: SQLite says {str(error)!r}. Restore a backup, or try `sqlite3 "
            "FILE .recover`", path=path,
        )
    if code == _FULL:
        return StorageWriteError(
            f"{path}: the disk is full; nothing was committed. Free disk space and try again"
        )
    if code == _READONLY:
        return ReadOnlyError(
            f"{path} cannot be written ({error}). Check its permissions, or open it with "
            "read_only=True; and those of its folder, where SQLite creates files for readers too"
        )
    if code == _CANTOPEN:
        return StorageError(
            f"{path} cannot be opened ({error}). Check its permissions and those of its folder: "
            "SQLite creates files beside it"
        )
    return StorageError(f"{path}: SQLite says {str(error)!r}")


def _code(error: BaseException) -> int:
    """Return SQLite's code of an error, which Python 3.10 does not give."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    return next((number for text, number in _TEXTS.items() if text in str(error)), 0)
