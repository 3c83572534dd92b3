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
from transaction.interfaces import NoTransaction, TransientError

from objdb.connection.connection import Connection
from objdb.connection.outcome import committed_in_part
from objdb.errors import PartialCommitError

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
        self._transaction = txn = self._manager.begin()
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
        txn = self._transaction
        # A transaction that the block ended has no extension any more.
        self.metadata = txn.user, txn.description, dict(txn.extension or {})
        try:
            if kind is None:
                self._commit()
                self.succeeded = True
                return False
        except TransientError:
            if self._is_last:
                raise
            return True
        finally:
            if not self.succeeded:
                self._abort()
            self._connection.close()
        return isinstance(error, TransientError) and not self._is_last

    def _commit(self) -> None:
        """Commit the current transaction, which the block may have ended, or replaced."""
        try:
            txn = self._manager.get()
        except NoTransaction:
            return
        try:
            txn.commit()
        except PartialCommitError:
            raise
        except Exception as error:
            partial = committed_in_part(txn)
            if partial is None:
                raise
            raise partial from error

    def _abort(self) -> None:
        try:
            self._manager.abort()
        except NoTransaction:
            return


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
