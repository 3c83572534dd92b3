"""Threads in one database, and what must hold whatever they do.

    accounts   transfers keep the total, in every view that anybody ever has
    pairs      two objects always changed together are always equal
    counter    every addition is in the sum
"""

from __future__ import annotations

import faulthandler
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import transaction

import objdb
from objdb.errors import ConflictError

ACCOUNTS, START = 12, 100
DEADLOCK_SECONDS = 100


class Race:
    """The threads of one race over *db*, each doing *rounds* rounds, from one *seed*."""

    def __init__(self, db: objdb.DB, rounds: int, seed: int) -> None:
        self.db = db
        self.rounds = rounds
        self.seed = seed
        self.failures: list[str] = []
        self.added = 0
        self._lock = threading.Lock()
        with db.transaction() as connection:
            root = connection.root()
            root["accounts"] = objdb.PersistentList(
                objdb.PersistentMapping(balance=START) for _ in range(ACCOUNTS)
            )
            root["pair"] = objdb.PersistentList(objdb.PersistentMapping(n=0) for _ in range(2))
            root["counter"] = objdb.PersistentMapping(n=0)

    def run(self) -> None:
        """Race, and raise AssertionError for whatever did not hold."""
        work: list[Callable[[random.Random], None]] = [
            self.transfer, self.transfer, self.pair, self.count, self.count, self.read,
            self.shrink,
        ]
        threads = [
            threading.Thread(target=self._repeat, args=(function, number), daemon=True)
            for number, function in enumerate(work)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLOCK_SECONDS)
            if thread.is_alive():
                faulthandler.dump_traceback(file=sys.stderr)
                raise AssertionError(f"deadlock? {thread.name} did not end (seed {self.seed})")
        assert not self.failures, (self.seed, self.failures[:3])
        with self.db.transaction() as connection:
            assert connection.root()["counter"]["n"] == self.added, f"lost update, {self.seed}"
            self.look(connection)

    def _repeat(self, function: Callable[[random.Random], None], number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        try:
            for _ in range(self.rounds):
                function(chance)
        except BaseException as error:
            self.failures.append(repr(error))

    def look(self, connection: objdb.Connection) -> None:
        """Check the invariants in one view."""
        root = connection.root()
        total = sum(account["balance"] for account in root["accounts"])
        assert total == ACCOUNTS * START, f"a view mixes transfers: {total}"
        first, second = (half["n"] for half in root["pair"])
        assert first == second, f"a view mixes two commits: {first}, {second}"

    def transfer(self, chance: random.Random) -> None:
        """Move money between two accounts; give up on a conflict."""
        manager = transaction.TransactionManager()
        with self.db.open(transaction_manager=manager) as connection:
            source, target = chance.sample(list(connection.root()["accounts"]), 2)
            amount = chance.randrange(10)
            source["balance"] -= amount
            if chance.random() < 0.3:
                manager.savepoint()
            target["balance"] += amount
            self.look(connection)
            try:
                if chance.random() < 0.1:
                    manager.abort()
                else:
                    manager.commit()
            except ConflictError:
                manager.abort()
            self.look(connection)

    def pair(self, chance: random.Random) -> None:
        """Change both halves of the pair."""
        def change(connection: objdb.Connection) -> None:
            for half in connection.root()["pair"]:
                half["n"] += 1

        self.db.run(change, tries=50)

    def count(self, chance: random.Random) -> None:
        """Add to the counter, until it is done."""
        amount = chance.randrange(1, 5)

        def change(connection: objdb.Connection) -> None:
            connection.root()["counter"]["n"] += amount

        self.db.run(change, tries=1000)
        with self._lock:
            self.added += amount

    def read(self, chance: random.Random) -> None:
        """Look several times in one view, loading objects anew in between."""
        with self.db.transaction() as connection:
            before = connection.root()["counter"]["n"]
            for _ in range(3):
                self.look(connection)
                connection.cacheMinimize()
            assert connection.root()["counter"]["n"] == before, "the view moved"

    def shrink(self, chance: random.Random) -> None:
        """Open, touch, make the cache smaller, close."""
        with self.db.open(transaction_manager=transaction.TransactionManager()) as connection:
            self.look(connection)
            connection.cacheGC()
            connection.sync()
            self.look(connection)


def race(db: Any, rounds: int, seed: int) -> None:
    """Run one race."""
    Race(db, rounds, seed).run()
