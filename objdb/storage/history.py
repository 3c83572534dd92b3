"""Old revisions, transactions in order, the undo log; over any engine.

An iterator goes on showing the transactions as they were when it began. A pack may change rows
during an iteration; before it does, it passes the old rows to each `View` in use.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from objdb.errors import CorruptedDataError, POSKeyError, Unsupported, require_at_least
from objdb.ids import NO_TID, Oid, Tid, format_oid, format_tid, next_tid
from objdb.storage.engine import IShared
from objdb.storage.iteration import RevisionRecord, TransactionRecord, history_entry, undo_entry
from objdb.storage.rows import Row, TransactionRow
from objdb.storage.times import span
from objdb.storage.undo import transaction_id

Filter = Callable[[dict[str, Any]], Any]
RowKey = tuple[Oid, Tid]


def require_history(engine: Any, what: str) -> None:
    """Raise `Unsupported` if *engine* keeps no history, so that *what* follows."""
    if not engine.keeps_history:
        raise Unsupported(
            f"{engine.name} keeps no history, so {what}. Copy it to a storage with history=True "
            "to keep it from then on"
        )


class RowHistory:
    """The history of *engine*, found row by row, for engines that do not declare `IOwnHistory`.
    `watch(view)` is called with each view that is iterated over."""

    def __init__(self, engine: Any, watch: Callable[[View], None]) -> None:
        self._engine = engine
        self._watch = watch

    def oids(self) -> Iterator[Oid]:
        """See `IOwnHistory`."""
        return (oid for oid, _ in self._engine.chains())

    def load_before(
        self, oid: Oid, tid: Tid, version: str
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IOwnHistory`."""
        engine, visible_before = self._engine, self._engine.visibility.before
        row = engine.before(oid, min(tid, visible_before))
        if row is None:
            self._require_object(oid, visible_before)
            return None
        following = engine.after(oid, row.tid)
        if following is not None and following.follows_gap:
            return None
        seen = row
        if row.version and row.version != version:
            seen = None if row.outside is None else engine.row(oid, row.outside)
        data = None if seen is None else seen.data
        if data is None:
            raise POSKeyError(oid, database=engine.name)
        while following is not None and following.version not in ("", version):
            if following.outside != seen.tid:
                break
            following = engine.after(oid, following.tid)
        until = None if following is None else following.tid
        if until is not None and until >= visible_before:
            until = None
        return data, seen.tid, until

    def _require_object(self, oid: Oid, visible_before: Tid) -> None:
        """Raise `POSKeyError` if the object does not exist, now or at an earlier moment."""
        engine = self._engine
        first = engine.after(oid, NO_TID)
        if first is not None and first.tid < visible_before:
            return
        # Another process may have packed away a revision visible here.
        if first is None or not (IShared.providedBy(engine) and engine.is_foreign(first.tid)):
            raise POSKeyError(oid, database=engine.name)

    def load_serial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IOwnHistory`."""
        engine = self._engine
        row = engine.row(oid, serial) if serial < engine.visibility.before else None
        data: bytes | None = None if row is None else row.data
        if data is None:
            raise POSKeyError(oid, database=engine.name)
        return data

    def list_revisions(self, oid: Oid, size: int) -> list[dict[str, Any]]:
        """See `IOwnHistory`."""
        engine = self._engine
        require_history(engine, "its revisions cannot be listed")
        entries: list[dict[str, Any]] = []
        row = engine.before(oid, engine.visibility.before)
        if row is None:
            raise POSKeyError(oid, database=engine.name)
        while row is not None and len(entries) < size:
            transaction = engine.transaction(row.tid)
            if transaction is not None:  # else a pack has just removed it
                entries.append(history_entry(row.tid, transaction, row.size, row.version))
            row = engine.before(oid, row.tid)
        return entries

    def iterate(self, start: Tid | None, stop: Tid | None) -> Iterator[TransactionRecord]:
        """See `IOwnHistory`."""
        engine = self._engine
        last = engine.visibility.tid if stop is None else min(stop, engine.visibility.tid)
        kind = View if engine.keeps_history else CurrentView
        view = kind(engine, NO_TID if start is None else start, last)
        self._watch(view)
        return iter(view)

    def undoable(self, stop: Tid | None) -> Iterator[TransactionRow]:
        """See `IOwnHistory`."""
        engine = self._engine
        require_history(engine, "nothing can be undone")
        last = engine.visibility.tid if stop is None else min(stop, engine.visibility.tid)
        for row in engine.transactions(NO_TID, last, newest_first=True):
            if row.status == "p":
                return
            if row.status == " ":
                yield row


# -- objects, one by one


class RecordWalk:
    """Implements `record_iternext` for *storage*: each call returns the oid to pass to the next.
    A call that continues the last one takes a step; any other searches from the beginning.
    `iter_oids()` yields the oids of all objects."""

    def __init__(self, storage: Any, iter_oids: Callable[[], Iterator[Oid]]) -> None:
        self._storage = storage
        self._iter_oids = iter_oids
        self._ahead: tuple[Oid, Iterator[Oid]] | None = None  # the next oid, and those after

    def step(self, oid: Oid | None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """Return (oid, tid, record, next oid or None) of *oid* (None: of the first object). Raises
        `POSKeyError` if there is no object."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != oid:
            oids = self._existing()
            found = next(oids if oid is None else (o for o in oids if o == oid), None)
            if found is None:
                raise POSKeyError(oid or bytes(8), database=self._storage.getName())
            ahead = found, oids
        oid, oids = ahead
        record, tid = self._storage.load(oid)
        following = next(oids, None)
        if following is not None:
            self._ahead = following, oids
        return oid, tid, record, following

    def _existing(self) -> Iterator[Oid]:
        """Yield the oids of the objects that have a record outside any version."""
        for oid in self._iter_oids():
            try:
                self._storage.load(oid)
            except POSKeyError:
                continue
            yield oid


def last_transactions(engine: Any, count: int) -> list[tuple[Tid, list[Oid]]]:
    """See `IStorageCurrentRecordIteration.lastInvalidations`. Raises `UsageError` unless *count*
    is a number, 0 or more."""
    require_at_least(0, count=count)
    newest = engine.transactions(NO_TID, engine.visibility.tid, newest_first=True)
    return [(row.tid, row.oids) for row in islice(newest, count)][::-1]


# -- the undo log


def undo_log(
    past: Any, first: Any, last: Any, filter: Filter | None
) -> list[dict[str, Any]]:
    """See `IStorageUndoable.undoLog`; *past* is an `IOwnHistory` or a `RowHistory`. Raises
    `UsageError` for bounds that are not valid."""
    wanted = span(first, last)
    entries: list[dict[str, Any]] = []
    position = 0
    if wanted.limit == 0:
        return entries
    for row in past.undoable(wanted.stop_tid):
        entry = undo_entry(transaction_id(row.tid), row.tid, row, row.size)
        if entry["time"] < wanted.start:
            break
        if entry["time"] > wanted.stop or (filter is not None and not filter(entry)):
            continue
        if position >= wanted.skip:
            entries.append(entry)
            if len(entries) == wanted.limit:
                break
        position += 1
    return entries


def having(items: dict[str, Any] | None) -> Filter | None:
    """Return the filter for entries that have all *items*; None without items."""
    if not items:
        return None
    wanted, missing = items.items(), object()
    return lambda entry: all(entry.get(key, missing) == value for key, value in wanted)


# -- transactions in order


class View:
    """The transactions of *engine* with *start* <= tid <= *stop*, oldest first."""

    def __init__(self, engine: Any, start: Tid, stop: Tid) -> None:
        self._engine = engine
        self._next, self._stop = start, stop
        self._rows: dict[RowKey, Row] = {}
        self._transactions: dict[Tid, TransactionRow] = {}
        self._tids: list[Tid] = []  # the keys of `_transactions`

    def keep(self, rows: dict[RowKey, Row], transactions: dict[Tid, TransactionRow]) -> None:
        """Go on showing these rows, which are about to change."""
        for key, row in rows.items():
            self._rows.setdefault(key, row)
        for tid, transaction in transactions.items():
            if self._next <= tid <= self._stop and tid not in self._transactions:
                self._transactions[tid] = transaction
                insort(self._tids, tid)

    def __iter__(self) -> Iterator[TransactionRecord]:
        for row in self._engine.transactions(self._next, self._stop):
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
                data_tid = self._pointed_at(oid, found.back_pointer)
                records.append(RevisionRecord(oid, row.tid, found.data, found.version, data_tid))
            elif not self._is_packed(row):
                raise CorruptedDataError(
                    f"{self._engine.name} is damaged: transaction {format_tid(row.tid)} "
                    f"changed object {format_oid(oid)}, but its revision is missing. Restore a "
                    "backup", path=self._engine.name, oid=oid,
                )
        record = TransactionRecord.of(row.tid, row.status, row, records)
        record.has_checksum = self._engine.has_checksums
        return record

    def _is_packed(self, row: TransactionRow) -> bool:
        """Whether revisions of a transaction may be gone; another process may have just packed
        it."""
        if row.status == "p":
            return True
        now = self._engine.transaction(row.tid)
        return now is None or now.status == "p"

    def _row(self, oid: Oid, tid: Tid) -> Row | None:
        # In this order: a pack first keeps a row here, then removes it.
        found: Row | None = self._engine.row(oid, tid)
        return self._rows.get((oid, tid), found)

    def _pointed_at(self, oid: Oid, tid: Tid | None) -> Tid | None:
        """Return the tid of the revision that a back pointer refers to, if it exists."""
        return None if tid is None or self._row(oid, tid) is None else tid


class CurrentView(View):
    """The view of an engine without history: the last revision of each object, in the transaction
    that wrote it; and the last transaction, from which a copy is continued. Takes some memory for
    every object."""

    def __iter__(self) -> Iterator[TransactionRecord]:
        chains = (
            (oid, [tid for tid, _ in chain if tid <= self._stop])
            for oid, chain in self._engine.chains()
        )
        found = sorted(
            (tids[-1], oid) for oid, tids in chains if tids and tids[-1] >= self._next
        )
        newest = self._engine.transactions(self._next, self._stop, newest_first=True)
        last = next(newest, None)
        for tid, group in groupby(found, itemgetter(0)):
            row = self._engine.transaction(tid)
            if row is None:  # it was pruned
                row = TransactionRow(tid, "p", b"", b"", b"", [], 0)
            yield self._record(row._replace(oids=[oid for _, oid in group]))
        if last is not None and not (found and found[-1][0] >= last.tid):
            yield self._record(last._replace(oids=[]))  # without revisions

