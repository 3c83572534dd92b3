"""Several connections to one database in one transaction."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import transaction

import objdb
from objdb.testing.faults import FaultyFiles, Operation
from tests.conftest import Databases
from tests.models import Counter, Person


@pytest.fixture
def two(db: objdb.DB) -> Any:
    """Two connections in the thread's transactions, to a database with two people."""
    with db.transaction() as connection:
        connection.root()["ann"], connection.root()["ben"] = Person("Ann"), Person("Ben")
        connection.root()["counter"] = Counter()
    both = [db.open(), db.open()]
    yield both
    transaction.abort()
    for connection in both:
        connection.close()


def test_both_commit(db: objdb.DB, two: list[objdb.Connection]) -> None:
    """What two connections changed is one transaction, and each sees what the other did."""
    one, other = two
    before = len(list(db.storage.iterator()))
    one.root()["ann"].age = 1
    other.root()["ben"].age = 2
    other.root()["counter"].add(1)
    transaction.commit()
    assert len(list(db.storage.iterator())) == before + 1
    for connection in two:
        root = connection.root()
        assert (root["ann"].age, root["ben"].age, root["counter"].value) == (1, 2, 1)
        assert root["ann"]._p_serial == root["ben"]._p_serial == db.storage.lastTransaction()


def test_both_abort(db: objdb.DB, two: list[objdb.Connection]) -> None:
    """A conflict of one takes back both; merges reach the connection they concern."""
    one, other = two
    one.root()["ann"].age = 1
    other.root()["ben"].age = 2
    manager = transaction.TransactionManager()
    third = db.open(transaction_manager=manager)
    third.root()["ann"].age = 3
    third.root()["counter"].add(10)
    manager.commit()
    with pytest.raises(objdb.ConflictError) as caught:
        transaction.commit()
    assert caught.value.oid == one.root()["ann"]._p_oid
    transaction.abort()
    assert not hasattr(other.root()["ben"], "age")
    one.root()["counter"].add(1)
    third.root()["counter"].add(100)
    manager.commit()
    other.root()["ben"].age = 4
    transaction.commit()
    assert {connection.root()["counter"].value for connection in two} == {111}
    third.close()


def test_the_same_object_in_both(two: list[objdb.Connection]) -> None:
    """An object that both changed is an error, and nothing is committed."""
    for age, connection in enumerate(two):
        connection.root()["ann"].age = age
    with pytest.raises(objdb.ConnectionStateError, match="two connections"):
        transaction.commit()
    transaction.abort()
    assert not hasattr(two[0].root()["ann"], "age")
    two[1].root()["ann"].age = 7
    transaction.commit()
    assert two[0].root()["ann"].age == 7


def test_a_failing_disk(databases: Databases) -> None:
    """A sync that fails is told as the storage's error, since all of it was one commit."""
    files = FaultyFiles()
    db = databases.open(objdb.FileStorage("data.fs", files=files))
    both = [db.open(), db.open()]
    both[0].root()["x"] = 1
    both[1].add(Person("alone"))
    files.fail_after = _next_sync(files), errno.EIO
    with pytest.raises(objdb.StorageFailedError):
        transaction.commit()
    transaction.abort()
    files.fail_after = None
    for connection in both:
        connection.close()
    db.close()


def _next_sync(files: FaultyFiles) -> int:
    original = files.do

    def do(operation: Operation) -> None:
        if operation.kind == "sync" and operation.path == "data.fs":
            files.fail_after = len(files.operations), errno.EIO
        original(operation)

    files.do = do  # type: ignore[method-assign]
    return 10**9
