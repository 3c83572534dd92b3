"""Trying a transaction again after a conflict.

    for attempt in db.attempts(3):          db.run(function)
        with attempt as connection:
            ...

Every attempt is a transaction of its own. One that ends in a transient error (a conflict) is
aborted and followed by the next, after a short random wait; the last one's error is raised.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import transaction
from transaction.interfaces import TransientError

from objdb.connection.connection import Connection

_FIRST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.1


class Attempt:
    """One try: a context manager that gives a connection and commits at the end.

    After a conflict, the next attempt has the user, note and extension of this one.
    """

    def __init__(self, db: Any, note: str | None, *, is_last: bool, before: Attempt | None) -> None:
        self._db = db
        self._note = note
        self._is_last = is_last
        self._before = before
        self.succeeded = False
        self.metadata: tuple[str, str, dict[str, Any]] = ("", "", {})

    def __enter__(self) -> Connection:
        self._manager = transaction.TransactionManager(explicit=True)
        txn = self._manager.begin()
        if self._before is not None:
            txn.user, txn.description, extension = self._before.metadata
            txn.extension.update(extension)
        elif self._note:
            txn.note(self._note)
        try:
            connection: Connection = self._db.open(transaction_manager=self._manager)
        except BaseException:
            self._manager.abort()
            raise
        self._connection = connection
        return connection

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        txn = self._manager.get()
        self.metadata = txn.user, txn.description, dict(txn.extension)
        try:
            if kind is None:
                self._manager.commit()
                self.succeeded = True
                return False
        except TransientError:
            if self._is_last:
                raise
            return True
        finally:
            if not self.succeeded:
                self._manager.abort()
            self._connection.close()
        return isinstance(error, TransientError) and not self._is_last


def attempts(db: Any, tries: int, note: str | None = None) -> Iterator[Attempt]:
    """Yield up to *tries* attempts, until one succeeds. ValueError unless *tries* is positive."""
    if tries < 1:
        raise ValueError(f"tries is {tries}; at least 1 makes sense")
    attempt = None
    for number in range(tries):
        if number:
            longest = min(_FIRST_WAIT_SECONDS * 2**number, _LONGEST_WAIT_SECONDS)
            time.sleep(random.uniform(0, longest))
        attempt = Attempt(db, note, is_last=number == tries - 1, before=attempt)
        yield attempt
        if attempt.succeeded:
            return
