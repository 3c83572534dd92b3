"""Rows in the tables of an SQL database: finding and writing them.

    objects         the last revision of each object     oid, tid, data, …
    old_revisions   those before it                      oid, tid, data, …
    transactions    tid, status, user, description, extension, oids, size
    facts           name, value

So the usual load reads one row of the smaller table. A commit moves replaced rows to the other
table. Oids and tids are signed 64-bit integers of the same bits; `data` is NULL for a tombstone,
`version` for a revision outside any version.

The statements are standard SQL with `?` for parameters, and ON CONFLICT. The engine implements
the parts that differ between databases, mainly connections and locking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from objdb.errors import CorruptedDataError
from objdb.ids import Oid, Tid, format_oid, format_tid
from objdb.storage.amending import Rows, Transactions
from objdb.storage.rows import (
    Current,
    Row,
    TransactionRow,
    damaged_row,
    plain_crc,
    row_crc,
    transaction_crc,
)
from objdb.storage.sql.statements import (
    FORGET_OLD,
    FORGET_TRANSACTIONS,
    NOTE_PACKED,
    REVISION_TABLES,
    Statements,
)
from objdb.storage.staging import StagedRows

_PIECE = 500  # rows fetched at a time
_MANY = 16  # objects; more are compared with the largest oid first
_GROUPS = (200, 20, 1)  # numbers of oids in one statement

# The types in the columns of undamaged rows.
_NONE = type(None)
_NUMBER, _TEXT, _DATA, _TEXTS = {int, _NONE}, {str, _NONE}, {bytes, _NONE}, {str, bytes}

CurrentRow = tuple[Any, ...]  # oid, tid, data, version, checksum or None


def number(name: bytes) -> int:
    """Return the integer for an oid or tid in the database."""
    return int.from_bytes(name, "big", signed=True)


def name_of(number: int) -> bytes:
    """Return the oid or tid for an integer."""
    return number.to_bytes(8, "big", signed=True)


def _optional(tid: Tid | None) -> int | None:
    return None if tid is None else number(tid)


def revision_row(oid: Oid, values: Sequence[Any], path: str) -> Row:
    """Return the row of *oid* with these columns, of which a seventh is the checksum;
    `CorruptedDataError` naming *path*."""
    tid, data, version, outside, back_pointer, follows_gap, *crc = values
    if not (
        type(tid) is int and type(data) in _DATA and type(version) in _TEXT
        and type(outside) in _NUMBER and type(back_pointer) in _NUMBER
        and type(follows_gap) in _NUMBER
    ):
        raise CorruptedDataError(
            f"{path}: the row of a revision of object {format_oid(oid)} is damaged: it has "
            f"columns {[type(value).__name__ for value in values]}", path=path, oid=oid,
        )
    row = Row(
        name_of(tid), data, version or "", None if outside is None else name_of(outside),
        None if back_pointer is None else name_of(back_pointer), bool(follows_gap),
    )
    if crc and row_crc(oid, row) != crc[0]:
        raise damaged_row(oid + row.tid, path)
    return row


def _current(values: Sequence[Any]) -> tuple[Oid, Current]:
    oid, tid, version = values
    if type(oid) is not int or type(tid) is not int or type(version) not in _TEXT:
        raise CorruptedDataError(
            f"the row of a revision of object {oid!r} is damaged: its tid is {tid!r:.40}, its "
            f"version {version!r:.40}"
        )
    return name_of(oid), Current(name_of(tid), version or "")


def _facts(row: Row) -> tuple[Any, ...]:
    if not row.version and row.back_pointer is None and not row.follows_gap:
        return None, None, None, None
    return (
        row.version or None, _optional(row.outside), _optional(row.back_pointer),
        1 if row.follows_gap else None,
    )


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def transaction_row(values: Sequence[Any], path: str) -> TransactionRow:
    """Return the transaction with these columns, of which an eighth is the checksum."""
    tid, status, user, description, extension, oids, size, *crc = values
    if not (
        type(status) is str and len(status) == 1 and type(user) in _TEXTS
        and type(description) in _TEXTS and type(extension) is bytes and type(size) is int
        and type(oids) is bytes and len(oids) % 8 == 0
    ):
        raise CorruptedDataError(
            f"{path}: the row of transaction {format_tid(name_of(tid))} is damaged: it has columns "
            f"{[type(value).__name__ for value in values]}, or a status or oids not valid",
            path=path,
        )
    row = TransactionRow(
        name_of(tid), status, _bytes(user), _bytes(description), extension,
        [oids[i : i + 8] for i in range(0, len(oids), 8)], size,
    )
    if crc and transaction_crc(row) != crc[0]:
        raise damaged_row(row.tid, path)
    return row


class SQLRows(ABC):
    """The part of an engine that uses rows through SQL statements. A subclass supplies, besides
    `name`:

    * `_find(statement, *parameters)`, `_find_all(…)`: one row or None, all rows, of committed
      data; inside a vote, including its changes
    * `_change(statement, rows)`: execute a statement, inside a vote or alone, for each row of
      parameters
    * `_statements`: those of a database with checksums, or without
    """

    name: str
    _statements: Statements

    @abstractmethod
    def _find(self, statement: str, *parameters: Any) -> Any:
        """Return the first row, or None."""

    @abstractmethod
    def _find_all(self, statement: str, *parameters: Any) -> list[Any]:
        """Return all rows."""

    @abstractmethod
    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each of *rows*."""

    def count(self) -> int:
        """See `IEngine`."""
        return int(self._find("SELECT count(*) FROM objects")[0])

    def fact(self, name: str, default: int | None) -> int:
        """Return a number from the table `facts`. Raises `CorruptedDataError`."""
        found = self._find("SELECT value FROM facts WHERE name = ?", name)
        value = default if found is None else found[0]
        if type(value) is not int:
            raise CorruptedDataError(f"{self.name}: the fact {name} is damaged: {value!r:.40}")
        return value

    # -- rows

    def row(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        keys = number(oid), number(tid)
        found = self._find(self._statements.row, *keys, *keys)
        return None if found is None else revision_row(oid, found, self.name)

    def before(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        keys = number(oid), _bound(tid)
        found = self._find(self._statements.before, *keys, *keys)
        return None if found is None else revision_row(oid, found, self.name)

    def after(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        keys = number(oid), _bound(tid)
        found = self._find(self._statements.after, *keys, *keys)
        return None if found is None else revision_row(oid, found, self.name)

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        oids = list(oids)
        found: dict[Oid, Current | None] = dict.fromkeys(oids)
        if len(oids) > _MANY:
            largest = self._find("SELECT max(oid) FROM objects")[0]
            if largest is None:
                return found
            most, negative = name_of(largest), b"\x80"
            oids = [oid for oid in oids if oid <= most or oid >= negative]
        numbers = [number(oid) for oid in oids]
        start = 0
        for size in _GROUPS:
            marks = ", ".join("?" * size)
            while len(numbers) - start >= size:
                rows = self._find_all(
                    f"SELECT oid, tid, version FROM objects WHERE oid IN ({marks})",
                    *numbers[start : start + size],
                )
                found.update(map(_current, rows))
                start += size
        return found

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        rows = self._find_all("SELECT oid, tid, version FROM objects WHERE version IS NOT NULL")
        return dict(map(_current, rows))

    def had_versions(self) -> bool:
        """See `IEngine`."""
        return any(
            self._find(f"SELECT oid FROM {table} WHERE version IS NOT NULL LIMIT 1") is not None
            for table in REVISION_TABLES
        )

    def chains(self) -> Iterator[tuple[Oid, list[tuple[Tid, int]]]]:
        """See `IEngine`."""
        start: int = -(2**63)
        while True:
            piece = self._find_all(
                f"SELECT oid FROM objects WHERE oid >= ? ORDER BY oid LIMIT {_PIECE}", start
            )
            if not piece:
                return
            self._require_in_order(start, piece)
            start, last = piece[0][0], piece[-1][0]
            rows = self._find_all(
                "SELECT oid, tid, coalesce(length(data), 0) FROM revisions"
                " WHERE oid BETWEEN ? AND ? ORDER BY oid, tid", start, last,
            )
            for oid, group in groupby(rows, itemgetter(0)):
                yield name_of(oid), [
                    (_current((oid, tid, None))[1].tid, size) for _, tid, size in group
                ]
            if last == 2**63 - 1:
                return
            start = last + 1

    def _require_in_order(self, least: int, rows: list[Any]) -> None:
        """Raise `CorruptedDataError` unless the keys of *rows* are in order, and from *least* on:
        otherwise a scan might never end."""
        last = least - 1
        for row in rows:
            if not (type(row[0]) is int and row[0] > last):
                raise CorruptedDataError(
                    f"{self.name} is damaged: the rows of a table are not in key order. Restore a "
                    "backup, or try `sqlite3 FILE .recover`",
                    path=self.name,
                )
            last = row[0]

    # -- transactions

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`."""
        found = self._find(self._statements.transaction, number(tid))
        return None if found is None else transaction_row(found, self.name)

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`."""
        low, high = _bound(start), _bound(stop)
        order = "DESC" if newest_first else "ASC"
        statement = (
            f"SELECT {self._statements.transaction_columns} FROM transactions"
            " WHERE tid BETWEEN ? AND ?"
            f" ORDER BY tid {order} LIMIT {_PIECE}"
        )
        while low <= high:
            rows = self._find_all(statement, low, high)
            self._require_in_order(low, rows[::-1] if newest_first else rows)
            for row in rows:
                yield transaction_row(row, self.name)
            if len(rows) < _PIECE:
                return
            if newest_first:
                high = rows[-1][0] - 1
            else:
                low = rows[-1][0] + 1

    # -- writing

    def _write(self, transaction: TransactionRow, rows: StagedRows) -> None:
        """Write a transaction and its rows."""
        statements = self._statements
        self._change(statements.keep_old, [(number(oid),) for oid in rows.replaced])
        rest, other = iter(rows), list[tuple[Oid, Row]]()
        store = statements.store_plain if rows.replaced else statements.store_new
        self._change(store, self._plain(transaction.tid, rest, other))
        if other:
            self._change(statements.store, (
                (number(oid), number(row.tid), row.data, *self._facts_of(oid, row))
                for oid, row in chain(other, rest)
            ))
        self._note(transaction)

    def _plain(
        self, tid: Tid, rows: Iterable[tuple[Oid, Row]], other: list[tuple[Oid, Row]]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the columns of plain rows, with a record or a tombstone only, up to the first
        *other* one: most transactions have none."""
        from_bytes, has_checksums = int.from_bytes, self._statements.has_checksums
        tid_number = number(tid)
        for oid, row in rows:
            data = row.data
            if row.version or row.back_pointer is not None:
                other.append((oid, row))
                return
            if not has_checksums:
                yield from_bytes(oid, "big", signed=True), tid_number, data
            else:
                crc = row_crc(oid, row) if data is None else plain_crc(oid, tid, data)
                yield from_bytes(oid, "big", signed=True), tid_number, data, crc

    def _note(self, transaction: TransactionRow) -> None:
        values = number(transaction.tid), *self._columns(transaction)
        self._change(self._statements.note, [values])

    def _columns(self, row: TransactionRow) -> tuple[Any, ...]:
        """Return a transaction's columns after its tid."""
        crc = (transaction_crc(row),) if self._statements.has_checksums else ()
        return (
            row.status, _text(row.user), _text(row.description), row.extension_bytes,
            b"".join(row.oids), row.size, *crc,
        )

    def _facts_of(self, oid: Oid, row: Row) -> tuple[Any, ...]:
        """Return a row's columns after its data."""
        crc = (row_crc(oid, row),) if self._statements.has_checksums else ()
        return *_facts(row), *crc

    def packed_tid(self) -> Tid:
        """See `IShared`."""
        return name_of(self.fact("packed_tid", 0))

    def note_packed(self, tid: Tid) -> None:
        """See `IShared`."""
        self._change(NOTE_PACKED, [(number(tid),)])

    def prune(self, horizon: Tid) -> Tid:
        """See `IPrunable`."""
        until = number(horizon)
        self._change(FORGET_OLD, [(until, until)])
        self._change(FORGET_TRANSACTIONS, [(until,)])
        return horizon

    def amend(self, rows: Rows, transactions: Transactions) -> None:
        """See `IEngine`."""
        gone = [(number(oid), number(tid)) for (oid, tid), row in rows.items() if row is None]
        changed = [
            (*self._facts_of(oid, row), number(oid), number(tid))
            for (oid, tid), row in rows.items() if row is not None
        ]
        for table in REVISION_TABLES:
            self._change(f"DELETE FROM {table} WHERE oid = ? AND tid = ?", gone)
            self._change(self._statements.change.format(table), changed)
        self._change("DELETE FROM transactions WHERE tid = ?", [
            (number(tid),) for tid, row in transactions.items() if row is None
        ])
        self._change(self._statements.renote, [
            (*self._columns(row), number(tid))
            for tid, row in transactions.items() if row is not None
        ])


def _bound(tid: Tid) -> int:
    """Return the integer to compare with the tids in the database."""
    return min(int.from_bytes(tid, "big"), 2**63 - 1)
