"""Attempts under contention: the last one takes its turn; what can never succeed is told."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
import transaction

import objdb
from objdb.connection import turns
from objdb.connection.transactions import AttemptTransactions
from tests.database.staging import Gate, Worker


@pytest.fixture
def counter(db: objdb.DB) -> objdb.DB:
    """A database with a number that everybody changes."""
    with db.transaction() as connection:
        connection.root()["n"] = objdb.PersistentMapping(value=0)
    return db


def add(connection: Any) -> None:
    connection.root()["n"]["value"] += 1


def value(db: objdb.DB) -> int:
    with db.transaction() as connection:
        return connection.root()["n"]["value"]


@pytest.mark.parametrize("threads", [2, 4, 10, 20, 50])
@pytest.mark.parametrize("tries", [2, 3])
def test_everybody_is_served(counter: objdb.DB, threads: int, tries: int) -> None:
    """Threads that all change one object are all served, with few tries."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(60 // threads + 1):
                counter.run(add, tries=tries)
        except objdb.ConflictError as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert value(counter) == threads * (60 // threads + 1)


def test_tasks_are_served(counter: objdb.DB) -> None:
    """So are tasks, beside threads."""

    async def main() -> None:
        await asyncio.gather(*(counter.arun(add, tries=2) for _ in range(40)))

    thread = threading.Thread(
        target=lambda: [counter.run(add, tries=2) for _ in range(40)]
    )
    thread.start()
    asyncio.run(main())
    thread.join()
    assert value(counter) == 80


def test_others_wait_with_their_commits(counter: objdb.DB) -> None:
    """While a last attempt works, others work on and commit after it."""
    gate, order = Gate(), []

    def last(connection: Any) -> None:
        add(connection)
        if len(order) == 0:
            order.append("first try")
            with counter.transaction() as other:
                add(other)
        else:
            gate.pass_through()
            order.append("last try")

    def other() -> None:
        with counter.transaction() as connection:
            connection.root()["other"] = 1
        order.append("other")

    one = Worker(lambda: counter.run(last, tries=2))
    gate.wait_until_reached()
    two = Worker(other)
    gate.open()
    one.finish()
    two.finish()
    assert order == ["first try", "last try", "other"]


def test_a_last_attempt_that_waits_for_another(
    counter: objdb.DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last attempt that waits for somebody else's commit, which waits for its turn to end, does
    not wait for ever."""
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    tried = []

    def function(connection: Any) -> None:
        connection.root()["mine"] = len(tried)
        tried.append(1)
        thread = threading.Thread(target=lambda: counter.run(add))
        thread.start()
        thread.join()
        if len(tried) == 1:
            raise objdb.ConflictError("again")

    counter.run(function, tries=2)
    assert value(counter) == 2


def test_the_error_says_how_many_tries(counter: objdb.DB) -> None:
    """The error of the last try says how many there were; one try says nothing."""

    def fail(connection: Any) -> None:
        raise objdb.ConflictError("always")

    with pytest.raises(objdb.ConflictError, match=r"always \(tried 4 times\)") as caught:
        counter.run(fail, tries=4)
    assert caught.value.tries == 4
    with pytest.raises(objdb.ConflictError) as caught:
        counter.run(fail, tries=1)
    assert str(caught.value) == "always"


def test_a_transaction_inside_another(counter: objdb.DB) -> None:
    """A conflict with what the same thread has committed inside is told as that."""
    with (
        pytest.raises(objdb.ConflictError, match="a transaction inside this one"),
        counter.transaction() as outer,
    ):
        add(outer)
        counter.run(add)

    def nested(connection: Any) -> None:
        add(connection)
        with counter.transaction() as inner:
            add(inner)

    with pytest.raises(objdb.ConflictError, match=r"inside this one.*tried 3 times"):
        counter.run(nested)
    assert value(counter) == 4


def test_two_inside_each_other_that_get_along(counter: objdb.DB) -> None:
    """What is committed inside is no obstacle where it is something else."""
    with counter.transaction() as outer:
        outer.root()["outer"] = objdb.PersistentMapping()
    with counter.transaction() as outer:
        outer.root()["outer"]["x"] = 1
        counter.run(add)
    assert value(counter) == 1


async def coroutine(connection: Any) -> None:
    add(connection)


def generator(connection: Any) -> Iterator[None]:
    add(connection)
    yield


async def async_generator(connection: Any) -> AsyncIterator[None]:
    add(connection)
    yield


class Callable:
    async def __call__(self, connection: Any) -> None:
        add(connection)


LATER = [
    coroutine, generator, async_generator, partial(coroutine), Callable(),
    lambda connection: coroutine(connection), lambda connection: (n for n in [1]),
]


@pytest.mark.parametrize("function", LATER)
def test_what_does_nothing_yet(counter: objdb.DB, function: Any) -> None:
    """A function that returns something to be run later is refused, and nothing is committed."""
    before = counter.storage.lastTransaction()
    with pytest.raises(objdb.UsageError, match="nothing was done yet"):
        counter.run(function)
    assert counter.storage.lastTransaction() == before


@pytest.mark.parametrize("function", [generator, async_generator])
def test_what_cannot_be_awaited(counter: objdb.DB, function: Any) -> None:
    """So is a generator where a coroutine would do."""
    with pytest.raises(objdb.UsageError, match="nothing was done yet"):
        asyncio.run(counter.arun(function))


def test_a_failure_is_formatted_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt's transaction that failed formats its traceback when it is used again."""
    formatted = []
    format_exception = traceback.format_exception

    def noting(*arguments: Any, **options: Any) -> Any:
        formatted.append(arguments)
        return format_exception(*arguments, **options)

    monkeypatch.setattr(traceback, "format_exception", noting)
    monkeypatch.setattr(traceback, "print_stack", None)
    manager = AttemptTransactions()
    txn = manager.begin()
    with pytest.raises(transaction.interfaces.AlreadyInTransaction):
        manager.begin()

    class Bad:
        def sortKey(self) -> str:
            return ""

        def tpc_begin(self, txn: Any) -> None:
            raise ValueError("no")

        abort = tpc_abort = lambda self, txn: None

    txn.join(Bad())
    with pytest.raises(ValueError, match="no"):
        manager.commit()
    assert formatted == []
    with pytest.raises(transaction.interfaces.TransactionFailedError, match="ValueError: no"):
        manager.commit()
    assert len(formatted) == 1
    manager.abort()
