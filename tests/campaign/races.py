"""Threads in one database, more of them than it has connections, and what must hold whatever they
do.

    accounts   transfers keep the total; each account's slip, a new object every time, says what
               the last transfer was
    pair       two objects always changed together are always equal
    book       a tree, and a counter of its entries: changes that conflict in them are resolved
    counter    every addition is in the sum

and, in some races, packs.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import transaction
from BTrees.IOBTree import IOBTree
from BTrees.Length import Length

import objdb
from objdb.errors import ConflictError, PackError, ReadConflictError
from tests.database.staging import Worker, all_stacks

ACCOUNTS, START = 12, 100
TRIES = 1000
MOMENT_DAYS = 0.05 / 86400
# When no thread has finished a round for so long, it is a deadlock.
DEADLOCK_SECONDS = 60.0


class GaveUp(Exception):
    """Raised in the middle of a transaction that is not meant to be committed."""


class Race:
    """The threads of one race over *db*, each doing *rounds* rounds, from one *seed*. With *packs*
    the database is packed all the time, and a view may be too old to go on."""

    def __init__(self, db: objdb.DB, rounds: int, seed: int, *, packs: bool = False) -> None:
        self.db = db
        self.packs = packs
        self.rounds = rounds
        self.seed = seed
        self.added = 0
        self.rounds_done = 0
        self._lock = threading.Lock()  # covers the two above
        with db.transaction() as connection:
            root = connection.root()
            root["accounts"] = objdb.PersistentList(
                objdb.PersistentMapping(balance=START, last=0, slip=objdb.PersistentMapping(last=0))
                for _ in range(ACCOUNTS)
            )
            root["pair"] = objdb.PersistentList(objdb.PersistentMapping(n=0) for _ in range(2))
            root["book"], root["entries"] = IOBTree(), Length()
            root["counter"] = objdb.PersistentMapping(n=0)

    # -- running

    def run(self) -> None:
        """Race, and raise AssertionError for whatever did not hold."""
        work = [
            self.transfer, self.transfer, self.pair, self.count, self.count, self.write,
            self.write, self.read, self.shrink, self.pass_by,
        ]
        work += [self.pack, self.pack] if self.packs else []
        workers = [
            Worker(lambda f=function, n=number: self.repeat(f, n), f"{function.__name__} {number}")
            for number, function in enumerate(work)
        ]
        for worker in workers:
            self.await_end(worker)
        for worker in workers:
            try:
                worker.finish()
            except Exception as error:
                raise AssertionError(f"seed {self.seed}, {worker.name}: {error!r}") from error
        assert self.db.statistics().connections_out == 0
        with self.db.transaction() as connection:
            assert connection.root()["counter"]["n"] == self.added, f"lost update, seed {self.seed}"
            self.look(connection)

    def repeat(self, function: Callable[[random.Random, int], None], number: int) -> None:
        """Do the rounds of thread *number*."""
        chance = random.Random(f"{self.seed} {number}")
        for _ in range(self.rounds):
            try:
                function(chance, number)
            except ReadConflictError:
                if not self.packs:
                    raise
            with self._lock:
                self.rounds_done += 1

    def await_end(self, worker: Worker) -> None:
        """Return when the thread has ended; tell all stacks when nothing goes on any more."""
        while worker.is_alive():
            before = self.rounds_done
            worker.join(DEADLOCK_SECONDS)
            if worker.is_alive() and self.rounds_done == before:
                raise AssertionError(f"deadlock, seed {self.seed}. Stacks:\n{all_stacks()}")

    # -- what must hold

    def look(self, connection: objdb.Connection) -> None:
        """Check the invariants in one view."""
        root = connection.root()
        total = sum(account["balance"] for account in root["accounts"])
        assert total == ACCOUNTS * START, f"a view mixes transfers: {total}"
        for account in root["accounts"]:
            assert account["slip"]["last"] == account["last"], "a view mixes an account's commits"
        first, second = (half["n"] for half in root["pair"])
        assert first == second, f"a view mixes two commits: {first}, {second}"
        entries, counted = len(root["book"]), root["entries"]()
        assert entries == counted, f"{entries} entries, but {counted} were counted"

    # -- what a thread does, again and again

    def transfer(self, chance: random.Random, number: int) -> None:
        """Move money between two accounts, with detours; give up on a conflict."""
        manager = transaction.TransactionManager()
        with self.db.open(transaction_manager=manager) as connection:
            source, target = chance.sample(list(connection.root()["accounts"]), 2)
            amount = chance.randrange(10)
            move(source, -amount)
            move(target, amount)
            self.look(connection)
            if chance.random() < 0.5:
                self.try_and_roll_back(connection, manager, chance)
            try:
                if chance.random() < 0.2:
                    manager.abort()
                else:
                    manager.commit()
            except ConflictError:
                manager.abort()
            self.look(connection)

    def try_and_roll_back(
        self, connection: objdb.Connection, manager: Any, chance: random.Random
    ) -> None:
        """Make a mess, deeper and deeper, and go back to how it was."""
        start = manager.savepoint()
        for account in chance.sample(list(connection.root()["accounts"]), 3):
            move(account, 1000)
            connection.root()["book"][-1] = "never"
            inner = manager.savepoint()
            connection.cacheMinimize()
            account["balance"] = 0
            if chance.random() < 0.5:
                inner.rollback()
                assert account["balance"] > 0
        start.rollback()
        self.look(connection)

    def pair(self, chance: random.Random, number: int) -> None:
        """Change both halves of the pair; now and then, give up halfway."""
        gives_up = chance.random() < 0.2

        def change(connection: objdb.Connection) -> None:
            first, second = connection.root()["pair"]
            first["n"] += 1
            if gives_up:
                raise GaveUp
            second["n"] += 1

        try:
            self.db.run(change, tries=TRIES)
        except GaveUp:
            return
        assert not gives_up, "an error of the function was swallowed"

    def count(self, chance: random.Random, number: int) -> None:
        """Add to the counter, until it is done."""
        amount = chance.randrange(1, 5)

        def change(connection: objdb.Connection) -> None:
            connection.root()["counter"]["n"] += amount

        self.db.run(change, tries=TRIES)
        with self._lock:
            self.added += amount

    def write(self, chance: random.Random, number: int) -> None:
        """Enter something in the book at a place of one's own, or take it out."""
        place = 1000 * number + chance.randrange(100)

        def change(connection: objdb.Connection) -> None:
            root = connection.root()
            if place in root["book"]:
                del root["book"][place]
                root["entries"].change(-1)
            else:
                root["book"][place] = "entry"
                root["entries"].change(1)

        self.db.run(change, tries=TRIES)

    def pack(self, chance: random.Random, number: int) -> None:
        """Forget all that is old, or older than a moment."""
        with suppress(PackError):  # the other thread does
            self.db.pack(days=chance.choice([0, MOMENT_DAYS]))

    def read(self, chance: random.Random, number: int) -> None:
        """Look several times in one view, loading objects anew in between."""
        with self.db.transaction() as connection:
            before = connection.root()["counter"]["n"]
            for _ in range(3):
                self.look(connection)
                connection.cacheMinimize()
            assert connection.root()["counter"]["n"] == before, "the view moved"

    def shrink(self, chance: random.Random, number: int) -> None:
        """Open, look in two views, make the cache smaller in between, close."""
        with self.db.open(transaction_manager=transaction.TransactionManager()) as connection:
            self.look(connection)
            connection.cacheGC()
            connection.sync()
            self.look(connection)

    def pass_by(self, chance: random.Random, number: int) -> None:
        """Open and close, with hardly anything in between; also beside the pool."""
        manager = transaction.TransactionManager()
        is_temporary = chance.random() < 0.2
        connection = self.db.open(transaction_manager=manager, temporary=is_temporary)
        if chance.random() < 0.5:
            chance.choice(connection.root()["accounts"])["balance"] = -1
            manager.abort()
        connection.close()


def move(account: objdb.PersistentMapping, amount: int) -> None:
    """Change the balance of an account, with a new slip."""
    account["balance"] += amount
    account["last"] = amount
    account["slip"] = objdb.PersistentMapping(last=amount)


def race(db: Any, rounds: int, seed: int, *, packs: bool = False) -> None:
    """Run one race."""
    Race(db, rounds, seed, packs=packs).run()
