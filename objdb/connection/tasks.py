"""Transactions of asyncio tasks. As `transaction.manager` is to threads, `task_manager` is to
tasks:

    task A ── its context ──► (A, transactions of A) ◄── connections that A opened
      │ create_task copies the context
      ▼
    task B ── its context ──► (A, …) is not B's own: B gets (B, transactions of B)

So two tasks share a transaction only if one hands its connection to the other. Outside of tasks,
the thread takes the task's place.

`acommit` commits in a worker thread, since a commit waits: for the commit slot, for the medium, and
for whatever other data managers do.

    no changes                              ─► at once, here
    one connection, and nothing else        ─► together with others, with one wait for all
    other data managers, hooks, databases   ─► in a worker of its own
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import transaction
from transaction.interfaces import ITransactionManager
from zope.interface import implementer

from objdb.connection.loops import running_loop
from objdb.connection.work import Work
from objdb.connection.workers import Job, run_elsewhere
from objdb.errors import StorageFailedError

if TYPE_CHECKING:
    import asyncio


def current_task() -> asyncio.Task[Any] | None:
    """Return the task that is running in this thread, or None."""
    loop = running_loop()
    if loop is None:
        return None
    from asyncio import current_task as task_in

    return task_in(loop)


# -- commit


async def acommit(txn: Any, *, ends_here: bool = False) -> None:
    """Commit *txn*, and return when it is durable; the event loop goes on meanwhile.

    *ends_here*: no transaction follows before this returns. When cancelled, waits for the
    outcome all the same, and raises CancelledError then: the commit may have happened.
    """
    resources: list[Any] = txn._resources
    databases = [work.db() for work in resources if isinstance(work, Work)]
    is_plain = _is_plain(txn)
    if is_plain and not resources:
        txn.commit()
    elif is_plain and ends_here and len(databases) == len(resources) == 1:
        await _commit_together(txn, databases[0])
    elif databases:
        await databases[0].workers.submit(Job(txn.commit)).outcome()
    else:
        await run_elsewhere(Job(txn.commit)).outcome()


async def _commit_together(txn: Any, db: Any) -> None:
    later: list[Any] = []
    txn._objdb_later = later
    try:
        await db.committer.submit(Job(txn.commit, later)).outcome()
    except BaseException as error:
        if any(isinstance(e, StorageFailedError) for e in (error, error.__cause__)):
            db.invalidateCache()  # the connection has gone on as if it had committed
        raise


def later_of(txn: Any) -> Any:
    """Return the list for what is to be waited for after the commit of *txn*, or None if its
    commit is to wait."""
    return getattr(txn, "_objdb_later", None)


def _is_plain(txn: Any) -> bool:
    """Whether no hooks and no synchronizers but the connection's have a part in the commit."""
    return (
        not any(txn.getBeforeCommitHooks()) and not any(txn.getAfterCommitHooks())
        and len(txn._synchronizers) <= 1
    )


def bound(manager: Any) -> Any:
    """Return *manager*; of one for all tasks, that of the current task."""
    return manager.manager if isinstance(manager, TaskTransactionManager) else manager


# -- the manager of each task


class TaskTransactions(transaction.TransactionManager):
    """The transactions of one task."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    @property
    def has_ended(self) -> bool:
        """Whether the task, or the thread, has."""
        owner = self._owner()
        if isinstance(owner, threading.Thread):
            return not owner.is_alive()
        return owner is None or owner.done()

    def is_of(self, owner: Any) -> bool:
        """Whether these are the transactions of the task or thread *owner*."""
        return self._owner() is owner

    async def acommit(self) -> None:
        """Commit the current transaction, and return when it is durable; see `acommit`."""
        await acommit(self.get())

    async def __aenter__(self) -> Any:
        return self.begin()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is not None:
            self.abort()
            return
        try:
            await self.acommit()
        except BaseException:
            self.abort()
            raise


@implementer(ITransactionManager)
class TaskTransactionManager:
    """A transaction manager for all tasks: it acts on the transactions of the task that calls.

    `manager` is that of the task. `async with` begins a transaction, and commits it without
    blocking the event loop, or aborts it. All else is as in `transaction.TransactionManager`.
    """

    def __init__(self) -> None:
        self._current: ContextVar[TaskTransactions] = ContextVar("objdb_transactions")

    @property
    def manager(self) -> TaskTransactions:
        """The transactions of the current task; of the thread, if no task is running."""
        owner = current_task() or threading.current_thread()
        manager = self._current.get(None)
        if manager is None or not manager.is_of(owner):
            manager = TaskTransactions(owner)
            self._current.set(manager)
        return manager

    @property
    def explicit(self) -> bool:
        """Whether a transaction has to be begun explicitly."""
        return bool(self.manager.explicit)

    @explicit.setter
    def explicit(self, explicit: bool) -> None:
        """Set it, for the current task."""
        self.manager.explicit = explicit

    def acommit(self) -> Any:
        """Commit the task's transaction, and return when it is durable: `await` it.

        The event loop goes on meanwhile. When cancelled, this waits for the outcome all the
        same, and raises CancelledError then: the commit may have happened.
        """
        return self.manager.acommit()  # of the task that calls, whichever awaits it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def __enter__(self) -> Any:
        return self.manager.begin()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.manager.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Any:
        return await self.manager.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        await self.manager.__aexit__(kind, error, traceback)


task_manager = TaskTransactionManager()
"""The transactions of the current asyncio task, as `transaction.manager` has those of threads."""
