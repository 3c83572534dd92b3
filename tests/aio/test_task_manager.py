"""Transactions that belong to tasks."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import transaction
from transaction.interfaces import ITransactionManager
from zope.interface.verify import verifyObject

import objdb
from objdb import task_manager
from tests.aio.staging import Log, add_one, assert_quiet, run, two_people, values
from tests.conftest import Databases
from tests.database.staging import in_thread


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    two_people(db)
    return db


def test_it_is_a_transaction_manager() -> None:
    """It has everything a transaction manager has, and acts as one."""
    verifyObject(ITransactionManager, task_manager)
    assert task_manager.begin() is task_manager.get()
    assert not task_manager.isDoomed()
    log = Log()
    task_manager.get().join(log)
    task_manager.commit()
    assert log.calls[-1] == "tpc_finish"
    with pytest.raises(RuntimeError, match="on purpose"), task_manager as txn:
        txn.join(log)
        raise RuntimeError("on purpose")
    assert log.calls[-1] == "abort"
    assert not task_manager.explicit


def test_each_task_has_its_own() -> None:
    """The thread, a task, its child, and a thread that it calls have a manager each, which stays
    the same for as long as they run."""
    async def own() -> Any:
        first = task_manager.manager
        await asyncio.sleep(0)
        assert task_manager.manager is first
        return first

    async def main() -> list[Any]:
        mine = await own()
        children = await asyncio.gather(own(), own(), asyncio.create_task(own()))
        called = await asyncio.to_thread(lambda: task_manager.manager)
        assert await own() is mine
        return [mine, *children, called]

    managers = [task_manager.manager, *run(main()), in_thread(lambda: task_manager.manager)]
    assert len(set(map(id, managers))) == 7
    assert task_manager.manager is managers[0]


def test_explicit_is_set_for_one_task() -> None:
    """A task that wants its transactions to be begun explicitly decides so for itself."""
    async def main() -> None:
        task_manager.explicit = True
        assert task_manager.manager.explicit

    run(main())
    assert not task_manager.explicit


def test_aopen_and_acommit(people: objdb.DB) -> None:
    """A connection opened by a task takes part in that task's transactions, one after the
    other."""
    async def main() -> None:
        connection = await people.aopen()
        add_one(connection)
        await task_manager.acommit()
        assert values(people) == (1, 1)
        add_one(connection)
        task_manager.abort()
        assert connection.root()["p"].value == 1
        people.run(add_one)
        await task_manager.acommit()  # nothing to commit; a new view
        assert connection.root()["p"].value == 2
        with pytest.raises(objdb.ConflictError):
            add_one(connection)
            people.run(add_one)
            await connection.transaction_manager.acommit()
        task_manager.abort()
        connection.close()
        assert_quiet(people)

    run(main())
    assert values(people) == (3, 3)


def test_a_block_of_the_manager(people: objdb.DB) -> None:
    """`async with task_manager` commits at the end, or aborts."""
    async def main() -> None:
        connection = await people.aopen()
        async with task_manager as txn:
            txn.note("by hand")
            add_one(connection)
        with pytest.raises(KeyError):
            async with task_manager:
                add_one(connection)
                raise KeyError
        with pytest.raises(objdb.ConflictError):
            async with task_manager:
                add_one(connection)
                people.run(add_one)
        assert connection.root()["p"].value == 2
        connection.close()

    run(main())
    assert values(people) == (2, 2)


def test_open_takes_it_too(people: objdb.DB) -> None:
    """`open(transaction_manager=task_manager)` binds the connection to the task's transactions;
    without a task, to the thread's."""
    async def main() -> None:
        connection = people.open(transaction_manager=task_manager)
        assert connection.transaction_manager is task_manager.manager
        add_one(connection)
        transaction.commit()  # that of the thread is another
        assert values(people) == (0, 0)
        await task_manager.acommit()
        connection.close()

    run(main())
    connection = people.open(task_manager)
    add_one(connection)
    task_manager.commit()
    connection.close()
    assert values(people) == (2, 2)


def test_the_past(people: objdb.DB) -> None:
    """`aopen` reads what was there at a moment of the past, as `open` does."""
    before = people.storage.lastTransaction()
    people.run(add_one)

    async def main() -> None:
        then, now = await people.aopen(at=before), await people.aopen()
        assert await then.prefetch(then.root(), depth=1) == 3
        assert (then.root()["p"].value, now.root()["p"].value) == (0, 1)
        then.close()
        now.close()

    run(main())
    assert_quiet(people)


def test_tasks_do_not_mix(people: objdb.DB) -> None:
    """What one task changes is not committed or aborted by another, its child included."""
    async def child() -> None:
        connection = await people.aopen()
        connection.root()["q"].value += 1
        await task_manager.acommit()
        connection.close()

    async def main() -> None:
        connection = await people.aopen()
        connection.root()["p"].value += 1
        await asyncio.gather(child(), asyncio.create_task(child()), return_exceptions=True)
        assert values(people)[0] == 0
        task_manager.abort()
        connection.close()

    run(main())
    assert values(people) in ((0, 1), (0, 2))


def test_the_task_that_asks_is_the_one(people: objdb.DB) -> None:
    """Who calls `aopen` or `acommit` means its own transactions, though another task awaits the
    result: `asyncio.wait_for` makes one, before Python 3.12."""
    async def main() -> None:
        connection = await asyncio.create_task(people.aopen())
        assert connection.transaction_manager is task_manager.manager
        add_one(connection)
        await asyncio.create_task(task_manager.acommit())
        connection.close()

    run(main())
    assert values(people) == (1, 1)


def test_an_empty_loop_keeps_nothing(databases: Databases) -> None:
    """The transactions of a task go with the task."""
    db = databases.open(None)

    async def main() -> Any:
        (await db.aopen()).close()
        import weakref
        return weakref.ref(task_manager.manager)

    found = run(main())
    gc.collect()
    assert found() is None


def test_other_participants_alone() -> None:
    """A transaction without any connection is committed in a thread of the event loop."""
    async def main() -> None:
        log = Log()
        task_manager.get().join(log)
        await task_manager.acommit()
        assert log.calls[-1] == "tpc_finish"
        log.fail = "tpc_vote"
        task_manager.get().join(log)
        with pytest.raises(RuntimeError, match="on purpose"):
            await task_manager.acommit()
        task_manager.abort()

    run(main())
