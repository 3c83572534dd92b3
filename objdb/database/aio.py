"""The database for coroutines: what waits, waits without the event loop.

    connection   in the line of the pool, beside threads     pool
    commit       in a worker thread                          connection/tasks, workers
    retry        asyncio.sleep                               connection/retry
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from objdb.connection.connection import Connection
from objdb.connection.isolation import Isolation, require_isolation
from objdb.connection.retry import Attempts, require_done
from objdb.connection.tasks import bound as bound_to_task
from objdb.connection.tasks import task_manager
from objdb.database.pool import ConnectionPool, Holder
from objdb.ids import Tid
from objdb.storage.times import bound
from objdb.storage.versions import require_name

Result = TypeVar("Result")


class AsyncDatabase:
    """The part of `DB` that coroutines use."""

    name: str
    isolation: str
    _pool: ConnectionPool
    _require_usable: Callable[[], None]
    _require_versions: Callable[[], None]
    _take: Callable[[bool, str, Tid | None], Connection]
    _pool_of: Callable[[str], ConnectionPool]
    storage: Any
    return_connection: Callable[[Connection], None]
    attempts: Callable[[int, str | None, str], Attempts]

    def aopen(
        self, version: str = "", *, temporary: bool = False, transaction_manager: Any = None,
        isolation: Isolation | None = None, at: Any = None, before: Any = None,
    ) -> Coroutine[Any, Any, Connection]:
        """Return a connection that takes part in the transactions of *transaction_manager*
        (default: `task_manager`, those of the task that calls this): `await` it.

        Like `open`, but the event loop goes on while this waits for the pool. The task that
        calls this is the one that has the connection, whichever task awaits the result.
        """
        self._require_usable()
        if version:
            self._require_versions()
            require_name(version)
        mode = self.isolation if isolation is None else require_isolation(isolation)
        past = bound(at, before, self.storage.lastTransaction())
        manager = bound_to_task(
            task_manager if transaction_manager is None else transaction_manager
        )
        waits = not temporary and past is None
        holder = self._pool.holder(frames=2) if waits else None
        return self._aopen(holder, manager, mode, version, past)

    async def _aopen(
        self, holder: Holder | None, manager: Any, isolation: str, version: str, past: Tid | None
    ) -> Connection:
        if holder is None:
            connection = self._take(True, version, past)
        else:
            connection = await self._pool_of(version).atake(holder)
        try:
            connection.open(manager, isolation, past)
        except BaseException:
            self.return_connection(connection)
            raise
        return connection

    async def arun(
        self, function: Callable[[Connection], Awaitable[Result] | Result], tries: int = 3,
        note: str | None = None, version: str = "",
    ) -> Result:
        """Call `function(connection)`, and await what it returns if that can be awaited, in a
        transaction; again after a conflict, up to *tries* times. Return its result when its
        transaction was committed.

        The event loop goes on while this waits for a connection, for the commit, or between
        tries. When it is cancelled during the commit, the commit may have happened.
        """
        from inspect import isawaitable

        result: Any = None
        async for attempt in self.attempts(tries, note, version):
            async with attempt as connection:
                result = function(connection)
                if isawaitable(result):
                    result = await result
                require_done(result, function)
        return result  # type: ignore[no-any-return]
