"""Whose turn it is, when attempts at transactions meet conflicts again and again.

    usual attempts     ──work──► wait ─► commit          each commits when it is ready
    the last attempt   ─► its turn ──work──► commit      no other attempt commits meanwhile

A last attempt has its connection already when it takes its turn, behind those that wait, and when
the commits under way have ended. Then nothing that it reads or writes can change until it has
committed: it is served, not starved. Others work on meanwhile, and wait with their commits, at most
`PATIENCE_SECONDS`, so that one which a last attempt waits for cannot wait for that for ever.

Attempts are those of one database in one process: of `db.transaction`, `run`, `attempts` and their
asynchronous forms. Commits by other ways, and of other processes, do not wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from objdb.connection.tasks import current_task

PATIENCE_SECONDS = 10.0
_BETWEEN_LOOKS_SECONDS = 0.001  # of coroutines, which cannot be woken by a thread


class Turns:
    """The queue of a database. `_changed` covers the queue, whose first one has the turn, and the
    commits under way, each by its owner: a task or a thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[Any] = deque()
        self._committing: list[Any] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn: wait for those before, and for the commits under way."""
        owner = current_owner()
        with self._changed:
            self._queue.append(owner)
            self._changed.wait_for(lambda: self._is_free(owner), PATIENCE_SECONDS)
        try:
            yield
        finally:
            self._leave(owner)

    def begin_commit(self, owner: Any) -> None:
        """Wait until no other attempt has the turn; `end_commit` has to follow. (Every transaction
        comes here: these two are cheaper than a context manager.)"""
        with self._changed:
            if self._queue:
                self._changed.wait_for(lambda: self._may_commit(owner), PATIENCE_SECONDS)
            self._committing.append(owner)

    def end_commit(self, owner: Any) -> None:
        """Wake the attempts that wait for this commit."""
        with self._changed:
            self._committing.remove(owner)
            if self._queue:
                self._changed.notify_all()

    @asynccontextmanager
    async def ataken(self) -> AsyncIterator[None]:
        """Do what `taken` does, in a coroutine."""
        owner = current_owner()
        with self._changed:
            self._queue.append(owner)
        try:
            await self._until(lambda: self._is_free(owner))
            yield
        finally:
            self._leave(owner)

    async def abegin_commit(self, owner: Any) -> None:
        """Do what `begin_commit` does, in a coroutine."""
        if self._queue:
            await self._until(lambda: self._may_commit(owner))
        with self._changed:
            self._committing.append(owner)

    async def _until(self, is_so: Any) -> None:
        from asyncio import sleep  # not before a coroutine needs it

        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so() and time.monotonic() < end:
            await sleep(_BETWEEN_LOOKS_SECONDS)

    def _is_free(self, owner: Any) -> bool:
        """Whether the turn of *owner* has come."""
        return self._queue[0] is owner and not [o for o in self._committing if o is not owner]

    def _may_commit(self, owner: Any) -> bool:
        """Whether only *owner* may have the turn: an attempt nested in a last one goes on."""
        return not self._queue or owner in self._queue

    def _leave(self, owner: Any) -> None:
        with self._changed:
            self._queue.remove(owner)
            self._changed.notify_all()


def current_owner() -> Any:
    """Return the running task, or the thread."""
    return current_task() or threading.current_thread()
