"""Tasks cancelled at every point at which they wait: afterwards the pool is complete, and each
transaction has happened as a whole or not at all."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree

import objdb
from objdb import task_manager
from tests.aio.staging import (
    WAYS,
    Cancel,
    Log,
    add_one,
    assert_quiet,
    at_once,
    cancelled_everywhere,
    next_turn,
    reached,
    run,
    turns,
    twice,
    two_people,
    values,
)
from tests.conftest import Databases
from tests.database.staging import Gate
from tests.database.test_closing import GatedFiles
from tests.models import Person

every_way = pytest.mark.parametrize("cancel", WAYS, ids=lambda way: way.__name__)


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    two_people(db)
    db.setPoolSize(1)
    return db


class Sweep:
    """Cancels *work* everywhere, while another task has the only connection at its beginning."""

    def __init__(self, db: objdb.DB, cancel: Cancel) -> None:
        self.db = db
        self.cancel = cancel
        self.last = 0
        self.is_contended = True

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]], most: int = 1) -> int:
        """Return the number of suspensions; *most*: what a run can add to the values."""
        return run(self._run(work, most))

    async def _run(self, work: Callable[[], Coroutine[Any, Any, Any]], most: int) -> int:
        async def hold(connection: objdb.Connection) -> None:
            await turns(2)
            connection.close()

        def begun() -> Coroutine[Any, Any, Any]:
            if self.is_contended:
                connection = self.db.open(transaction_manager=transaction.TransactionManager())
                self.holding = asyncio.create_task(hold(connection))
            return work()

        async def check(was_cancelled: bool) -> None:
            if self.is_contended:
                await self.holding
            await turns(5)
            assert_quiet(self.db)
            p, q = values(self.db)
            assert p == q
            if was_cancelled:
                assert self.last <= p <= self.last + most
            else:
                assert p == self.last + most
            self.last = p
            self.db.run(lambda connection: connection.root().update(usable=p))

        return await cancelled_everywhere(begun, self.cancel, check)


@every_way
def test_a_block(people: objdb.DB, cancel: Cancel) -> None:
    """`async with db.transaction()`: waiting for the connection, in the body, in the commit."""
    async def work() -> None:
        async with people.transaction() as connection:
            connection.root()["p"].value += 1
            await asyncio.sleep(0)
            connection.root()["q"].value += 1
            await asyncio.sleep(0.001)

    assert Sweep(people, cancel).run(work) >= 4


@every_way
def test_arun(people: objdb.DB, cancel: Cancel) -> None:
    """`db.arun`, with a conflict at the first try: also between the tries."""
    people.setPoolSize(2)
    for number in range(2):
        tries = 0

        async def add(connection: objdb.Connection) -> None:
            nonlocal tries
            tries += 1
            add_one(connection)
            await asyncio.sleep(0)
            if tries == 1:
                people.run(add_one)

        def work(add: Any = add) -> Coroutine[Any, Any, Any]:
            nonlocal tries
            tries = 0
            return people.arun(add)

        sweep = Sweep(people, cancel)
        sweep.is_contended = False
        sweep.last = values(people)[0]
        assert sweep.run(work, most=2) >= 5, number


@every_way
def test_aopen_and_acommit(people: objdb.DB, cancel: Cancel) -> None:
    """`await db.aopen()` and `await task_manager.acommit()`."""
    async def work() -> None:
        connection = await people.aopen()
        try:
            add_one(connection)
            await asyncio.sleep(0)
            await task_manager.acommit()
        finally:
            task_manager.abort()
            connection.close()

    assert Sweep(people, cancel).run(work) >= 3


@every_way
def test_with_another_participant(people: objdb.DB, cancel: Cancel) -> None:
    """A transaction with a data manager beside the database."""
    logs: list[Log] = []

    async def work() -> None:
        logs.append(Log())
        async with people.transaction() as connection:
            connection.transaction_manager.get().join(logs[-1])
            await asyncio.sleep(0)
            add_one(connection)

    assert Sweep(people, cancel).run(work) >= 3
    for log in logs:
        assert not log.calls or log.calls[-1] in ("tpc_finish", "abort")


@every_way
def test_prefetch(people: objdb.DB, cancel: Cancel) -> None:
    """`await connection.prefetch(...)`, before a change."""
    with people.transaction() as connection:
        connection.root()["t"] = OOBTree({number: Person(str(number)) for number in range(200)})

    async def work() -> None:
        async with people.transaction() as connection:
            connection.cacheMinimize()
            await connection.prefetch(connection.root(), depth=2)
            add_one(connection)

    assert Sweep(people, cancel).run(work) >= 3


# A cancellation that comes with the result is swallowed by wait_for, before Python 3.12.
@pytest.mark.parametrize("cancel", [at_once, next_turn, twice], ids=lambda way: way.__name__)
def test_limited_by_a_timeout(people: objdb.DB, cancel: Cancel) -> None:
    """A transaction inside `asyncio.wait_for`."""
    async def once() -> None:
        async with people.transaction() as connection:
            add_one(connection)
            await asyncio.sleep(0)

    async def work() -> None:
        await asyncio.wait_for(once(), 60)

    assert Sweep(people, cancel).run(work) >= 1


def test_a_commit_that_was_cancelled_may_have_happened(
    databases: Databases, tmp_path: Path
) -> None:
    """A task cancelled while its commit syncs, even twice, has its connection until the outcome
    is known, and then raises CancelledError. The commit has happened."""
    files = GatedFiles()
    db = databases.open(objdb.FileStorage(tmp_path / "data.fs", files=files), pool_size=1)
    two_people(db)

    async def main() -> None:
        gate = files.gates["sync"] = Gate()
        task = asyncio.create_task(db.arun(add_one))
        await reached(gate)
        for _ in range(2):
            task.cancel()
            await turns()
            assert not task.done()
        assert db.statistics().connections_out == 1
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_quiet(db)

    run(main())
    assert values(db) == (1, 1)


def test_a_commit_that_failed_and_was_cancelled(people: objdb.DB) -> None:
    """The error of a commit whose task was cancelled is the cause of the CancelledError."""
    async def main() -> None:
        log = Log()
        gate = log.gates["tpc_vote"] = Gate()
        log.fail = "tpc_vote"

        async def work() -> None:
            async with people.transaction() as connection:
                add_one(connection)
                connection.transaction_manager.get().join(log)

        task = asyncio.create_task(work())
        await reached(gate)
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        causes = []
        error: BaseException | None = caught.value
        while error is not None:
            causes.append(type(error))
            error = error.__cause__ or error.__context__
        assert RuntimeError in causes
        assert_quiet(people)

    run(main())
    assert values(people) == (0, 0)


def test_a_timeout_gives_up_waiting(people: objdb.DB) -> None:
    """A task that stops waiting for a connection leaves the line; who is behind it is served."""
    async def main() -> None:
        connection = await people.aopen()
        impatient = asyncio.create_task(asyncio.wait_for(people.arun(add_one), 0.01))
        await turns()
        patient = asyncio.create_task(people.arun(add_one))
        with pytest.raises(asyncio.TimeoutError):
            await impatient
        connection.close()
        await patient
        assert_quiet(people)

    run(main())
    assert values(people) == (1, 1)


def test_a_whole_crowd_is_cancelled(people: objdb.DB) -> None:
    """Many tasks cancelled in the middle, wherever they are: nothing is half done, and nothing
    is kept."""
    async def main() -> None:
        async def work() -> None:
            async with people.transaction() as connection:
                connection.root()["p"].value += 1
                await asyncio.sleep(0)
                connection.root()["q"].value += 1

        for _ in range(20):
            tasks = [asyncio.create_task(work()) for _ in range(50)]
            await asyncio.sleep(0.003)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert_quiet(people)

    run(main())
    p, q = values(people)
    assert p == q


def test_coroutines_that_are_dropped(people: objdb.DB) -> None:
    """A coroutine that is closed where it waits, without a loop that could go on, gives
    everything back too: one that commits, when that has ended."""
    async def work() -> None:
        async with people.transaction() as connection:
            add_one(connection)
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    for steps in range(10):
        async def stepped(steps: int = steps) -> None:
            coroutine = work()
            for _ in range(steps):
                try:
                    waited = coroutine.send(None)
                except StopIteration:
                    return
                if waited is not None:
                    break
            coroutine.close()

        loop.run_until_complete(stepped())
        gc.collect()
        assert_quiet(people)
    loop.close()
    p, q = values(people)
    assert p == q
    assert p > 0
