"""A safe in a table of SQLite, with a write-ahead log that is synced at every commit.

SQLite itself handles several processes, and killed ones.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from objdb.errors import (
    CorruptedDataError,
    SafeError,
    StorageClosedError,
    StorageWriteError,
)
from objdb.safe.table import Row

FILE_NAME = "safe.sqlite"
WAIT_SECONDS = 60
"""Time that an access waits for another process that writes."""

_PUT = (
    "INSERT INTO safe VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


class SqliteTable:
    """The table in the directory *folder*; created if missing."""

    file_name = FILE_NAME

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._lock = Lock()  # around the connection
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        with self._use() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS safe (key BLOB PRIMARY KEY, original BLOB NOT NULL, "
                "value BLOB NOT NULL) WITHOUT ROWID"
            )

    def get(self, key: bytes) -> bytes | None:
        with self._use() as connection:
            return _value_at(connection, key)

    def has(self, key: bytes) -> bool:
        with self._use() as connection:
            found = connection.execute("SELECT 1 FROM safe WHERE key = ?", (key,)).fetchone()
        return found is not None

    def put(self, row: Row) -> None:
        with self._use() as connection:
            connection.execute(_PUT, row)

    def put_all(
        self, rows: Iterable[Row], *, clear: bool = False, new_only: bool = False
    ) -> bool:
        with self._use() as connection, _transaction(connection):
            if clear:
                connection.execute("DELETE FROM safe")
            rows = list(rows)
            if new_only and any(_value_at(connection, row[0]) is not None for row in rows):
                return False
            connection.executemany(_PUT, rows)
        return True

    def swap(self, row: Row, expected: bytes | None) -> bool:
        with self._use() as connection, _transaction(connection):
            if _value_at(connection, row[0]) != expected:
                return False
            connection.execute(_PUT, row)
        return True

    def delete(self, key: bytes, expected: bytes | None = None) -> bool:
        with self._use() as connection:
            cursor = connection.execute(
                "DELETE FROM safe WHERE key = ? AND value = coalesce(?, value)", (key, expected)
            )
            return cursor.rowcount > 0

    def rows(self, after: bytes, limit: int) -> list[Row]:
        with self._use() as connection:
            return connection.execute(
                "SELECT key, original, value FROM safe WHERE key > ? ORDER BY key LIMIT ?",
                (after, limit),
            ).fetchall()

    def count(self) -> int:
        with self._use() as connection:
            return int(connection.execute("SELECT count(*) FROM safe").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def before_fork(self) -> None:
        # SQLite's lock tables, which the child inherits, say that this process has locks, but the
        # child has none. So no connection may be open during a fork.
        self._lock.acquire()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def after_fork(self, in_child: bool) -> None:
        self._lock.release()

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._connection or self._connect()
                _roll_back(connection)  # an interrupted access may be unfinished
                try:
                    yield connection
                finally:
                    _roll_back(connection)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _connect(self) -> sqlite3.Connection:
        if self._is_closed:
            raise StorageClosedError(f"the safe {self._path.parent} is closed. Open it again")
        connection = sqlite3.connect(
            self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _failed(self, error: sqlite3.Error) -> Exception:
        text = str(error)
        path = str(self._path)
        if "locked" in text:
            return SafeError(
                f"another process locked {path} for {WAIT_SECONDS} seconds. Nothing was changed; "
                "try again",
                path=path,
            )
        if "readonly" in text or "unable to open" in text:
            return SafeError(
                f"SQLite may not write {path}: {text}. Check the permissions of the file and its "
                "directory",
                path=path,
            )
        if isinstance(error, sqlite3.OperationalError):
            return StorageWriteError(
                f"SQLite could not go on in {path}: {text}. Nothing was changed"
            )
        return CorruptedDataError(
            f"{path} is damaged: {text}. Restore the directory from a backup", path=path
        )


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the changes of the block; roll them back if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _value_at(connection: sqlite3.Connection, key: bytes) -> bytes | None:
    found = connection.execute("SELECT value FROM safe WHERE key = ?", (key,)).fetchone()
    return None if found is None else found[0]
