"""One transaction of the engine, and the facts stored with it.

    transactions  tid ─► number of objects 8, largest oid 8, bytes of all rows 8, versions 1,
                         transaction, CRC-32 4
    versions      oid ─► tid, name of the version, of each object whose last revision is in one

In databases of format 2 a row is also followed by its checksum (`rows.sealed`).

Before each transaction are the facts after it; those of the last one count. `versions` in them
says whether any revision was ever in a version.

Concurrent readers see each step, so the order matters: a row is put in `old` before a new one
replaces it in `current`; the row after a gap is marked before the gap is made; of several rows to
remove, the oldest is removed first. A rollback undoes the steps in reverse order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import methodcaller
from typing import Any, NamedTuple

from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.amending import Rows, Transactions
from objdb.storage.berkeley.environment import Environment
from objdb.storage.berkeley.package import abandon, bdb
from objdb.storage.holding import call_each
from objdb.storage.rows import (
    CRC_BYTES,
    PLAIN,
    Current,
    Row,
    TransactionRow,
    encode_row,
    sealed,
    unsealed,
)
from objdb.storage.rows import encode_transaction as encoded

_FACTS = struct.Struct(">QQQB")
FACTS_BYTES = _FACTS.size
_PIECE = 500  # rows
_PRIORITY = 10_000  # in a deadlock with a reader, which has 100, the reader gives way


class Facts(NamedTuple):
    """Facts about all rows, kept up to date by each transaction."""

    objects: int = 0
    max_oid: int = 0
    size: int = 0
    had_versions: bool = False


def read_facts(environment: Environment) -> tuple[Tid, Facts]:
    """Return the tid of the last transaction, and the facts after it."""
    found = environment.last("transactions")
    if found is None:
        return NO_TID, Facts()
    tid, value = found
    if environment.has_checksums:
        value = unsealed(tid, value, environment.path)
    return tid, Facts._make(_FACTS.unpack(value[:FACTS_BYTES]))


def read_versions(environment: Environment) -> dict[Oid, Current]:
    """Return {oid: `Current`} of the objects whose last revision is in a version."""
    found: dict[Oid, Current] = {}
    start = b""
    while piece := environment.piece("versions", start, b"\xff" * 8, _PIECE):
        for oid, value in piece:
            found[oid] = Current(value[:8], value[8:].decode())
        start = piece[-1][0] + b"\0"
    return found


class Change:
    """A transaction of the engine, starting from *facts*; `facts` are those after it, and
    `versions` has the objects that enter a version, or leave it (None).

    Errors are the engine's. It must be committed or aborted.
    """

    def __init__(self, environment: Environment, facts: Facts) -> None:
        self._environment = environment
        self._seals = environment.has_checksums
        self._is_aborted = False
        self._open: list[Any] = []  # the transaction, until it is ended: in one call of C, each
        try:
            self._open.extend(map(environment.handle.txn_begin, (None,)))
            self._txn: Any = self._open[0]
            self._txn.set_priority(_PRIORITY)
        except BaseException:
            self.abort()
            raise
        self.facts = facts
        self.versions: dict[Oid, Current | None] = {}

    def add(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]],
        replaced: list[Oid], in_versions: dict[Oid, Current],
    ) -> None:
        """Add a transaction and its rows; *replaced* are the existing objects."""
        for oid in replaced:
            self._keep_old(oid)
        tid, txn, seals = transaction.tid, self._txn, self._seals
        head, size = tid + PLAIN, -len(tid) * len(replaced)
        try:
            put = self._environment.current.put
            for oid, row in rows:
                data = row.data
                if data is not None and not row.version and row.back_pointer is None:
                    value = head + data
                else:
                    value = tid + encode_row(row)
                    if row.version:
                        self.versions[oid] = Current(tid, row.version)
                if seals:
                    value = sealed(oid, value)
                put(oid, value, txn)
                size += len(value)
        finally:
            put = None  # a traceback keeps this frame: no table is in use by that
        for oid in in_versions.keys() & transaction.oids if in_versions else ():
            self.versions.setdefault(oid, None)
        self._put_versions()
        noted = encoded(transaction)
        largest = int.from_bytes(max(transaction.oids, default=NO_TID), "big")
        facts = self.facts
        self.facts = Facts(
            facts.objects + len(transaction.oids) - len(replaced), max(facts.max_oid, largest),
            facts.size + size + FACTS_BYTES + len(noted) + CRC_BYTES * seals,
            facts.had_versions or bool(self.versions),
        )
        noted = self._sealed(tid, _FACTS.pack(*self.facts) + noted)
        self._environment.transactions.put(tid, noted, txn)

    def _sealed(self, key: bytes, value: bytes) -> bytes:
        return sealed(key, value) if self._seals else value

    def _unsealed(self, key: bytes, value: bytes) -> bytes:
        return unsealed(key, value, self._environment.path) if self._seals else value

    def _keep_old(self, oid: Oid) -> None:
        value = self._environment.current.get(oid, None, self._txn, bdb.DB_RMW)
        self._environment.old.put(oid + value[:8], value[8:], self._txn)

    def amend(self, rows: Rows, transactions: Transactions) -> None:
        """Change or remove existing rows and transactions; the last transaction stays."""
        txn = self._txn
        for (oid, tid), row in rows.items():
            if row is not None:
                if self._is_current(oid, tid):
                    self._replace("current", oid, self._sealed(oid, tid + encode_row(row)))
                else:
                    key = oid + tid
                    self._replace("old", key, self._sealed(key, encode_row(row)))
        for (oid, tid), row in rows.items():
            if row is None:
                self._remove(oid, tid)
        for tid, transaction in transactions.items():
            if transaction is None:
                self._delete("transactions", tid)
            else:
                value = self._environment.transactions.get(tid, None, txn)
                facts = self._unsealed(tid, value)[:FACTS_BYTES]
                value = self._sealed(tid, facts + encoded(transaction))
                self._replace("transactions", tid, value)
        self._put_versions()
        cursor = self._environment.transactions.cursor(txn)
        try:
            tid, value = cursor.last()
            value = _FACTS.pack(*self.facts) + self._unsealed(tid, value)[FACTS_BYTES:]
            cursor.put(b"", self._sealed(tid, value), bdb.DB_CURRENT)
        finally:
            cursor.close()
            del cursor

    def _remove(self, oid: Oid, tid: Tid) -> None:
        if self._is_current(oid, tid):
            self._delete("current", oid)
            self.versions[oid] = None
            self.facts = self.facts._replace(objects=self.facts.objects - 1)
        else:
            self._delete("old", oid + tid)

    def _is_current(self, oid: Oid, tid: Tid) -> bool:
        return bool(self._environment.current.get(oid, None, self._txn, 0, 8, 0) == tid)

    def _replace(self, table: str, key: bytes, value: bytes) -> None:
        replaced = getattr(self._environment, table).get(key, None, self._txn, bdb.DB_RMW)
        if replaced is not None:
            getattr(self._environment, table).put(key, value, self._txn)
            self._grow(len(value) - len(replaced))

    def _grow(self, size: int) -> None:
        self.facts = self.facts._replace(size=self.facts.size + size)

    def _delete(self, table: str, key: bytes) -> None:
        value = getattr(self._environment, table).get(key, None, self._txn, bdb.DB_RMW)
        if value is not None:
            getattr(self._environment, table).delete(key, self._txn)
            self._grow(-len(value))

    def forget_replaced(self, oids: Iterable[Oid], tid: Tid) -> None:
        """Remove the rows of these objects that are older than *tid*."""
        for oid in oids:
            cursor = self._environment.old.cursor(self._txn)
            try:
                found = cursor.set_range(oid)
                while found is not None and found[0] < oid + tid:
                    cursor.delete()
                    self._grow(-len(found[1]))
                    found = cursor.next()
            except bdb.DBError as error:
                self._environment.is_damage(error)  # otherwise the cursor could not be closed
                raise
            finally:
                cursor.close()
                del cursor

    def _put_versions(self) -> None:
        for oid, current in self.versions.items():
            if current is not None:
                value = current.tid + current.version.encode()
                self._environment.versions.put(oid, value, self._txn)
            elif self._environment.versions.has_key(oid, self._txn):
                self._environment.versions.delete(oid, self._txn)

    def commit(self, flags: int) -> None:
        """Commit all changes."""
        call_each(self._open, methodcaller("commit", flags))

    @property
    def is_committed(self) -> bool:
        """Whether the engine's commit has returned, also if `commit` was interrupted after it."""
        return not any(self._open) and not self._is_aborted

    def abort(self) -> None:
        """Roll back all changes; can be called again after an interrupt."""
        self._is_aborted = True
        call_each(self._open, methodcaller("abort"))

    def abandon(self) -> None:
        """Never commit or abort: in a forked child, the transaction is the parent's."""
        abandon(self._txn)
