"""Checking the rows of an SQL database, beyond the checks of SQLite itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from objdb.errors import CorruptedDataError
from objdb.ids import format_oid, format_tid
from objdb.storage.sql.rows import name_of, revision_row, transaction_row
from objdb.storage.sql.statements import REVISION_TABLES, Statements

FindAll = Callable[..., list[Any]]
_PIECE = 200  # rows
_MOST = 100  # maximum number of problems of a kind


def find_problems(
    find_all: FindAll, statements: Statements, path: str, keeps_history: bool
) -> Iterator[str]:
    """Yield problems: those that SQLite finds; and, at most a hundred of a kind, rows whose
    checksum does not match, and revisions whose transaction is missing.

    `find_all(statement, *parameters)` returns rows; *path* is the database's.
    """
    try:
        for (text,) in find_all("PRAGMA integrity_check"):
            if text != "ok":
                yield f"{path}: {text}"
        yield from _wrong_rows(find_all, statements, path, keeps_history)
    except CorruptedDataError as error:
        yield str(error)


def _wrong_rows(
    find_all: FindAll, statements: Statements, path: str, keeps_history: bool
) -> Iterator[str]:
    for table in (*REVISION_TABLES, "transactions"):
        for count, problem in enumerate(_damaged_rows(find_all, statements, path, table)):
            if count == _MOST:
                yield f"{path}: … and further damaged rows in the table {table}"
                break
            yield problem
    for table in REVISION_TABLES if keeps_history else ():
        orphans = find_all(
            f"SELECT oid, tid FROM {table} AS revision WHERE NOT EXISTS (SELECT 1 FROM"
            f" transactions AS made WHERE made.tid = revision.tid) LIMIT {_MOST}"
        )
        for oid, tid in orphans:
            yield (
                f"{path}: the transaction {_tid(tid)} of a revision of object {_oid(oid)} is "
                "missing"
            )


def _damaged_rows(
    find_all: FindAll, statements: Statements, path: str, table: str
) -> Iterator[str]:
    is_revision = table in REVISION_TABLES
    keys = {"objects": "oid", "old_revisions": "oid, tid", "transactions": "tid"}[table]
    columns = statements.revision_columns if is_revision else statements.transaction_columns
    first = "oid, " if is_revision else ""
    marks = ", ".join("?" * len(keys.split(",")))
    start: Sequence[Any] = (-(2**63),) * len(keys.split(","))
    compared = ">="
    while rows := find_all(
        f"SELECT {keys}, {first}{columns} FROM {table} WHERE ({keys}) {compared} ({marks})"
        f" ORDER BY {keys} LIMIT {_PIECE}", *start,
    ):
        for row in rows:
            values = row[len(start) :]
            try:
                if is_revision:
                    revision_row(name_of(values[0]), values[1:], path)
                else:
                    transaction_row(values, path)
            except CorruptedDataError as error:
                yield str(error)
        start, last, compared = rows[-1][: len(start)], start, ">"
        if not all(type(key) is int for key in start) or tuple(start) < tuple(last):
            yield f"{path}: the rows of the table {table} are not in order"
            return


def _tid(number: Any) -> str:
    return format_tid(name_of(number)) if type(number) is int else repr(number)


def _oid(number: Any) -> str:
    return format_oid(name_of(number)) if type(number) is int else repr(number)
