"""The simplest engine: rows in memory. Read this after `engine`.

    _chains         oid -> [Row, ...]           oldest first
    _transactions   [TransactionRow, ...]       oldest first

Lists are only appended to, or replaced as a whole, so readers need no lock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableMapping
from operator import attrgetter
from typing import NamedTuple

from zope.interface import implementer

from objdb.ids import Oid, Tid
from objdb.storage.bytesmap import BytesEngine
from objdb.storage.engine import IEngine, Visibility
from objdb.storage.rows import Current, Row, TransactionRow
from objdb.storage.storage import Storage

_tid = attrgetter("tid")


class Written(NamedTuple):
    """The token: a transaction and its rows."""

    transaction: TransactionRow
    rows: list[tuple[Oid, Row]]


@implementer(IEngine)
class MemoryEngine:
    """Keeps rows in memory, as long as it lives."""

    path = has_checksums = None
    keeps_history = True
    max_oid = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.visibility = Visibility(name)
        self._chains: dict[Oid, list[Row]] = {}
        self._transactions: list[TransactionRow] = []
        self._in_versions: dict[Oid, Current] = {}
        self._size = 0

    def row(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        found = self.before(oid, tid + b"\0")  # the smallest key above *tid*
        return found if found is not None and found.tid == tid else None

    def before(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        chain = self._chains.get(oid, ())
        i = bisect_left(chain, tid, key=_tid)
        return chain[i - 1] if i else None

    def after(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        chain = self._chains.get(oid, ())
        return next(iter(chain[bisect_right(chain, tid, key=_tid) :][:1]), None)

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        last = ((oid, self._chains.get(oid, (None,))[-1]) for oid in oids)
        return {oid: None if row is None else Current(row.tid, row.version) for oid, row in last}

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        return dict(self._in_versions)

    def had_versions(self) -> bool:
        """See `IEngine`: always true, since versions are not counted."""
        return True

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`."""
        return next(self.transactions(tid, tid), None)

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`."""
        rows = self._transactions
        found = rows[bisect_left(rows, start, key=_tid) : bisect_right(rows, stop, key=_tid)]
        return reversed(found) if newest_first else iter(found)

    def chains(self) -> Iterator[tuple[Oid, list[tuple[Tid, int]]]]:
        """See `IEngine`."""
        for oid, chain in list(self._chains.items()):
            yield oid, [(row.tid, len(row.data or b"")) for row in chain]

    def write(self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]]) -> Written:
        """See `IEngine`."""
        return Written(transaction, list(rows))

    def commit(self, token: Written) -> None:
        """See `IEngine`."""
        for oid, row in token.rows:
            chain = self._chains.setdefault(oid, [])
            if not chain or chain[-1] is not row:  # else a previous call was interrupted
                chain.append(row)
                self._size += len(row.data or b"")
            self._in_versions.pop(oid, None)
            if row.version:
                self._in_versions[oid] = Current(row.tid, row.version)
        if not self.is_committed(token):
            self._transactions.append(token.transaction)

    def is_committed(self, token: Written) -> bool:
        """See `IEngine`."""
        return self._transactions[-1:] == [token.transaction]

    def publish(self, token: Written) -> None:
        """See `IEngine`."""
        self.visibility.show(token.transaction.tid)

    def rollback(self, token: Written | None) -> None:
        """See `IEngine`: nothing was changed, unless `commit` was interrupted."""
        for oid, row in () if token is None else token.rows:
            chain = self._chains.get(oid, [])
            if chain and chain[-1] is row:
                self._chains[oid] = chain[:-1]
                self._size -= len(row.data or b"")
                if not self._chains[oid]:
                    del self._chains[oid]
                self._in_versions.pop(oid, None)
                if chain[-2:-1] and chain[-2].version:
                    self._in_versions[oid] = Current(chain[-2].tid, chain[-2].version)

    def amend(
        self, rows: dict[tuple[Oid, Tid], Row | None],
        transactions: dict[Tid, TransactionRow | None],
    ) -> None:
        """See `IEngine`."""
        for oid in {oid for oid, _ in rows}:
            chain = [rows.get((oid, row.tid), row) for row in self._chains[oid]]
            self._size -= sum(len(row.data or b"") for row in self._chains[oid])
            self._chains[oid] = [row for row in chain if row is not None]
            self._size += sum(len(row.data or b"") for row in self._chains[oid])
            if not self._chains[oid]:
                del self._chains[oid]
                self._in_versions.pop(oid, None)
        if transactions:
            changed = [transactions.get(row.tid, row) for row in self._transactions]
            self._transactions = [row for row in changed if row is not None]

    def size(self) -> int:
        """See `IEngine`: of all records."""
        return self._size

    def count(self) -> int:
        """See `IEngine`."""
        return len(self._chains)

    def close(self) -> None:
        """Keep the rows: a storage in memory can be read after its database is closed."""


class MappingStorage(Storage):
    """Keeps every revision in memory, or in *data*, a mapping of bytes to bytes.

    *name* is its name in errors and statistics. *data* may have the rows of an earlier storage; it
    belongs to one storage at a time. The rows are as durable as the mapping. Raises
    `FileFormatError` if it has other items, `UsageError` if it is not a mapping.
    """

    def __init__(
        self, name: str = "MappingStorage", data: MutableMapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(MemoryEngine(name) if data is None else BytesEngine(name, data))
