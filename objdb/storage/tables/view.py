"""What an iterator goes through: the transactions as they were when it began.

A pack changes rows while somebody iterates. Before it does, it gives what was there to each view
that is still in use (`View.keep`), which shows that in place of what the tables have.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from objdb.errors import CorruptedDataError
from objdb.ids import Oid, Tid, format_oid, format_tid, next_tid
from objdb.storage.iteration import RevisionRecord, TransactionRecord
from objdb.storage.tables.rows import Row, TransactionRow

if TYPE_CHECKING:
    from objdb.storage.tables.storage import TableStorage


class View:
    """The transactions of *storage* with *start* <= tid <= *stop*, oldest first."""

    def __init__(self, storage: TableStorage, start: Tid, stop: Tid) -> None:
        self._storage = storage
        self._next, self._stop = start, stop
        self._rows: dict[tuple[Oid, Tid], Row] = {}
        self._transactions: dict[Tid, TransactionRow] = {}
        self._tids: list[Tid] = []  # the keys of `_transactions`

    def keep(
        self, rows: dict[tuple[Oid, Tid], Row], transactions: dict[Tid, TransactionRow]
    ) -> None:
        """Go on showing these, which are about to be changed."""
        for key, row in rows.items():
            self._rows.setdefault(key, row)
        for tid, transaction in transactions.items():
            if self._next <= tid <= self._stop and tid not in self._transactions:
                self._transactions[tid] = transaction
                insort(self._tids, tid)

    def __iter__(self) -> Iterator[TransactionRecord]:
        for row in self._storage._iter_transactions(self._next, self._stop):
            yield from self._kept_before(row.tid)
            if row.tid >= self._next:
                yield self._record(self._transactions.get(row.tid, row))
        yield from self._kept_before(next_tid(self._stop))

    def _kept_before(self, tid: Tid) -> Iterator[TransactionRecord]:
        while self._tids and self._tids[0] < tid:
            kept = self._tids.pop(0)
            if kept >= self._next:
                yield self._record(self._transactions[kept])

    def _record(self, row: TransactionRow) -> TransactionRecord:
        self._next = next_tid(row.tid)
        records = []
        for oid in row.oids:
            found = self._row(oid, row.tid)
            if found is not None:
                repeated = self._repeated(oid, found.repeat)
                records.append(RevisionRecord(oid, row.tid, found.data, found.version, repeated))
            elif not self._is_packed(row):
                raise CorruptedDataError(
                    f"{self._storage.getName()} is damaged: transaction {format_tid(row.tid)} "
                    f"changed object {format_oid(oid)}, and its revision is missing. Restore a "
                    "backup", path=self._storage.getName(), oid=oid,
                )
        record = TransactionRecord.of(row.tid, row.status, row, records)
        record.has_checksum = self._storage._has_checksums
        return record

    def _is_packed(self, row: TransactionRow) -> bool:
        """Whether revisions of a transaction may be gone; another process may have packed it
        just now."""
        if row.status == "p":
            return True
        now = self._storage._transaction(row.tid)
        return now is None or now.status == "p"

    def _row(self, oid: Oid, tid: Tid) -> Row | None:
        # Looked for in this order: one that goes is kept first, and removed then.
        found = self._storage._row(oid, tid)
        return self._rows.get((oid, tid), found)

    def _repeated(self, oid: Oid, tid: Tid | None) -> Tid | None:
        """Return the tid of a revision that has the same data, if that is there."""
        return None if tid is None or self._row(oid, tid) is None else tid


class CurrentView(View):
    """The same of a storage without history: the last revision of each object, in the transaction
    that wrote it; and the last transaction, which a copy is continued after. Takes some memory for
    every object."""

    def __iter__(self) -> Iterator[TransactionRecord]:
        chains = (
            (oid, [tid for tid, _ in chain if tid <= self._stop])
            for oid, chain in self._storage._iter_chains()
        )
        found = sorted(
            (tids[-1], oid) for oid, tids in chains if tids and tids[-1] >= self._next
        )
        newest = self._storage._iter_transactions(self._next, self._stop, newest_first=True)
        last = next(newest, None)
        for tid, group in groupby(found, itemgetter(0)):
            row = self._storage._transaction(tid)
            if row is None:  # forgotten
                row = TransactionRow(tid, "p", b"", b"", b"", [], 0)
            yield self._record(row._replace(oids=[oid for _, oid in group]))
        if last is not None and not (found and found[-1][0] >= last.tid):
            yield self._record(last._replace(oids=[]))  # it changed nothing
