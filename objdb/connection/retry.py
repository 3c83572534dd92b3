"""Trying a transaction again after a conflict.

    for attempt in db.attempts(3):          db.run(function)
        with attempt as connection:
            ...

Every attempt is a transaction of its own. One that ends in a transient error (a conflict) is
aborted and followed by the next, after a short random wait. The last one takes its turn, see
`turns`; its error, if it has one, says how many there were, and is raised.

With `async for` and `async with` all waits leave the event loop alone: for a connection, for the
commit, and between attempts.
"""

from __future__ import annotations

import inspect
import random
import time
import weakref
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Literal

from transaction.interfaces import NoTransaction, TransientError

from objdb.connection.connection import Connection
from objdb.connection.partial_commit import committed_in_part
from objdb.connection.tasks import acommit
from objdb.connection.transactions import AttemptTransactions
from objdb.connection.turns import current_owner
from objdb.errors import ConflictError, ObjdbError, PartialCommitError, UsageError
from objdb.ids import Tid

_FIRST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.1

# The attempts that each task or thread is in, the outer ones first.
_open: weakref.WeakKeyDictionary[Any, list[Attempt]] = weakref.WeakKeyDictionary()


class Attempt:
    """One try: a context manager, also an asynchronous one, that gives a connection and commits
    at the end.

    After a conflict, the next attempt has the user, note and extension of this one.
    """

    def __init__(
        self, db: Any, note: str | None, version: str, *, number: int = 1, tries: int = 1,
        before: Attempt | None = None,
    ) -> None:
        self._db = db
        self._note = note
        self._version = version
        self._number = number
        self._is_last = number == tries
        self._before = before
        self._manager: Any = None
        self._turn: ExitStack | None = None  # where it has one
        self._aturn: AsyncExitStack | None = None
        self._owner: Any = None  # the task or thread
        self._inside: list[Attempt] = []  # of the task or thread, this one too
        self._nested: set[Tid] = set()  # what was committed by attempts inside this one
        self.succeeded = False
        self.metadata: tuple[str, str, dict[str, Any]] = ("", "", {})

    @property
    def _has_turn(self) -> bool:
        """Whether this is the last try, after others that had conflicts."""
        return self._is_last and self._before is not None

    def __enter__(self) -> Connection:
        self._begin()
        try:
            connection: Connection = self._db.open(
                self._version, transaction_manager=self._manager
            )
        except BaseException:
            self._manager.abort()
            raise
        if self._has_turn:  # with a connection, which those who wait for the turn may have all of
            self._turn = ExitStack()
            try:
                self._turn.enter_context(self._db.turns.taken())
                connection.newTransaction(self._transaction)
            except BaseException as error:
                self._give_back(connection, error)
                self._turn.close()
                raise
        return self._opened(connection)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        if self._turn is None:
            return self._exit(error)
        with self._turn:
            return self._exit(error)

    def _exit(self, error: Any) -> bool:
        self._leave()
        txn = self._current() if error is None else None
        try:
            if txn is not None:
                turns, owner = self._db.turns, self._owner
                turns.begin_commit(owner)
                try:
                    txn.commit()
                finally:
                    turns.end_commit(owner)
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
        if self._has_turn:
            self._aturn = AsyncExitStack()
            try:
                await self._aturn.enter_async_context(self._db.turns.ataken())
                connection.newTransaction(self._transaction)
            except BaseException as error:
                self._give_back(connection, error)
                await self._aturn.aclose()
                raise
        return self._opened(connection)

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        if self._aturn is None:
            return await self._aexit(error)
        async with self._aturn:
            return await self._aexit(error)

    async def _aexit(self, error: Any) -> bool:
        self._leave()
        txn = self._current() if error is None else None
        try:
            if txn is not None:
                turns, owner = self._db.turns, self._owner
                await turns.abegin_commit(owner)
                try:
                    await acommit(txn, ends_here=True)
                finally:
                    turns.end_commit(owner)
        except BaseException as failure:
            if self._has_failed(txn, failure):
                return True
            raise
        return self._end(error)

    def _begin(self) -> None:
        if self._manager is not None:
            raise UsageError("this block was entered before. Make one for each transaction")
        self._manager = AttemptTransactions()
        self._transaction = txn = self._manager.begin()
        if self._before is not None:
            txn.user, txn.description, extension = self._before.metadata
            txn.extension.update(extension)
        elif self._note:
            txn.note(self._note)

    def _opened(self, connection: Connection) -> Connection:
        self._connection = connection
        self._owner = current_owner()
        self._inside = _open.setdefault(self._owner, [])
        self._inside.append(self)
        return connection

    def _leave(self) -> None:
        self._inside.remove(self)
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
        if self.succeeded and self._connection.committed_tid is not None:
            for outer in self._inside:
                outer._nested.add(self._connection.committed_tid)
        self._give_back(self._connection, error)
        if not isinstance(error, TransientError):
            return False
        if self._is_last and self._before is not None:
            error.tries = self._number
            _add(error, f"tried {self._number} times")
        return not self._is_last

    def _give_back(self, connection: Connection, error: BaseException | None) -> None:
        try:
            if error is not None and self._current() is not None:
                self._manager.abort()
        finally:
            connection.close()

    def _has_failed(self, txn: Any, failure: BaseException) -> bool:
        """Give the connection back after a commit that failed; return whether the next attempt
        makes up for it. `PartialCommitError` if *txn* is committed somewhere all the same. A
        conflict with what was committed inside this attempt, which the next one will meet as well
        if it does the same, is told as that."""
        partial = committed_in_part(txn) if isinstance(failure, Exception) else None
        if partial is not None and not isinstance(failure, PartialCommitError):
            self._end(partial)
            raise partial from failure
        if isinstance(failure, ConflictError) and (failure.serials or (None,))[0] in self._nested:
            _add(failure, (
                "that was a transaction inside this one, in the same thread, which has committed: "
                "change the object through the outer one's connection, or end that first"
            ))
        return self._end(failure)


def _add(error: Any, text: str) -> None:
    """Add words to an error's message."""
    if isinstance(error, ObjdbError):
        error.args = (f"{error} ({text})",)
    elif hasattr(error, "add_note"):
        error.add_note(text)


class Block(Attempt):
    """A transaction that is tried once: whatever its block raises goes on."""

    def __init__(self, db: Any, note: str | None, version: str) -> None:
        super().__init__(db, note, version)

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
            self._db, self._note, self._version, number=self._number, tries=self._tries,
            before=self._attempt,
        )
        return self._attempt


def require_done(result: Any, function: Any) -> None:
    """Raise `UsageError` if the *result* of a function is something that runs later."""
    is_coroutine = inspect.isawaitable(result) or inspect.isasyncgen(result)
    if is_coroutine or inspect.isgenerator(result):
        close = getattr(result, "close", None)
        if close is not None:
            close()
        kind = "can be awaited" if is_coroutine else "is a generator"
        how = "Use db.arun" if is_coroutine else "Take the yield out, or return a list"
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(f"what {name} returned {kind}: nothing was done yet. {how}")
