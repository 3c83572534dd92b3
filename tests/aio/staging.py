"""Coroutines run to their end, cancelled where a test says, and data managers that keep a log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import objdb
from tests.database.staging import PATIENCE_SECONDS, Gate
from tests.models import Person


def run(coroutine: Coroutine[Any, Any, Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Run a coroutine in an event loop of its own, and return its result."""

    async def limited() -> Any:
        return await asyncio.wait_for(coroutine, seconds)

    return asyncio.run(limited())


async def reached(gate: Gate) -> None:
    """Return when somebody stands at the gate; the event loop goes on meanwhile."""
    await asyncio.to_thread(gate.wait_until_reached)


async def turns(count: int = 3) -> None:
    """Let the event loop take a few turns."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- cancelling

Cancel = Callable[[asyncio.Task, Any], None]


def at_once(task: asyncio.Task, waited: Any) -> None:
    """Cancel before the task begins to wait."""
    task.cancel()


def next_turn(task: asyncio.Task, waited: Any) -> None:
    """Cancel when the loop has taken a turn."""
    task.get_loop().call_soon(task.cancel)


def with_the_result(task: asyncio.Task, waited: Any) -> None:
    """Cancel when what the task waits for is there, before the task has seen it."""
    if waited is None:
        next_turn(task, waited)
    else:
        waited.add_done_callback(lambda _: task.cancel())


def twice(task: asyncio.Task, waited: Any) -> None:
    """Cancel, and again a little later."""
    task.cancel()
    task.get_loop().call_later(0.001, task.cancel)


WAYS: list[Cancel] = [at_once, next_turn, with_the_result, twice]


class Cancelling:
    """Awaits a coroutine, and cancels the task at its suspension number *number*, counted from
    0. `reached` tells whether it came to that."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, cancel: Cancel) -> None:
        self._coroutine = coroutine
        self._number = number
        self._cancel = cancel
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        count = 0
        while True:
            try:
                waited = step(argument)
            except StopIteration as end:
                return end.value
            if count == self._number:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                self._cancel(task, waited)
            count += 1
            try:
                argument = yield waited
                step = self._coroutine.send
            except BaseException as error:
                argument, step = error, self._coroutine.throw


async def cancelled_everywhere(
    work: Callable[[], Coroutine[Any, Any, Any]], cancel: Cancel,
    check: Callable[[bool], Awaitable[None]],
) -> int:
    """Run *work* again and again, cancelled at suspension 0, 1, 2, …, until one run comes to
    its end; call `check(was_cancelled)` after each. Return how many suspensions there were."""
    number = 0
    while True:
        cancelling = Cancelling(work(), number, cancel)

        async def wait(cancelling: Cancelling = cancelling) -> Any:
            return await cancelling

        task = asyncio.create_task(wait())
        await asyncio.wait([task])
        if cancelling.reached:
            assert task.cancelled(), task
        else:
            task.result()
        await check(cancelling.reached)
        if not cancelling.reached:
            return number
        number += 1
        assert number < 1000


# -- databases


def two_people(db: objdb.DB) -> None:
    """Store two people, whose values a test changes together."""
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["q"] = Person("p", value=0), Person("q", value=0)


def add_one(connection: objdb.Connection) -> None:
    """Change both."""
    connection.root()["p"].value += 1
    connection.root()["q"].value += 1


def values(db: objdb.DB) -> tuple[int, int]:
    """Return the values of both."""
    with db.transaction() as connection:
        return connection.root()["p"].value, connection.root()["q"].value


def assert_quiet(db: objdb.DB) -> None:
    """Nobody has a connection, and nobody waits for one."""
    assert db.statistics().connections_out == 0
    assert not db._pool._waiting


class Log:
    """A data manager that notes what it is called, and may stop or fail there."""

    transaction_manager: Any = None

    def __init__(self, key: str = "~log") -> None:
        self.key = key
        self.calls: list[str] = []
        self.gates: dict[str, Gate] = {}
        self.fail: str | None = None

    def sortKey(self) -> str:
        return self.key

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            self.gates[name].pass_through()
        if name == self.fail:
            raise RuntimeError(f"{name} failed on purpose")

    def abort(self, txn: Any) -> None:
        self._call("abort")

    def tpc_begin(self, txn: Any) -> None:
        self._call("tpc_begin")

    def commit(self, txn: Any) -> None:
        self._call("commit")

    def tpc_vote(self, txn: Any) -> None:
        self._call("tpc_vote")

    def tpc_finish(self, txn: Any) -> None:
        self._call("tpc_finish")

    def tpc_abort(self, txn: Any) -> None:
        self._call("tpc_abort")
