"""Connections to the past: what they show, what they refuse, and how long they are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import transaction

import objdb
from objdb.ids import MAX_TID, datetime_from_tid, next_tid, oid_from_int, time_from_tid
from tests.conftest import Databases
from tests.models import Person


class Past:
    """A database whose `ann.age` went through 0, 1, 2, 3, and the tids of these commits."""

    def __init__(self, db: objdb.DB) -> None:
        self.db = db
        self.tids: list[bytes] = []
        with db.transaction() as connection:
            connection.root()["ann"] = Person("ann", age=0)
        self.tids.append(db.storage.lastTransaction())
        for age in (1, 2, 3):
            with db.transaction() as connection:
                connection.root()["ann"].age = age
                connection.root()[f"added {age}"] = Person()
            self.tids.append(db.storage.lastTransaction())

    def age(self, **moment: Any) -> int:
        with self.db.open(**moment) as connection:
            return int(connection.root()["ann"].age)


@pytest.fixture
def past(db: objdb.DB) -> Past:
    return Past(db)


MOMENTS: dict[str, Callable[[bytes], Any]] = {
    "tid": lambda tid: tid, "seconds": time_from_tid, "datetime": datetime_from_tid,
    "another zone": lambda tid: datetime_from_tid(tid).astimezone(timezone(timedelta(hours=5))),
    "ISO": lambda tid: datetime_from_tid(tid).isoformat(),
    "ISO with Z": lambda tid: datetime_from_tid(tid).isoformat().replace("+00:00", "Z"),
}


@pytest.mark.parametrize("form", MOMENTS)
def test_moments(past: Past, form: str) -> None:
    """`at` is inclusive, `before` exclusive, in every form that a moment can be given in."""
    for age, tid in enumerate(past.tids):
        moment = MOMENTS[form](tid)
        assert past.age(at=moment) == age
        if age:
            assert past.age(before=moment) == age - 1
        assert past.age(before=next_tid(tid)) == age


def test_between_two_transactions(past: Past) -> None:
    """A moment between two transactions shows the earlier one."""
    assert past.age(at=next_tid(past.tids[1])) == 1
    assert past.age(before=next_tid(past.tids[1])) == 1


def test_the_past_stays_as_it_is(past: Past) -> None:
    """Neither new transactions, nor sync, nor dropping the cache move the view."""
    manager = transaction.TransactionManager()
    with past.db.open(transaction_manager=manager, at=past.tids[1]) as connection:
        root = connection.root()
        for move in (manager.begin, connection.sync, past.db.cacheMinimize, manager.commit):
            with past.db.transaction() as other:
                other.root()["ann"].age += 10
            connection.cacheMinimize()
            move()
            assert root["ann"].age == 1
            assert "added 2" not in root
    assert past.age(at=time.time()) == 43


def test_the_present_as_a_moment(past: Past) -> None:
    """A connection to this very moment does not see what is committed after it was opened."""
    for moment in (time.time(), past.tids[-1]):
        with past.db.open(at=moment, transaction_manager=transaction.TransactionManager()) as now:
            with past.db.transaction() as other:
                other.root()["ann"].age = 99
            assert now.root()["ann"].age in (3, 99)
            seen = now.root()["ann"].age
            with past.db.transaction() as other:
                other.root()["ann"].age = 100
            now.cacheMinimize()
            assert now.root()["ann"].age == seen


def test_nothing_can_be_changed(past: Past) -> None:
    """Setting an attribute, adding, and changing a tree or list are refused, and undone in
    memory."""
    with past.db.open(at=past.tids[1]) as connection:
        root = connection.root()
        assert connection.isReadOnly()
        for change in (
            lambda: setattr(root["ann"], "age", 5), lambda: connection.add(Person()),
            lambda: root.update(new=1), lambda: root.pop("ann"),
        ):
            with pytest.raises(objdb.ReadOnlyHistoryError, match="the past cannot be changed"):
                change()
        assert root["ann"].age == 1 and "new" not in root and "ann" in root
        transaction.commit()
    with pytest.raises(objdb.ReadOnlyError):  # its base class
        past.db.open(before=past.tids[1]).root()["ann"].age = 3


def test_before_there_was_anything(past: Past) -> None:
    """Before the first transaction there is no root object."""
    with past.db.open(before=oid_from_int(1)) as connection, pytest.raises(
        objdb.POSKeyError, match="there was nothing in it yet"
    ):
        connection.root()
    with past.db.open(before=0) as connection, pytest.raises(objdb.POSKeyError):
        connection.root()


@pytest.mark.parametrize("moment", [
    {"at": time.time() + 1e6}, {"before": time.time() + 1e6}, {"at": MAX_TID},
    {"at": datetime.now()}, {"at": datetime.now().isoformat()}, {"before": "yesterday"},
    {"at": b"short"}, {"at": b"", "before": b""}, {"at": 1.0, "before": 1.0}, {"at": True},
    {"at": object()}, {"at": -1e18}, {"at": float("nan")}, {"before": [1]}, {"at": -1e11},
])  # fmt: skip
def test_moments_that_make_no_sense(past: Past, moment: dict[str, Any]) -> None:
    """The future, times without a zone, and what is no moment are refused by name."""
    with pytest.raises(objdb.UsageError) as caught:
        past.db.open(**moment)
    assert str(caught.value)
    assert past.age() == 3


def test_they_are_not_counted(databases: Databases) -> None:
    """The pool's size is for the present; connections to the past are not waited for."""
    past = Past(databases.open(None, pool_size=1, pool_wait=0))
    opened = [past.db.open(at=past.tids[i % 4]) for i in range(10)]
    with past.db.open() as connection:
        assert connection.root()["ann"].age == 3
    assert past.db.statistics().connections_out == 0
    assert len(past.db.statistics().connections) == 11
    for connection in opened:
        connection.close()


def test_they_are_kept_for_a_while(databases: Databases) -> None:
    """The next one for the same moment gets the connection with its cache, until it is too old,
    or there are too many."""
    past = Past(databases.open(None, historical_pool_size=2, historical_timeout=100))
    clock = [0.0]
    past.db._past.clock = lambda: clock[0]

    def opened(i: int) -> objdb.Connection:
        with past.db.open(at=past.tids[i]) as connection:
            assert connection.root()["ann"].age == i
        return connection

    first = opened(0)
    assert opened(0) is first
    clock[0] = 50
    second = opened(1)
    assert opened(0) is first and opened(1) is second
    third = opened(2)  # one too many: the one unused for longest goes
    assert opened(1) is second and opened(2) is third
    again = opened(0)
    assert again is not first
    clock[0] = 149
    assert opened(0) is again
    clock[0] = 250
    assert opened(0) is not again
    past.db.cacheMinimize()
    assert len(past.db._past.connections()) == 0


@pytest.mark.parametrize("option", [
    {"historical_pool_size": -1}, {"historical_pool_size": "3"}, {"historical_timeout": None},
    {"historical_timeout": -1}, {"historical_cache_size": -1},
])  # fmt: skip
def test_numbers_that_make_no_sense(option: dict[str, Any]) -> None:
    """They are refused, with their name."""
    (name,) = option
    with pytest.raises(objdb.UsageError, match=name):
        objdb.DB(None, **option)


def test_two_at_the_same_moment(past: Past) -> None:
    """Two connections that are open at once are two, also at the same moment."""
    with past.db.open(at=past.tids[0]) as one, past.db.open(at=past.tids[0]) as other:
        assert one is not other
        assert one.root()["ann"] is not other.root()["ann"]


def test_for_a_transaction(past: Past) -> None:
    """open(transaction=) gives one connection for each moment, and closes it with the
    transaction."""
    txn = transaction.TransactionManager().begin()
    then = past.db.open(transaction=txn, at=past.tids[1])
    now = past.db.open(transaction=txn)
    assert then is past.db.open(transaction=txn, at=past.tids[1]) and then is not now
    now.root()["ann"].age = then.root()["ann"].age + 10
    txn.commit()
    with pytest.raises(objdb.ConnectionStateError):
        then.root()
    assert past.age() == 11


def test_other_databases_of_the_group(databases: Databases) -> None:
    """What is reached in another database is of the same moment."""
    group: dict[str, Any] = {}
    first = databases.open("first.fs", databases=group, database_name="first")
    second = databases.open("second.fs", databases=group, database_name="second")
    for age in (1, 2):
        with first.transaction() as connection:
            other = connection.get_connection("second")
            other.root()["ben"] = other.root().get("ben") or Person("ben")
            other.root()["ben"].age = age
            connection.root()["age"] = age
    moment = max(db.storage.lastTransaction() for db in (first, second))
    with first.transaction() as connection:
        connection.get_connection("second").root()["ben"].age = 3
    with first.open(at=moment) as connection:
        assert connection.get_connection("second").root()["ben"].age == 2


@pytest.mark.parametrize("isolation", ["serializable", "read-current"])
def test_in_other_modes(databases: Databases, isolation: str) -> None:
    """The past is a snapshot, whatever the mode of the database."""
    past = Past(databases.open(None, isolation=isolation))
    with past.db.open(at=past.tids[1]) as connection:
        assert connection.isolation == "snapshot"
        assert connection.root()["ann"].age == 1


def test_in_a_task(past: Past) -> None:
    """aopen takes a moment as well."""

    async def read() -> int:
        connection = await past.db.aopen(at=past.tids[1])
        try:
            return int(connection.root()["ann"].age)
        finally:
            connection.close()

    assert asyncio.run(read()) == 1


def test_closing_the_database(databases: Databases) -> None:
    """A connection to the past ends with its database."""
    past = Past(databases.open("data.fs"))
    connection = past.db.open(at=past.tids[1])
    ann = connection.root()["ann"]
    past.db.close()
    with pytest.raises(objdb.ConnectionStateError):
        _ = ann.age
    connection.close()


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    yield
    transaction.abort()
