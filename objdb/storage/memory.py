"""A storage over a mapping, in memory if nothing else is given: the contract at its plainest.

    data      oid + tid -> the row of a revision      tid -> the row of a transaction
    _chains   oid -> [tid, ...]                       oldest first
    _tids     [tid, ...]                              of the transactions, oldest first
    _places   oid -> place of the last revision, of those that are in a version

A transaction's own row is written last: revisions of a transaction that has none were never
finished.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableMapping

from zope.interface import implementer

from objdb.errors import FileFormatError, StorageFailedError, UsageError
from objdb.ids import Oid, Tid
from objdb.interfaces import IStorageHistory, IStorageUndoable, IStorageVersions
from objdb.storage.tables.pack import Chain, Rows, Transactions
from objdb.storage.tables.rows import (
    Place,
    Row,
    TransactionRow,
    decode_row,
    decode_transaction,
    encode_row,
    encode_transaction,
)
from objdb.storage.tables.storage import Entry, TableStorage


@implementer(IStorageHistory, IStorageUndoable, IStorageVersions)
class MappingStorage(TableStorage):
    """Keeps every revision in *data*, a mapping of bytes to bytes.

    *name* is what errors and statistics call it. *data* (default: a new dict, gone when the
    process ends) may have what a storage put there before; it belongs to one storage at a time.
    Whatever the mapping keeps is as durable as the mapping. `FileFormatError` if it has something
    else.
    """

    def __init__(
        self, name: str = "MappingStorage", data: MutableMapping[bytes, bytes] | None = None
    ) -> None:
        if data is not None and not hasattr(data, "keys"):
            raise UsageError(f"data is {data!r}; it is a mapping of bytes to bytes, as a dict")
        super().__init__(name)
        self._data: MutableMapping[bytes, bytes] = {} if data is None else data
        self._chains: dict[Oid, list[Tid]] = {}
        self._tids: list[Tid] = []
        self._in_versions: dict[Oid, Place] = {}
        self._had_versions = False
        self._size = 0
        self._written: tuple[TransactionRow, list[tuple[Oid, Row]]] | None = None
        self._failed: str | None = None
        self._look_through()

    def _look_through(self) -> None:
        """Find what is in the mapping already."""
        keys = list(self._data.keys())
        for key in keys:
            if not isinstance(key, bytes) or len(key) not in (8, 16):
                raise FileFormatError(
                    f"{self._name}: {key!r} is no key that a storage has put into this mapping. "
                    "Give an empty one, or one that a MappingStorage filled", path=self._name,
                )
        self._tids = sorted(key for key in keys if len(key) == 8)
        finished = set(self._tids)
        for key in sorted(key for key in keys if len(key) == 16):
            oid, tid = key[:8], key[8:]
            if tid in finished:
                self._add(oid, decode_row(tid, self._data[key]))
            else:
                del self._data[key]
        if self._tids:
            self._publish(self._tids[-1])

    def _add(self, oid: Oid, row: Row) -> None:
        """Note a revision that follows the last one of its object."""
        self._chains.setdefault(oid, []).append(row.tid)
        self._size += len(row.data or b"")
        self._note_oid(oid)
        if row.version:
            self._in_versions[oid] = Place(oid, row.tid, row.version)
            self._had_versions = True
        else:
            self._in_versions.pop(oid, None)

    def __len__(self) -> int:
        """The number of objects."""
        return len(self._chains)

    def getSize(self) -> int:
        """Return the size of all records, in bytes."""
        return self._size

    # -- rows

    def _row(self, oid: Oid, tid: Tid) -> Row | None:
        data = self._data.get(oid + tid)
        return None if data is None else decode_row(tid, data)

    def _row_before(self, oid: Oid, tid: Tid) -> Row | None:
        while True:
            chain = self._chains.get(oid, ())
            i = bisect_left(chain, tid)
            row = self._row(oid, chain[i - 1]) if i else None
            if row is not None or not i:
                return row
            # it was packed away just now, and the chain is another one

    def _row_after(self, oid: Oid, tid: Tid) -> Row | None:
        while True:
            chain = self._chains.get(oid, ())
            i = bisect_right(chain, tid)
            row = self._row(oid, chain[i]) if i < len(chain) else None
            if row is not None or i == len(chain):
                return row

    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, Entry | None]:
        found: dict[Oid, Entry | None] = {}
        for oid in oids:
            chain = self._chains.get(oid)
            if chain is None:
                found[oid] = None
            else:
                place = self._in_versions.get(oid) or Place(oid, chain[-1])
                found[oid] = place, place.tid
        return found

    def _places_in_versions(self) -> list[Place]:
        return list(self._in_versions.values())

    def _has_versions(self) -> bool:
        return self._had_versions

    def _iter_chains(self) -> Iterator[tuple[Oid, Chain]]:
        for oid, chain in list(self._chains.items()):
            rows = ((tid, self._row(oid, tid)) for tid in chain)
            yield oid, [(tid, len(row.data or b"")) for tid, row in rows if row is not None]

    # -- transactions

    def _transaction(self, tid: Tid) -> TransactionRow | None:
        data = self._data.get(tid)
        return None if data is None else decode_transaction(tid, data)

    def _iter_transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        tids = self._tids[bisect_left(self._tids, start) : bisect_right(self._tids, stop)]
        for tid in reversed(tids) if newest_first else tids:
            row = self._transaction(tid)
            if row is not None:
                yield row

    # -- writing

    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]], replaced: list[Oid]
    ) -> None:
        if self._failed is not None:
            raise StorageFailedError(self._failed)
        self._written = transaction, list(rows)
        for oid, row in self._written[1]:
            self._data[oid + row.tid] = encode_row(row)

    def _decide(self) -> None:
        assert self._written is not None
        transaction, rows = self._written
        try:
            self._data[transaction.tid] = encode_transaction(transaction)
        except Exception as error:
            self._failed = (
                f"{self._name}: the mapping did not take a transaction ({error!r}). Whether it has "
                "it is unknown, so the storage commits no more. Close it, see to the mapping, and "
                "make a storage over it again"
            )
            raise StorageFailedError(self._failed) from error
        for oid, row in rows:
            self._add(oid, row)
        self._tids.append(transaction.tid)
        self._written = None

    def _take_back(self) -> None:
        if self._written is not None:
            for oid, row in self._written[1]:
                self._data.pop(oid + row.tid, None)
            self._written = None

    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        for (oid, tid), row in rows.items():
            if row is not None:
                self._data[oid + tid] = encode_row(row)
        gone = {key for key, row in rows.items() if row is None}
        for oid in {oid for oid, _ in gone}:
            chain = [tid for tid in self._chains[oid] if (oid, tid) not in gone]
            if chain:
                self._chains[oid] = chain
            else:
                del self._chains[oid]
                self._in_versions.pop(oid, None)
        for oid, tid in gone:
            self._size -= len(decode_row(tid, self._data.pop(oid + tid)).data or b"")
        for tid, transaction in transactions.items():
            if transaction is not None:
                self._data[tid] = encode_transaction(transaction)
            else:
                self._tids = [kept for kept in self._tids if kept != tid]
                del self._data[tid]

    def _close(self) -> None:
        """Keep the data: a storage in memory can be looked at after its database closed."""
