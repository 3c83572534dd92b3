"""Threads racing for few connections, while others shrink caches, look at numbers, and close the
database."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import transaction

import objdb
from objdb.connection import access_epochs
from objdb.errors import ConflictError, ObjdbError
from tests.conftest import Databases
from tests.database.staging import Worker
from tests.models import Person

PEOPLE, TOTAL = 20, 2000


class Bank:
    """People who give each other money; the sum of what they have never changes."""

    def __init__(self, db: objdb.DB, seed: int) -> None:
        self.db = db
        self.seed = seed
        with db.transaction() as connection:
            people = [Person(str(i), money=TOTAL // PEOPLE) for i in range(PEOPLE)]
            connection.root()["people"] = objdb.PersistentList(people)

    def check(self, connection: objdb.Connection) -> None:
        money = [person.money for person in connection.root()["people"]]
        assert sum(money) == TOTAL, f"a view mixes commits (seed {self.seed}): {money}"

    def transfer(self, connection: objdb.Connection, chance: random.Random) -> None:
        giver, taker = chance.sample(list(connection.root()["people"]), 2)
        giver.money -= 1
        taker.money += 1

    # What a thread does, again and again:

    def pooled(self, chance: random.Random) -> None:
        """Open, look, change, commit or abort, close."""
        manager = transaction.TransactionManager()
        with self.db.open(transaction_manager=manager) as connection:
            self.check(connection)
            self.transfer(connection, chance)
            self.check(connection)
            try:
                chance.choice([manager.commit, manager.abort])()
            except ConflictError:
                manager.abort()
            self.check(connection)

    def with_the_thread(self, chance: random.Random) -> None:
        """The same in the thread's own transactions, with a connection for the transaction."""
        connection = self.db.open(transaction=transaction.begin())
        self.check(connection)
        self.transfer(connection, chance)
        try:
            transaction.commit()
        except ConflictError:
            transaction.abort()

    def temporary(self, chance: random.Random) -> None:
        """A connection beside the pool, with nothing in its cache, over several views."""
        manager = transaction.TransactionManager()
        with self.db.open(transaction_manager=manager, temporary=True) as connection:
            for _ in range(3):
                self.check(connection)
                connection.cacheMinimize()
                self.check(connection)
                manager.begin()

    def meddle(self, chance: random.Random) -> None:
        """What an administrator does to all connections at once."""
        chance.choice(
            [
                self.db.cacheMinimize, self.db.cacheSize, self.db.cacheDetail,
                self.db.cacheDetailSize, self.db.cacheExtremeDetail, self.db.statistics,
                self.db.invalidateCache, lambda: self.db.cacheFullSweep(0),
                lambda: self.db.setCacheSize(chance.choice([0, 5, 10_000])),
                lambda: self.db.setCacheSizeBytes(chance.choice([0, 500])),
                lambda: self.db.setPoolSize(chance.choice([2, 3, 4])),
            ]
        )()

    def run(self, rounds: int) -> None:
        """Let ten threads go on for so many rounds each; raise the first error of any."""
        work = [self.pooled] * 5 + [self.with_the_thread] * 2 + [self.temporary] + [self.meddle] * 2

        def repeat(function: Callable[[random.Random], None], number: int) -> None:
            chance = random.Random(f"{self.seed} {number}")
            for _ in range(rounds):
                function(chance)

        workers = [
            Worker(lambda f=function, n=number: repeat(f, n), f"{function.__name__} {number}")
            for number, function in enumerate(work)
        ]
        for worker in workers:
            worker.finish()
        assert self.db.statistics().connections_out == 0
        with self.db.transaction() as connection:
            self.check(connection)


def test_few_connections_for_many_threads(
    db: objdb.DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that open, commit and close through a small pool, while caches are emptied and
    resized under them, see whole commits only; nobody waits for ever."""
    monkeypatch.setattr(access_epochs, "_EPOCH_SECONDS", 0.0)
    db.setPoolSize(3)
    Bank(db, random.randrange(10**9)).run(100)


@pytest.mark.parametrize("where", [None, "data.fs"])
def test_the_database_closes_under_them(databases: Databases, where: Any) -> None:
    """When the database closes in the middle, every thread is told by an error with a name, and
    what was committed is whole."""
    db = databases.open(where, pool_size=3)
    bank = Bank(db, random.randrange(10**9))

    def until_closed(function: Callable[[random.Random], None], number: int) -> int:
        chance = random.Random(f"{bank.seed} {number}")
        count = 0
        while True:
            try:
                function(chance)
                count += 1
            except ObjdbError:
                transaction.abort()
                return count

    def close_after_some() -> None:
        chance = random.Random(bank.seed)
        for _ in range(30):
            bank.pooled(chance)
        db.close()

    work = [bank.pooled] * 3 + [bank.with_the_thread] * 2 + [bank.temporary]
    workers = [
        Worker(lambda f=function, n=number: until_closed(f, n), f"{function.__name__} {number}")
        for number, function in enumerate(work)
    ]
    Worker(close_after_some).finish()
    for worker in workers:
        worker.finish()
    if where:
        with databases.open(where).transaction() as connection:
            bank.check(connection)
