"""A safe in a B-tree of Berkeley DB, in an environment of its own with a write-ahead log.

Processes pass the gate one at a time, so the environment needs neither locks nor deadlock
detection, and no process waits for its mutexes: a mutex that a killed process held would never be
released. `gate.py` says how the gate handles killed processes.

A record is the length of the original (4 bytes, big-endian), the original, the value.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from berkeleydb import db as bdb

from objdb.errors import CorruptedDataError, SafeError, StorageClosedError, StorageFailedError
from objdb.safe.gate import Gate
from objdb.safe.table import Row, abandon
from objdb.storage.berkeley.pages import require_no_blank_pages
from objdb.storage.files import sync_path

Result = TypeVar("Result")

FILE_NAME = "safe.bdb"
CACHE_BYTES = 4 << 20
LOG_FILE_BYTES = 1 << 20
CHECKPOINT_BYTES = 4 << 20
PAGE_BYTES = 512  # of a new table: every disk writes so many bytes as a whole or not at all
_RECORD_OVERHEAD = 256  # about the log space of a small change
_PLAIN = bytes(4)  # the first bytes of the record of a key without an original


class BerkeleyTable:
    """The table in the directory *folder*; created if missing.

    After a process is killed, each other process loses its open handles, some files and 6 MiB of
    address space: closing them would read the memory that the killed process left.
    """

    file_name = FILE_NAME

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()  # around everything below
        self._gate: Gate | None = None
        self._environment: Any = None
        self._table: Any = None
        self._is_closed = False
        self._written = 0
        self._log_file = 0  # the number of the last log file whose name is on disk
        try:
            self._run(_nothing)
        except BaseException:
            self.close()
            raise

    def get(self, key: bytes) -> Any:
        return self._run(self._get, key)

    def has(self, key: bytes) -> bool:
        return bool(self._run(self._has, key))

    def put(self, row: Row) -> None:
        self._run(self._put, row)

    def put_all(
        self, rows: Iterable[Row], *, clear: bool = False, new_only: bool = False
    ) -> bool:
        return self._run(self._put_all, list(rows), clear, new_only)

    def swap(self, row: Row, expected: bytes | None) -> bool:
        return self._run(self._swap, row, expected)

    def delete(self, key: bytes, expected: bytes | None = None) -> bool:
        return self._run(self._delete, key, expected)

    def rows(self, after: bytes, limit: int) -> list[Row]:
        return self._run(self._rows, after, limit)

    def count(self) -> int:
        return int(self._run(self._count))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            gate, self._gate = self._gate, None
            if gate is None:
                return
            try:
                gate.lock()
                self._close_handles(gate)
            except BaseException as error:
                # Everything is in the log, and the next process to open the safe recovers it.
                self._abandon()
                if not isinstance(error, bdb.DBError):
                    raise
            finally:
                gate.unlock()
                gate.close()

    def before_fork(self) -> None:
        pass

    def after_fork(self, in_child: bool) -> None:
        if not in_child:
            return
        self._lock = Lock()
        self._abandon()
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    # Through the gate.

    def _run(self, action: Callable[..., Result], *args: Any) -> Result:
        """Call *action* inside the gate. If it fails, or is interrupted, the busy mark stays, so
        that the environment is recovered before it is used again."""
        with self._lock:
            gate = self._gate or self._new_gate()
            try:
                gate.lock()
                if not gate.is_current():
                    self._open(gate)
                gate.enter()
                result = action(*args)
                gate.leave()
            except bdb.DBError as error:
                raise self._failed(error) from error
            finally:
                gate.unlock()
            return result

    def _new_gate(self) -> Gate:
        if self._is_closed:
            raise StorageClosedError(f"the safe {self._folder} is closed. Open it again")
        self._gate = Gate(self._folder)
        return self._gate

    def _open(self, gate: Gate) -> None:
        self._abandon()
        if os.path.lexists(self._folder / "DB_CONFIG"):
            raise SafeError(
                f"{self._folder} has a file DB_CONFIG, whose settings Berkeley DB would obey. A "
                "safe has no such file: remove it", path=str(self._folder),
            )
        recover = gate.needs_recovery()
        gate.enter()
        if recover:
            gate.next_generation()
        environment = bdb.DBEnv()
        environment.set_cachesize(0, CACHE_BYTES)
        environment.set_lg_max(LOG_FILE_BYTES)
        environment.set_flags(bdb.DB_NOLOCKING, 1)
        environment.log_set_config(bdb.DB_LOG_AUTO_REMOVE, 1)
        parts = bdb.DB_INIT_MPOOL | bdb.DB_INIT_LOG | bdb.DB_INIT_TXN
        table = None
        try:
            environment.open(
                str(self._folder), parts | bdb.DB_CREATE | (bdb.DB_RECOVER if recover else 0)
            )
            if recover and (self._folder / FILE_NAME).exists():
                require_no_blank_pages(str(self._folder / FILE_NAME))
            table = bdb.DB(environment)
            table.set_flags(bdb.DB_CHKSUM)
            table.set_pagesize(PAGE_BYTES)
            table.open(FILE_NAME, None, bdb.DB_BTREE, bdb.DB_CREATE | bdb.DB_AUTO_COMMIT)
        except BaseException:
            abandon(environment, table)
            raise
        self._environment, self._table = environment, table
        gate.joined()
        gate.leave()

    def _abandon(self) -> None:
        if self._environment is not None:
            abandon(self._environment, self._table)
            self._environment = self._table = None

    def _close_handles(self, gate: Gate) -> None:
        if not gate.is_current():
            self._abandon()
            return
        gate.enter()
        self._table.close()
        if gate.is_alone():
            self._environment.txn_checkpoint()
        self._environment.close()
        gate.leave()
        self._environment = self._table = None

    def _failed(self, error: bdb.DBError) -> Exception:
        number, text = (*error.args, "")[:2]
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return SafeError(
                f"Berkeley DB may not write in {self._folder}: {text or error}. Check the "
                "permissions of the files in it",
                path=str(self._folder),
            )
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM):
            return StorageFailedError(
                f"Berkeley DB could not go on in {self._folder}: {text or error}. Earlier changes "
                "are durable; the next access shows whether this one was made. Check the disk"
            )
        return CorruptedDataError(
            f"Berkeley DB cannot use {self._folder}: {text or error}. If retrying does not help, "
            "files are damaged or missing: restore the directory from a backup",
            path=str(self._folder),
        )

    # Inside.

    def _get(self, key: bytes) -> Any:
        record = self._table.get(key)
        return None if record is None else _value_of(record)

    def _has(self, key: bytes) -> Any:
        return self._table.exists(key)

    def _count(self) -> Any:
        return self._table.stat()["nkeys"]

    def _put(self, row: Row) -> None:
        key, original, value = row
        head = self._table.get(key, dlen=4, doff=0)
        if head is None:
            record = _record(original, value)
        elif head == _PLAIN:
            record = _PLAIN + value
        else:
            record = _record(_original_of(self._table.get(key)), value)
        self._table.put(key, record)
        self._wrote(key, value)

    def _put_all(self, rows: list[Row], clear: bool, new_only: bool) -> bool:
        txn = self._environment.txn_begin()
        try:
            if clear:
                self._table.truncate(txn)
            for key, original, value in rows:
                old = self._table.get(key, txn=txn)
                if new_only and old is not None:
                    txn.abort()
                    return False
                kept = original if old is None else _original_of(old)
                self._table.put(key, _record(kept, value), txn=txn)
        except BaseException:
            txn.abort()
            raise
        txn.commit()
        for key, _, value in rows:
            self._wrote(key, value)
        return True

    def _swap(self, row: Row, expected: bytes | None) -> bool:
        if self._get(row[0]) != expected:
            return False
        self._put(row)
        return True

    def _delete(self, key: bytes, expected: bytes | None) -> bool:
        old = self._get(key)
        if old is None or (expected is not None and old != expected):
            return False
        self._table.delete(key)
        self._wrote(key, old)
        return True

    def _rows(self, after: bytes, limit: int) -> list[Row]:
        cursor = self._table.cursor()
        try:
            found = cursor.set_range(after) if after else cursor.first()
            if found is not None and found[0] == after:
                found = cursor.next()
            rows: list[Row] = []
            while found is not None and len(rows) < limit:
                key, record = found
                rows.append((key, _original_of(record), bytes(_value_of(record))))
                found = cursor.next()
        finally:
            cursor.close()
        return rows

    def _wrote(self, key: bytes, value: Any) -> None:
        """Sync the name of a new log file, which the engine does not; limit the size of the log,
        and so the time of a recovery."""
        number = self._environment.log_stat()["cur_file"]
        if number != self._log_file:
            sync_path(str(self._folder))
            self._log_file = number
        self._written += len(key) + len(value) + _RECORD_OVERHEAD
        if self._written > CHECKPOINT_BYTES:
            self._environment.txn_checkpoint()
            self._written = 0


def _nothing() -> None:
    """Do nothing: the table is only opened."""


def _record(original: bytes, value: bytes) -> bytes:
    return len(original).to_bytes(4, "big") + original + value


def _original_of(record: bytes) -> bytes:
    return record[4 : 4 + int.from_bytes(record[:4], "big")]


def _value_of(record: bytes) -> memoryview:
    return memoryview(record)[4 + int.from_bytes(record[:4], "big") :]
