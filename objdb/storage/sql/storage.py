"""The tables of a storage in an SQL database, and the statements that work on them.

    objects         the last revision of each object     oid, tid, data, …
    old_revisions   those before it                      oid, tid, data, …
    transactions    tid, status, user, description, extension, oids, size
    facts           name, value

So what is read most often is one row of the smaller table. A commit moves what it replaces from
the one to the other. Oids and tids are signed 64-bit integers of the same bits; `data` is NULL
where the object was un-created, `version` where the revision is in none.

The statements are standard SQL with `?` for parameters, and ON CONFLICT. What differs from one
database to another, connections and locking above all, is for the subclass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from objdb.errors import CorruptedDataError
from objdb.ids import Oid, Tid, format_oid, format_tid
from objdb.storage.tables.pack import Chain, Rows, Transactions
from objdb.storage.tables.rows import Place, Row, TransactionRow
from objdb.storage.tables.storage import Entry, TableStorage

_REVISION = "tid, data, version, outside, repeat, follows_gap"
_TRANSACTION = "tid, status, user, description, extension, oids, size"
_PIECE = 500  # rows fetched at a time
_MANY = 16  # objects; more are compared with the largest oid first
_GROUPS = (200, 20, 1)  # how many oids one statement asks for

# {by_key}: what makes a table that is kept in the order of its key, where there is such.
SCHEMA = (
    """CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)""",
    """CREATE TABLE objects (
        oid INTEGER PRIMARY KEY, tid INTEGER NOT NULL, data BLOB, version TEXT, outside INTEGER,
        repeat INTEGER, follows_gap INTEGER)""",
    """CREATE TABLE old_revisions (
        oid INTEGER NOT NULL, tid INTEGER NOT NULL, data BLOB, version TEXT, outside INTEGER,
        repeat INTEGER, follows_gap INTEGER, PRIMARY KEY (oid, tid)) {by_key}""",
    """CREATE TABLE transactions (
        tid INTEGER PRIMARY KEY, status TEXT NOT NULL, user TEXT NOT NULL,
        description TEXT NOT NULL, extension BLOB NOT NULL, oids BLOB NOT NULL,
        size INTEGER NOT NULL)""",
    "CREATE INDEX objects_in_versions ON objects (version) WHERE version IS NOT NULL",
    "CREATE INDEX old_in_versions ON old_revisions (version) WHERE version IS NOT NULL",
    "CREATE VIEW revisions AS SELECT oid, tid, version, data FROM objects"
    " UNION ALL SELECT oid, tid, version, data FROM old_revisions",
)

# What the columns of sound rows have in them.
_NONE = type(None)
_NUMBER, _TEXT, _DATA, _TEXTS = {int, _NONE}, {str, _NONE}, {bytes, _NONE}, {str, bytes}

CurrentRow = tuple[int, int, "bytes | None", "str | None"]
CURRENT = "SELECT oid, tid, data, version FROM objects WHERE oid = ?"
AHEAD = (
    "SELECT oid, tid, data, version FROM objects WHERE oid BETWEEN ? AND ?"
    " AND length(data) <= 4096 ORDER BY oid"
)
_ROW = (
    f"SELECT {_REVISION} FROM objects WHERE oid = ? AND tid = ?"
    f" UNION ALL SELECT {_REVISION} FROM old_revisions WHERE oid = ? AND tid = ?"
)
_BEFORE = (
    f"SELECT {_REVISION} FROM objects WHERE oid = ? AND tid < ?"
    f" UNION ALL SELECT * FROM (SELECT {_REVISION} FROM old_revisions WHERE oid = ? AND tid < ?"
    " ORDER BY tid DESC LIMIT 1) AS old ORDER BY tid DESC LIMIT 1"
)
_AFTER = (
    f"SELECT {_REVISION} FROM objects WHERE oid = ? AND tid > ?"
    f" UNION ALL SELECT * FROM (SELECT {_REVISION} FROM old_revisions WHERE oid = ? AND tid > ?"
    " ORDER BY tid LIMIT 1) AS old ORDER BY tid LIMIT 1"
)
_KEEP_OLD = (
    f"INSERT INTO old_revisions (oid, {_REVISION}) SELECT oid, {_REVISION} FROM objects"
    " WHERE oid = ?"
)
_STORE = (
    f"INSERT INTO objects (oid, {_REVISION}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (oid)"
    " DO UPDATE SET tid = excluded.tid, data = excluded.data, version = excluded.version,"
    " outside = excluded.outside, repeat = excluded.repeat, follows_gap = excluded.follows_gap"
)
_STORE_NEW = "INSERT INTO objects (oid, tid, data) VALUES (?, ?, ?)"
_STORE_PLAIN = (
    f"{_STORE_NEW} ON CONFLICT (oid) DO UPDATE SET tid = excluded.tid, data = excluded.data,"
    " version = NULL, outside = NULL, repeat = NULL, follows_gap = NULL"
)
_CHANGE = (
    "UPDATE {} SET version = ?, outside = ?, repeat = ?, follows_gap = ? WHERE oid = ? AND tid = ?"
)
_NOTE = f"INSERT INTO transactions ({_TRANSACTION}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_RENOTE = (
    "UPDATE transactions SET status = ?, user = ?, description = ?, extension = ?, oids = ?,"
    " size = ? WHERE tid = ?"
)
# What was replaced up to a transaction.
_FORGET_OLD = (
    "DELETE FROM old_revisions WHERE EXISTS (SELECT 1 FROM objects AS newer WHERE"
    " newer.oid = old_revisions.oid AND newer.tid <= ?) OR EXISTS (SELECT 1 FROM old_revisions"
    " AS newer WHERE newer.oid = old_revisions.oid AND newer.tid > old_revisions.tid AND"
    " newer.tid <= ?)"
)
_NOTE_PACKED = (
    "INSERT INTO facts (name, value) VALUES ('packed_tid', ?) ON CONFLICT (name)"
    " DO UPDATE SET value = excluded.value WHERE excluded.value > facts.value"
)
_REVISION_TABLES = ("objects", "old_revisions")


def number(name: bytes) -> int:
    """Return the integer that an oid or tid is in the database."""
    return int.from_bytes(name, "big", signed=True)


def name_of(number: int) -> bytes:
    """Return the oid or tid that an integer stands for."""
    return number.to_bytes(8, "big", signed=True)


def _optional(tid: Tid | None) -> int | None:
    return None if tid is None else number(tid)


def _row(oid: Oid, values: Sequence[Any]) -> Row:
    tid, data, version, outside, repeat, follows_gap = values
    if not (
        type(tid) is int and type(data) in _DATA and type(version) in _TEXT
        and type(outside) in _NUMBER and type(repeat) in _NUMBER and type(follows_gap) in _NUMBER
    ):
        raise CorruptedDataError(
            f"the row of a revision of object {format_oid(oid)} is damaged: it has columns "
            f"{[type(value).__name__ for value in values]}"
        )
    return Row(
        name_of(tid), data, version or "", None if outside is None else name_of(outside),
        None if repeat is None else name_of(repeat), bool(follows_gap),
    )


def _place(values: Sequence[Any]) -> Place:
    oid, tid, version = values
    if type(oid) is not int or type(tid) is not int or type(version) not in _TEXT:
        raise CorruptedDataError(
            f"the row of a revision of object {oid!r} is damaged: its transaction is {tid!r:.40}, "
            f"its version {version!r:.40}"
        )
    return Place(name_of(oid), name_of(tid), version or "")


def _facts(row: Row) -> tuple[Any, ...]:
    """Return what a row's columns are after its data."""
    if not row.version and row.repeat is None and not row.follows_gap:
        return None, None, None, None
    return (
        row.version or None, _optional(row.outside), _optional(row.repeat),
        1 if row.follows_gap else None,
    )


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _transaction(values: Sequence[Any]) -> TransactionRow:
    tid, status, user, description, extension, oids, size = values
    if not (
        type(status) is str and len(status) == 1 and type(user) in _TEXTS
        and type(description) in _TEXTS and type(extension) is bytes and type(size) is int
        and type(oids) is bytes and len(oids) % 8 == 0
    ):
        raise CorruptedDataError(
            f"the row of transaction {format_tid(name_of(tid))} is damaged: it has columns "
            f"{[type(value).__name__ for value in values]}, or a status or oids that are none"
        )
    return TransactionRow(
        name_of(tid), status, _bytes(user), _bytes(description), extension,
        [oids[i : i + 8] for i in range(0, len(oids), 8)], size,
    )


def _columns(row: TransactionRow) -> tuple[Any, ...]:
    return (
        row.status, _text(row.user), _text(row.description), row.extension_bytes,
        b"".join(row.oids), row.size,
    )


class SQLStorage(TableStorage):
    """Base of storages in SQL databases. A subclass supplies, besides `_decide`, `_take_back`,
    `_alone`, `getSize` and `_close`:

    * `_find(statement, *parameters)`, `_find_all(…)`: one row or None, all rows, of what is
      committed; inside a vote, with the changes of that
    * `_change(statement, rows)`: execute a statement, inside a vote or `_alone`, for each row of
      parameters
    """

    @abstractmethod
    def _find(self, statement: str, *parameters: Any) -> Any:
        """Return the first row, None if there is none."""

    @abstractmethod
    def _find_all(self, statement: str, *parameters: Any) -> list[Any]:
        """Return all rows."""

    @abstractmethod
    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement for each of *rows*."""

    def __len__(self) -> int:
        """The number of objects."""
        self._require_open()
        return int(self._find("SELECT count(*) FROM objects")[0])

    def _fact(self, name: str, default: int | None) -> int:
        found = self._find("SELECT value FROM facts WHERE name = ?", name)
        value = default if found is None else found[0]
        if type(value) is not int:
            raise CorruptedDataError(f"{self._name}: the fact {name} is damaged: {value!r:.40}")
        return value

    # -- rows

    def _row(self, oid: Oid, tid: Tid) -> Row | None:
        keys = number(oid), number(tid)
        found = self._find(_ROW, *keys, *keys)
        return None if found is None else _row(oid, found)

    def _row_before(self, oid: Oid, tid: Tid) -> Row | None:
        keys = number(oid), _bound(tid)
        found = self._find(_BEFORE, *keys, *keys)
        return None if found is None else _row(oid, found)

    def _row_after(self, oid: Oid, tid: Tid) -> Row | None:
        keys = number(oid), _bound(tid)
        found = self._find(_AFTER, *keys, *keys)
        return None if found is None else _row(oid, found)

    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, Entry | None]:
        oids = list(oids)
        found: dict[Oid, Entry | None] = dict.fromkeys(oids)
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
                for row in rows:
                    place = _place(row)
                    found[place.oid] = place, place.tid
                start += size
        return found

    def _places_in_versions(self) -> list[Place]:
        rows = self._find_all("SELECT oid, tid, version FROM objects WHERE version IS NOT NULL")
        return [_place(row) for row in rows]

    def _has_versions(self) -> bool:
        return any(
            self._find(f"SELECT oid FROM {table} WHERE version IS NOT NULL LIMIT 1") is not None
            for table in _REVISION_TABLES
        )

    def _iter_chains(self) -> Iterator[tuple[Oid, Chain]]:
        start: int = -(2**63)
        while True:
            piece = self._find_all(
                f"SELECT oid FROM objects WHERE oid >= ? ORDER BY oid LIMIT {_PIECE}", start
            )
            if not piece:
                return
            start, last = piece[0][0], piece[-1][0]
            rows = self._find_all(
                "SELECT oid, tid, coalesce(length(data), 0) FROM revisions"
                " WHERE oid BETWEEN ? AND ? ORDER BY oid, tid", start, last,
            )
            for oid, group in groupby(rows, itemgetter(0)):
                places = [(_place((oid, tid, None)).tid, size) for _, tid, size in group]
                yield name_of(oid), places
            if last == 2**63 - 1:
                return
            start = last + 1

    # -- transactions

    def _transaction(self, tid: Tid) -> TransactionRow | None:
        found = self._find(f"SELECT {_TRANSACTION} FROM transactions WHERE tid = ?", number(tid))
        return None if found is None else _transaction(found)

    def _iter_transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        low, high = _bound(start), _bound(stop)
        order = "DESC" if newest_first else "ASC"
        statement = (
            f"SELECT {_TRANSACTION} FROM transactions WHERE tid BETWEEN ? AND ?"
            f" ORDER BY tid {order} LIMIT {_PIECE}"
        )
        while low <= high:
            rows = self._find_all(statement, low, high)
            yield from map(_transaction, rows)
            if len(rows) < _PIECE:
                return
            if newest_first:
                high = rows[-1][0] - 1
            else:
                low = rows[-1][0] + 1

    # -- writing

    def _write(
        self, transaction: TransactionRow, rows: Iterable[tuple[Oid, Row]], replaced: list[Oid]
    ) -> None:
        self._change(_KEEP_OLD, [(number(oid),) for oid in replaced])
        self._change(_STORE, (
            (number(oid), number(row.tid), row.data, *_facts(row)) for oid, row in rows
        ))
        self._change(_NOTE, [(number(transaction.tid), *_columns(transaction))])

    def _write_plain(
        self, transaction: TransactionRow, records: Iterable[tuple[Oid, bytes | None]],
        replaced: list[Oid],
    ) -> None:
        self._change(_KEEP_OLD, [(number(oid),) for oid in replaced])
        tid, from_bytes = number(transaction.tid), int.from_bytes
        self._change(_STORE_PLAIN if replaced else _STORE_NEW, (
            (from_bytes(oid, "big", signed=True), tid, record) for oid, record in records
        ))
        self._change(_NOTE, [(tid, *_columns(transaction))])

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`; by any process, or before it was copied here."""
        return max(super().packed_tid, name_of(self._fact("packed_tid", 0)))

    def _note_packed(self, tid: Tid) -> None:
        self._change(_NOTE_PACKED, [(number(tid),)])

    def _prune(self, horizon: Tid) -> Tid:
        until = number(horizon)
        self._change(_FORGET_OLD, [(until, until)])
        self._change(
            "DELETE FROM transactions WHERE tid <= ? AND tid < (SELECT max(tid) FROM transactions)",
            [(until,)],
        )
        return horizon

    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        gone = [(number(oid), number(tid)) for (oid, tid), row in rows.items() if row is None]
        changed = [
            (*_facts(row), number(oid), number(tid))
            for (oid, tid), row in rows.items() if row is not None
        ]
        for table in _REVISION_TABLES:
            self._change(f"DELETE FROM {table} WHERE oid = ? AND tid = ?", gone)
            self._change(_CHANGE.format(table), changed)
        self._change("DELETE FROM transactions WHERE tid = ?", [
            (number(tid),) for tid, row in transactions.items() if row is None
        ])
        self._change(_RENOTE, [
            (*_columns(row), number(tid)) for tid, row in transactions.items() if row is not None
        ])


def _bound(tid: Tid) -> int:
    """Return the integer to compare the tids in the database with."""
    return min(int.from_bytes(tid, "big"), 2**63 - 1)
