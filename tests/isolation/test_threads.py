"""Serializable transactions of many threads keep a rule that is about several objects."""

from __future__ import annotations

import random

import pytest
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree

import objdb
from tests.conftest import Databases
from tests.database.staging import Worker
from tests.models import Person
from tests.storages import STORAGES

THREADS, ROUNDS = 6, 60


@pytest.mark.parametrize("kind", STORAGES)
def test_nobody_is_overdrawn(databases: Databases, kind: str) -> None:
    """Each family has two accounts, which together must not fall below zero; every thread takes
    from one of them after looking at both."""
    storage = STORAGES[kind](databases.directory)
    db = databases.open(storage, isolation="serializable", cache_size=20)
    with db.transaction() as connection:
        accounts = IOBTree({i: Person(str(i), data=5) for i in range(20)})
        connection.root()["accounts"] = accounts
    seed = random.randrange(10**9)

    def spend(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        for _ in range(ROUNDS):
            family, taken = 2 * chance.randrange(10), chance.randrange(2)

            def take(connection: objdb.Connection, family: int = family, t: int = taken) -> None:
                accounts = connection.root()["accounts"]
                together = accounts[family].data + accounts[family + 1].data
                assert together >= 0, f"seed {seed}"
                if chance.random() < 0.1:
                    connection.cacheMinimize()
                if together >= 1:
                    accounts[family + t].data -= 1

            db.run(take, tries=1000)

    workers = [Worker(lambda n=n: spend(n), f"spends {n}") for n in range(THREADS)]
    for worker in workers:
        worker.finish()
    with db.transaction() as connection:
        left = [person.data for person in connection.root()["accounts"].values()]
    assert all(a + b >= 0 for a, b in zip(left[::2], left[1::2], strict=True)), f"seed {seed}"
    assert sum(left) < 100  # something was spent


@pytest.mark.parametrize("kind", STORAGES)
def test_one_seat_each(databases: Databases, kind: str) -> None:
    """Threads that each look for free seats in a range of keys, and take one, never take more
    than there are, though each adds a key of its own."""
    db = databases.open(STORAGES[kind](databases.directory), isolation="serializable")
    with db.transaction() as connection:
        connection.root()["taken"] = OOBTree()

    def book(name: str) -> bool:
        def try_to(connection: objdb.Connection) -> bool:
            taken = connection.root()["taken"]
            if len(list(taken.keys("guest", "guest~"))) >= 10:
                return False
            taken[name] = Person(name)
            return True

        return bool(db.run(try_to, tries=1000))

    workers = [
        Worker(lambda t=t: [book(f"guest {t} {i}") for i in range(5)], f"books {t}")
        for t in range(THREADS)
    ]
    outcomes = [had for worker in workers for had in worker.finish()]
    with db.transaction() as connection:
        assert len(connection.root()["taken"]) == 10
    assert outcomes.count(True) == 10
