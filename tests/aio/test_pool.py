"""Tasks in the line for a connection, beside threads."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import transaction

import objdb
from objdb import task_manager
from tests.aio.staging import assert_quiet, run, turns
from tests.conftest import Databases
from tests.database.staging import Gate, Worker, in_thread


def managed(db: objdb.DB) -> objdb.Connection:
    return db.open(transaction_manager=transaction.TransactionManager())


def amanaged(db: objdb.DB) -> Any:
    return db.aopen(transaction_manager=transaction.TransactionManager())


def test_waiting_leaves_the_loop_alone(databases: Databases) -> None:
    """While a task waits for a connection, others run; it gets the one that comes back."""
    db = databases.open(None, pool_size=1)

    async def main() -> None:
        first = await db.aopen()
        waiting = asyncio.create_task(db.aopen())
        await turns()
        assert not waiting.done()
        first.close()
        second = await waiting
        assert second is first
        second.close()

    run(main())
    assert_quiet(db)


def test_who_waits_longest_is_next(databases: Databases) -> None:
    """Tasks and threads are served in the order in which they came."""
    db = databases.open(None, pool_size=1)
    served: list[str] = []

    def by_thread(name: str) -> None:
        connection = managed(db)
        served.append(name)
        connection.close()

    async def by_task(name: str) -> None:
        connection = await amanaged(db)
        served.append(name)
        connection.close()

    async def main() -> None:
        connection = await amanaged(db)
        coming: list[Any] = []
        for number in range(6):
            if number % 2:
                coming.append(asyncio.create_task(by_task(f"task {number}")))
            else:
                coming.append(asyncio.create_task(asyncio.to_thread(by_thread, f"thread {number}")))
            while len(db._pool._waiting) <= number:
                await asyncio.sleep(0.001)
        connection.close()
        await asyncio.gather(*coming)

    run(main())
    assert served == ["thread 0", "task 1", "thread 2", "task 3", "thread 4", "task 5"]


def test_a_thread_gives_to_a_task(databases: Databases) -> None:
    """A connection that a thread gives back wakes the task that waits for it."""
    db = databases.open(None, pool_size=1)
    held = managed(db)

    async def main() -> None:
        waiting = asyncio.create_task(amanaged(db))
        await turns()
        assert not waiting.done()
        await asyncio.to_thread(held.close)
        (await waiting).close()

    run(main())
    assert_quiet(db)


def test_timeout_names_tasks(databases: Databases) -> None:
    """A task that waited long enough is told which tasks have the connections, and where they
    opened them."""
    db = databases.open(None, pool_size=2, pool_wait=0.01, record_stacks=True)

    async def opened_by_a_task_that_forgets() -> Any:
        return await amanaged(db)

    async def main() -> None:
        one = await asyncio.create_task(opened_by_a_task_that_forgets(), name="hoarder")
        two = managed(db)
        with pytest.raises(objdb.PoolTimeoutError, match=r"were out for 0\.01 s") as caught:
            await db.aopen()
        first, second = caught.value.holders
        assert first.startswith("task 'hoarder' in thread")
        assert "in opened_by_a_task_that_forgets" in first
        assert "test_pool.py" in first and "in aopen" not in first
        assert "in managed" in second
        held_by = [c.held_by for c in db.statistics().connections]
        assert "hoarder" in held_by
        one.close()
        two.close()

    run(main())
    assert_quiet(db)


def test_not_waiting_at_all(databases: Databases) -> None:
    """With pool_wait=0 a task gets what is free, or an error at once."""
    db = databases.open(None, pool_size=1, pool_wait=0)

    async def main() -> None:
        connection = await db.aopen()
        with pytest.raises(objdb.PoolTimeoutError):
            await db.aopen()
        temporary = await db.aopen(temporary=True, isolation="serializable")
        assert temporary.isolation == "serializable"
        temporary.close()
        connection.close()
        with pytest.raises(objdb.UsageError):
            await db.aopen(isolation="none")

    run(main())
    assert_quiet(db)


def test_a_wait_that_would_block_its_own_holders(databases: Databases) -> None:
    """`open` in a task, while tasks of the same event loop have all connections, fails at once:
    they could not give any back while it waits. If a thread has one, it waits."""
    db = databases.open(None, pool_size=2)

    async def main() -> None:
        one, two = await db.aopen(), await db.aopen()
        for fails in (db.open, lambda: db.run(lambda c: None), db.transaction().__enter__):
            with pytest.raises(objdb.PoolTimeoutError, match=r"await db\.aopen"):
                fails()
        two.close()
        gate = Gate()

        def hold() -> None:
            connection = managed(db)
            gate.pass_through()
            connection.close()

        worker = Worker(hold)
        gate.wait_until_reached()
        opener = Worker(gate.open)
        managed(db).close()
        worker.finish()
        opener.finish()
        one.close()

    run(main())
    assert_quiet(db)


def test_connections_of_tasks_that_ended(databases: Databases) -> None:
    """A connection that a task leaves open when it ends is taken from it by who needs one, with
    a warning that says which task it was."""
    db = databases.open(None, pool_size=1, record_stacks=True)

    async def forgetful() -> None:
        connection = await db.aopen()
        connection.root()["never"] = "committed"

    async def main() -> None:
        await asyncio.create_task(forgetful(), name="forgetful")
        with pytest.warns(objdb.LeakedConnectionWarning, match=r"(?s)task.*'forgetful'"):
            connection = await db.aopen()
        assert "never" not in connection.root()
        connection.close()

        await asyncio.create_task(forgetful())
        with pytest.warns(objdb.LeakedConnectionWarning):
            db.open().close()  # does not block the loop either

    run(main())
    run(forgetful())
    gc.collect()
    with pytest.warns(objdb.LeakedConnectionWarning):
        db.open().close()
    assert_quiet(db)


def test_connections_that_others_can_use_are_left(databases: Databases) -> None:
    """A connection with a transaction manager of the program's own outlives its task."""
    db = databases.open(None, pool_size=1, pool_wait=0)

    async def main() -> None:
        connection = await asyncio.create_task(amanaged(db))
        with pytest.raises(objdb.PoolTimeoutError):
            await db.aopen()
        connection.close()

    run(main())


def test_closing_ends_waiting(databases: Databases) -> None:
    """Tasks that wait for a connection are told when the database closes, by whichever thread."""
    async def main(by_thread: bool) -> None:
        db = databases.open(None, pool_size=1)
        await db.aopen()
        waiting = [asyncio.create_task(db.aopen()) for _ in range(3)]
        await turns()
        if by_thread:
            await asyncio.to_thread(db.close)
        else:
            db.close()
        for task in waiting:
            with pytest.raises(objdb.StorageClosedError):
                await task
        with pytest.raises(objdb.StorageClosedError):
            await db.aopen()

    run(main(True))
    run(main(False))


def test_a_failed_open_takes_no_place(databases: Databases) -> None:
    """When a connection cannot join the transactions it was to join, its place is free again."""
    class Refusing(transaction.TransactionManager):
        def registerSynch(self, synch: Any) -> None:
            raise RuntimeError("not today")

    db = databases.open(None, pool_size=1, pool_wait=0)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="today"):
            await db.aopen(transaction_manager=Refusing())
        (await db.aopen()).close()

    run(main())


def test_two_loops_share_a_pool(databases: Databases) -> None:
    """Event loops in two threads hand one connection to and fro."""
    db = databases.open(None, pool_size=1)
    with db.transaction() as connection:
        connection.root()["n"] = 0

    async def main() -> None:
        async def add(connection: objdb.Connection) -> None:
            await asyncio.sleep(0)
            connection.root()["n"] += 1

        await asyncio.gather(*(db.arun(add) for _ in range(50)))

    workers = [Worker(lambda: asyncio.run(main())) for _ in range(2)]
    for worker in workers:
        worker.finish()
    with db.transaction() as connection:
        assert connection.root()["n"] == 100
    assert_quiet(db)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_was_dropped(databases: Databases) -> None:
    """Tasks of an event loop that was closed in the middle stand in nobody's way."""
    db = databases.open(None, pool_size=1, pool_wait=0)
    db._pool.wait = 60
    loop = asyncio.new_event_loop()
    holder = loop.create_task(db.aopen())
    connection = loop.run_until_complete(holder)
    waiting = loop.create_task(amanaged(db))
    loop.run_until_complete(turns())
    loop.close()
    connection.close()
    assert db.run(lambda c: list(c.root())) == []
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    assert_quiet(db)


def test_caches_of_other_tasks_are_left_alone(databases: Databases) -> None:
    """cacheMinimize works at once on what the task itself has open, and later on what others
    have: they may be in the middle of a commit."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["n"] = 1

    async def opened() -> Any:
        return await amanaged(db)

    async def main() -> None:
        mine = await db.aopen()
        theirs = await asyncio.create_task(opened())
        assert mine.root()["n"] == theirs.root()["n"] == 1
        db.cacheMinimize()
        assert not mine.cache.loaded()
        assert theirs.cache.loaded()
        theirs.sync()
        assert not theirs.cache.loaded()
        mine.close()
        theirs.close()

    run(main())


def test_in_a_thread_that_a_task_calls(databases: Databases) -> None:
    """A thread that a task waits for opens connections as any thread does."""
    db = databases.open(None, pool_size=1)

    async def main() -> None:
        async with db.transaction():
            waiting = asyncio.create_task(asyncio.to_thread(db.run, lambda c: list(c.root())))
            await turns()
        assert await waiting == []

    run(main())
    assert in_thread(lambda: db.run(lambda c: list(c.root()))) == []
    task_manager.abort()
    assert_quiet(db)
