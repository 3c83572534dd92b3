"""Trying a transaction again after a conflict.

    for attempt in db.attempts(3):          db.run(function)
        with attempt as connection:
            ...

Every attempt is a transaction of its own. One that ends in a transient error (a conflict) is
aborted and followed by the next, after a short random wait; the last one's error is raised.

With `async for` and `async with` all waits leave the event loop alone: for a connection, for the
commit, and between attempts.
"""

from __future__ import annotations

import random
import time
from typing import Any, Literal

import transaction
from transaction.interfaces import NoTransaction, TransientError

from objdb.connection.connection import Connection
from objdb.connection.outcome import committed_in_part
from objdb.connection.tasks import acommit
from objdb.errors import PartialCommitError, UsageError

_FIRST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.1


class Attempt:
    """One try: a context manager, also an asynchronous one, that gives a connection and commits
    at the end.

    After a conflict, the next attempt has the user, note and extension of this one.
    """

    def __init__(
        self, db: Any, note: str | None, version: str, *, is_last: bool, before: Attempt | None
    ) -> None:
        self._db = db
        self._note = note
        self._version = version
        self._is_last = is_last
        self._before = before
        self._manager: Any = None
        self.succeeded = False
        self.metadata: tuple[str, str, dict[str, Any]] = ("", "", {})

    def __enter__(self) -> Connection:
        self._begin()
        try:
            connection: Connection = self._db.open(
                self._version, transaction_manager=self._manager
            )
        except BaseException:
            self._manager.abort()
            raise
        self._connection = connection
        return connection

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self._keep_metadata()
        txn = self._current() if error is None else None
        try:
            if txn is not None:
                txn.commit()
        except BaseException as failure:
            if self._has_failed(txn, failure):
                return True
            raise
        return self._end(error)

    async def __aenter__(self) -> Connection:
        self._begin()
        try:
            connection: Connection = await self._db.aopen(
                self._version, transaction_manager=self._manager
            )
        except BaseException:
            self._manager.abort()
            raise
        self._connection = connection
        return connection

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self._keep_metadata()
        txn = self._current() if error is None else None
        try:
            if txn is not None:
                await acommit(txn, ends_here=True)
        except BaseException as failure:
            if self._has_failed(txn, failure):
                return True
            raise
        return self._end(error)

    def _begin(self) -> None:
        if self._manager is not None:
            raise UsageError("this block was entered before. Make one for each transaction")
        self._manager = transaction.TransactionManager(explicit=True)
        self._transaction = txn = self._manager.begin()
        if self._before is not None:
            txn.user, txn.description, extension = self._before.metadata
            txn.extension.update(extension)
        elif self._note:
            txn.note(self._note)

    def _keep_metadata(self) -> None:
        txn = self._transaction
        # A transaction that the block ended has no extension any more.
        self.metadata = txn.user, txn.description, dict(txn.extension or {})

    def _current(self) -> Any:
        """Return the current transaction, which the block may have ended, or replaced."""
        try:
            return self._manager.get()
        except NoTransaction:
            return None

    def _end(self, error: BaseException | None) -> bool:
        """Give the connection back; return whether the next attempt makes up for the error."""
        self.succeeded = error is None
        try:
            if error is not None and self._current() is not None:
                self._manager.abort()
        finally:
            self._connection.close()
        return isinstance(error, TransientError) and not self._is_last

    def _has_failed(self, txn: Any, failure: BaseException) -> bool:
        """Give the connection back after a commit that failed; return whether the next attempt
        makes up for it. `PartialCommitError` if *txn* is committed somewhere all the same."""
        partial = committed_in_part(txn) if isinstance(failure, Exception) else None
        if partial is None or isinstance(failure, PartialCommitError):
            return self._end(failure)
        self._end(partial)
        raise partial from failure


class Block(Attempt):
    """A transaction that is tried once: whatever its block raises goes on."""

    def __init__(self, db: Any, note: str | None, version: str) -> None:
        super().__init__(db, note, version, is_last=True, before=None)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Literal[False]:
        super().__exit__(kind, error, traceback)
        return False

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> Literal[False]:
        await super().__aexit__(kind, error, traceback)
        return False


class Attempts:
    """Up to *tries* attempts, until one succeeds; an iterator, also an asynchronous one.

    ValueError unless *tries* is positive.
    """

    def __init__(
        self, db: Any, tries: int, note: str | None = None, version: str = ""
    ) -> None:
        if tries < 1:
            raise ValueError(f"tries is {tries}; at least 1 makes sense")
        self._db = db
        self._tries = tries
        self._note = note
        self._version = version
        self._number = 0
        self._attempt: Attempt | None = None

    def __iter__(self) -> Attempts:
        return self

    def __next__(self) -> Attempt:
        if self._is_over():
            raise StopIteration
        if self._number:
            time.sleep(self._pause())
        return self._next()

    def __aiter__(self) -> Attempts:
        return self

    async def __anext__(self) -> Attempt:
        if self._is_over():
            raise StopAsyncIteration
        if self._number:
            from asyncio import sleep

            await sleep(self._pause())
        return self._next()

    def _is_over(self) -> bool:
        has_succeeded = self._attempt is not None and self._attempt.succeeded
        return has_succeeded or self._number == self._tries

    def _pause(self) -> float:
        """Return how many seconds to wait before the next attempt."""
        longest = min(_FIRST_WAIT_SECONDS * 2**self._number, _LONGEST_WAIT_SECONDS)
        return random.uniform(0, longest)

    def _next(self) -> Attempt:
        self._number += 1
        self._attempt = Attempt(
            self._db, self._note, self._version, is_last=self._number == self._tries,
            before=self._attempt,
        )
        return self._attempt
