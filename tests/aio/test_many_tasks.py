"""A thousand tasks at once: nothing is lost, doubled, or half done."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from BTrees.IOBTree import IOBTree

import objdb
from tests.aio.staging import assert_quiet, run
from tests.conftest import Databases
from tests.database.staging import Worker
from tests.models import Counter, Person

TASKS = 1000
ACCOUNTS = 200
EACH = 100


@pytest.fixture(params=["memory", "file"])
def where(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else "data.fs"


@pytest.fixture(params=["snapshot", "serializable"])
def bank(request: pytest.FixtureRequest, databases: Databases, where: str | None) -> objdb.DB:
    """A database with accounts, and a counter of transfers that merges (not used where
    transactions are serializable)."""
    db = databases.open(where, isolation=request.param, pool_size=8)
    with db.transaction() as connection:
        root = connection.root()
        root["accounts"] = IOBTree({n: Person(str(n), value=EACH) for n in range(ACCOUNTS)})
        root["transfers"] = Counter()
    return db


def transfer(connection: objdb.Connection, chance: random.Random) -> None:
    accounts = connection.root()["accounts"]
    one, other = (accounts[number] for number in chance.sample(range(ACCOUNTS), 2))
    amount = chance.randrange(1, 10)
    one.value -= amount
    other.value += amount
    if connection.isolation == "snapshot":  # else all transactions would conflict here
        connection.root()["transfers"].add(1)


def total(connection: objdb.Connection) -> int:
    return sum(account.value for account in connection.root()["accounts"].values())


def test_transfers(bank: objdb.DB) -> None:
    """Each of a thousand tasks moves money once; every view of all accounts adds up."""
    seed = random.randrange(10**9)

    async def move(number: int) -> None:
        chance = random.Random(f"{seed} {number}")

        async def work(connection: objdb.Connection) -> None:
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            transfer(connection, chance)

        await bank.arun(work, tries=50)

    async def look() -> None:
        for _ in range(10):
            async with bank.transaction() as connection:
                assert total(connection) == ACCOUNTS * EACH
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(look(), *(move(number) for number in range(TASKS)))
        assert_quiet(bank)

    run(main(), 100)
    with bank.transaction() as connection:
        assert total(connection) == ACCOUNTS * EACH, seed
        assert connection.root()["transfers"].value in (0, TASKS)


def test_an_object_each(databases: Databases, where: str | None) -> None:
    """A thousand tasks change an object of their own each, without conflicts."""
    db = databases.open(where)
    with db.transaction() as connection:
        connection.root()["own"] = IOBTree({n: Person(str(n), value=0) for n in range(TASKS)})

    async def add(number: int) -> None:
        for _ in range(2):
            async with db.transaction() as connection:
                connection.root()["own"][number].value += 1

    async def main() -> None:
        await asyncio.gather(*map(add, range(TASKS)))

    run(main(), 100)
    with db.transaction() as connection:
        assert {one.value for one in connection.root()["own"].values()} == {2}
    assert db.statistics().conflicts == 0


def test_one_object_for_all(databases: Databases, where: str | None) -> None:
    """Many tasks count on one object that cannot merge: each count is there, once."""
    db = databases.open(where, pool_size=4)
    with db.transaction() as connection:
        connection.root()["n"] = Person("n", value=0)

    def count(connection: objdb.Connection) -> int:
        connection.root()["n"].value += 1
        return connection.root()["n"].value

    async def main() -> list[int]:
        return await asyncio.gather(*(db.arun(count, tries=1000) for _ in range(200)))

    assert sorted(run(main(), 100)) == list(range(1, 201))


def test_beside_threads_and_other_loops(bank: objdb.DB) -> None:
    """Two event loops and three threads move money in one database."""
    seed = random.randrange(10**9)

    def thread(number: int) -> None:
        chance = random.Random(f"thread {seed} {number}")
        for _ in range(50):
            bank.run(lambda connection: transfer(connection, chance), tries=100)

    def loop(number: int) -> None:
        async def move(task: int) -> None:
            chance = random.Random(f"loop {seed} {number} {task}")

            def work(connection: objdb.Connection) -> None:
                transfer(connection, chance)

            await bank.arun(work, tries=100)

        async def main() -> None:
            await asyncio.gather(*map(move, range(100)))

        asyncio.run(main())

    work: list[Any] = [lambda n=n: thread(n) for n in range(3)]
    work += [lambda n=n: loop(n) for n in range(2)]
    for worker in [Worker(one) for one in work]:
        worker.finish()
    with bank.transaction() as connection:
        assert total(connection) == ACCOUNTS * EACH, seed
        assert connection.root()["transfers"].value in (0, 350)
    assert_quiet(bank)
