"""An engine over a mapping of bytes to bytes: a dict, or an application's own mapping.

    data      oid + tid -> the bytes of a revision's row      tid -> those of a transaction's
    _chains   oid -> [tid, ...]                               oldest first
    _tids     [tid, ...]                                      of the transactions, oldest first

A transaction's own row is written last, and commits it: revisions without it were never committed,
and are removed when the mapping is opened.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import NamedTuple

from zope.interface import implementer

from objdb.errors import CorruptedDataError, FileFormatError, StorageFailedError, UsageError
from objdb.ids import Oid, Tid, format_oid, format_tid
from objdb.storage.engine import IEngine, Visibility
from objdb.storage.rows import (
    Current,
    Row,
    TransactionRow,
    decode_row,
    decode_transaction,
    encode_row,
    encode_transaction,
)


class Written(NamedTuple):
    """The token: a transaction and its rows."""

    transaction: TransactionRow
    rows: list[tuple[Oid, Row]]


@implementer(IEngine)
class BytesEngine:
    """Keeps rows in *data*. Raises `UsageError` if that is not a mapping, and `FileFormatError` if
    it has other items."""

    keeps_history = True
    has_checksums: bool | None = None

    def __init__(
        self, name: str, data: MutableMapping[bytes, bytes], path: str | None = None
    ) -> None:
        if not hasattr(data, "keys"):
            raise UsageError(f"data is {data!r}. Give a mapping of bytes to bytes, such as a dict")
        self.name = name
        self.path = path
        self.visibility = Visibility(name)
        self.data = data
        self._chains: dict[Oid, list[Tid]] = {}
        self._in_versions: dict[Oid, Current] = {}
        self._had_versions = False
        self._size = 0
        self._undecided: list[bytes] = []  # keys of rows written but not committed
        keys = list(data.keys())
        for key in keys:
            if not isinstance(key, bytes) or len(key) not in (8, 16):
                raise FileFormatError(
                    f"{name}: the mapping has the key {key!r}, which no storage wrote. Give an "
                    "empty mapping, or one that a MappingStorage filled", path=name,
                )
        self._tids = sorted(key for key in keys if len(key) == 8)
        committed = set(self._tids)
        for key in sorted(key for key in keys if len(key) == 16):
            oid, tid = key[:8], key[8:]
            if tid in committed:
                self._add(oid, decode_row(tid, data[key]))
            else:
                del data[key]
        self.max_oid = int.from_bytes(max(self._chains, default=b""), "big")
        if self._tids:
            self.visibility.show(self._tids[-1])

    def _add(self, oid: Oid, row: Row) -> None:
        chain = self._chains.setdefault(oid, [])
        if chain[-1:] != [row.tid]:  # else a previous call was interrupted
            chain.append(row.tid)
            self._size += len(row.data or b"")
        self._in_versions.pop(oid, None)
        if row.version:
            self._in_versions[oid] = Current(row.tid, row.version)
            self._had_versions = True

    # -- finding

    def row(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        data = self.data.get(oid + tid)
        return None if data is None else decode_row(tid, data)

    def before(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        while True:
            chain = self._chains.get(oid, ())
            i = bisect_left(chain, tid)
            row = self.row(oid, chain[i - 1]) if i else None
            if row is not None or not i:
                return row
            self._require_other_chain(oid, chain, chain[i - 1])

    def after(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        while True:
            chain = self._chains.get(oid, ())
            i = bisect_right(chain, tid)
            row = self.row(oid, chain[i]) if i < len(chain) else None
            if row is not None or i == len(chain):
                return row
            self._require_other_chain(oid, chain, chain[i])

    def _require_other_chain(self, oid: Oid, chain: Sequence[Tid], tid: Tid) -> None:
        """Raise `CorruptedDataError` for a missing row, unless a pack has just removed it: then
        the object has another chain."""
        if self._chains.get(oid) is chain:
            raise CorruptedDataError(
                f"{self.name}: the revision {format_tid(tid)} of object {format_oid(oid)} is "
                f"missing: the key {(oid + tid)!r} was removed from the mapping. Put it back, or "
                "restore the mapping from a copy", oid=oid,
            )

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        found: dict[Oid, Current | None] = {}
        for oid in oids:
            chain = self._chains.get(oid)
            own = self._in_versions.get(oid)
            found[oid] = None if chain is None else own or Current(chain[-1])
        return found

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        return dict(self._in_versions)

    def had_versions(self) -> bool:
        """See `IEngine`."""
        return self._had_versions

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`."""
        data = self.data.get(tid)
        return None if data is None else decode_transaction(tid, data)

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`."""
        tids = self._tids[bisect_left(self._tids, start) : bisect_right(self._tids, stop)]
        for tid in reversed(tids) if newest_first else tids:
            row = self.transaction(tid)
            if row is not None:
                yield row

    def chains(self) -> Iterator[tuple[Oid, list[tuple[Tid, int]]]]:
        """See `IEngine`."""
        for oid, chain in list(self._chains.items()):
            rows = ((tid, self.row(oid, tid)) for tid in chain)
            yield oid, [(tid, len(row.data or b"")) for tid, row in rows if row is not None]

    # -- writing

    def write(self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]]) -> Written:
        """See `IEngine`."""
        written = Written(transaction, [])
        for oid, row in rows:
            written.rows.append((oid, row))
            self._undecided.append(oid + row.tid)
            self.data[oid + row.tid] = encode_row(row)
        return written

    def commit(self, token: Written) -> None:
        """See `IEngine`."""
        tid = token.transaction.tid
        try:
            self.data[tid] = encode_transaction(token.transaction)
        except Exception as error:
            raise StorageFailedError(
                f"the mapping refused a transaction ({error!r})"
            ) from error
        self._undecided = []
        for oid, row in token.rows:
            self._add(oid, row)
        if self._tids[-1:] != [tid]:
            self._tids.append(tid)

    def is_committed(self, token: Written) -> bool:
        """See `IEngine`."""
        return token.transaction.tid in self.data

    def publish(self, token: Written) -> None:
        """See `IEngine`."""
        self.visibility.show(token.transaction.tid)

    def rollback(self, token: Written | None) -> None:
        """See `IEngine`."""
        for key in self._undecided:
            self.data.pop(key, None)
        self._undecided = []

    def amend(
        self, rows: dict[tuple[Oid, Tid], Row | None],
        transactions: dict[Tid, TransactionRow | None],
    ) -> None:
        """See `IEngine`."""
        for (oid, tid), row in rows.items():
            if row is not None:
                self.data[oid + tid] = encode_row(row)
        gone = {key for key, row in rows.items() if row is None}
        for oid in {oid for oid, _ in gone}:
            chain = [tid for tid in self._chains[oid] if (oid, tid) not in gone]
            if chain:
                self._chains[oid] = chain
            else:
                del self._chains[oid]
                self._in_versions.pop(oid, None)
        for oid, tid in gone:
            self._size -= len(decode_row(tid, self.data.pop(oid + tid)).data or b"")
        self._tids = [tid for tid in self._tids if transactions.get(tid, tid) is not None]
        for tid, transaction in transactions.items():
            if transaction is not None:
                self.data[tid] = encode_transaction(transaction)
            else:
                del self.data[tid]

    # -- facts, and the end

    def size(self) -> int:
        """See `IEngine`: of all records."""
        return self._size

    def count(self) -> int:
        """See `IEngine`."""
        return len(self._chains)

    def close(self) -> None:
        """Leave the mapping unchanged."""
