"""Several transactions that change one object, all from one snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transaction

import objdb

CONFLICT = "conflict"
Change = Callable[[Any], Any]


def commit_all(db: objdb.DB, changes: list[Change]) -> list[str | None]:
    """Make each change of the object `it` in a transaction of its own, all from one snapshot,
    and commit them in order; return which were conflicts."""
    managers = [transaction.TransactionManager() for _ in changes]
    connections = [db.open(transaction_manager=m, temporary=True) for m in managers]
    for manager, connection, change in zip(managers, connections, changes, strict=True):
        manager.begin()
        change(connection.root()["it"])
    found: list[str | None] = []
    for manager in managers:
        try:
            manager.commit()
            found.append(None)
        except objdb.UnresolvableConflictError:
            manager.abort()
            found.append(CONFLICT)
    for manager, connection in zip(managers, connections, strict=True):
        manager.abort()
        connection.close()
    return found


def put(db: objdb.DB, it: Any, **others: Any) -> None:
    """Store the object that the transactions will change."""
    with db.transaction() as connection:
        connection.root()["it"] = it
        connection.root().update(others)


def look(db: objdb.DB, how: Callable[[Any], Any]) -> Any:
    """Look at the object with a connection whose cache is empty."""
    with db.transaction() as connection:
        connection.cacheMinimize()
        return how(connection.root()["it"])


def run(db: objdb.DB, it: Any, *changes: Change, how: Callable[[Any], Any] = list) -> Any:
    """Return what became of *it* after the changes, or "conflict" if the last one was one."""
    put(db, it)
    outcomes = commit_all(db, list(changes))
    assert not any(outcomes[:-1])
    return outcomes[-1] or look(db, how)
