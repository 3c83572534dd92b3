"""What a conflict tells: which object, who was first, what differs; and what a database counts."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import transaction

import objdb
from objdb.database import conflicts
from tests.conftest import Databases
from tests.models import Custom, Person


def conflict(db: objdb.DB, name: str = "p", **options: Any) -> objdb.ConflictError:
    """Let two transactions change the same object; return the second one's error."""
    ours, theirs = transaction.TransactionManager(), transaction.TransactionManager()
    with (
        db.open(transaction_manager=ours, **options) as connection,
        db.open(transaction_manager=theirs) as other,
    ):
        mine, same = connection.root()[name], other.root()[name]
        mine.data, mine.only_ours = "ours", 1
        same.data = "theirs"
        del same.gone
        theirs.get().note("who was first")
        theirs.get().setUser("Ann")
        theirs.commit()
        with pytest.raises(objdb.ConflictError) as caught:
            ours.commit()
        ours.abort()
    return caught.value


@pytest.fixture
def filled(db: objdb.DB) -> objdb.DB:
    with db.transaction() as connection:
        root = connection.root()
        root["friend"] = Person("friend")
        root["p"] = Person("p", data="before", gone="soon", friend=root["friend"])
    return db


def test_what_differs(filled: objdb.DB) -> None:
    """The attributes that differ, with the values before, as committed, and of this one."""
    error = conflict(filled)
    assert error.class_name == "tests.models.Person"
    assert error.explain() == {
        "data": ("before", "theirs", "ours"),
        "gone": ("soon", ..., "soon"),
        "only_ours": (..., ..., 1),
    }


def test_who_was_first(filled: objdb.DB) -> None:
    """The transaction that committed: its user, description, tid and time."""
    error = conflict(filled)
    assert error.other is not None and error.serials is not None
    assert error.other["description"] == "who was first"
    assert error.other["user_name"].endswith("Ann")
    assert error.other["tid"] == error.serials[0]
    assert error.other["time"] > 0


def test_an_object_that_was_read(filled: objdb.DB) -> None:
    """For an object that was only read there is nothing of this transaction."""
    manager = transaction.TransactionManager()
    with filled.open(transaction_manager=manager, isolation="serializable") as connection:
        assert connection.root()["p"].data == "before"
        connection.root()["friend"].data = 1
        with filled.transaction() as other:
            other.root()["p"].data = "theirs"
        with pytest.raises(objdb.ReadConflictError) as caught:
            manager.commit()
        manager.abort()
    assert caught.value.record is None
    assert caught.value.explain() == {"data": ("before", "theirs", ...)}


def test_a_state_of_its_own_form(db: objdb.DB) -> None:
    """A state that is no dict is shown whole."""
    with db.transaction() as connection:
        connection.root()["c"] = Custom([1])
    managers = [transaction.TransactionManager() for _ in range(2)]
    connections = [db.open(transaction_manager=manager) for manager in managers]
    for number, connection in enumerate(connections):
        connection.root()["c"].items = [number]
    managers[0].commit()
    with pytest.raises(objdb.ConflictError) as caught:
        managers[1].commit()
    managers[1].abort()
    assert caught.value.explain() == {"": ((1,), (0,), (1,))}
    for connection in connections:
        connection.close()


def test_errors_outlive_the_database(databases: Databases) -> None:
    """A pickled error, and one whose database is closed, still says what it is; what had to be
    looked up is gone."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["p"] = Person("p", data="before", gone="soon")
    error = conflict(db)
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.oid, copied.serials) == (str(error), error.oid, error.serials)
    assert copied.record == error.record
    db.close()
    for one in (error, copied):
        assert one.explain() == {} and one.other is None


def test_they_are_counted(filled: objdb.DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class, and the last ones one by one."""
    assert filled.conflicts.count == 0
    error = conflict(filled)
    assert filled.conflicts.count == filled.statistics().conflicts == 1
    assert filled.conflicts.by_class == {"tests.models.Person": 1}
    (last,) = filled.conflicts.last
    assert (last.kind, last.oid, last.serials) == ("ConflictError", error.oid, error.serials)
    for _ in range(conflicts.MOST_KEPT + 5):
        filled.conflicts.add(error)
    assert filled.conflicts.count == conflicts.MOST_KEPT + 6
    assert len(filled.conflicts.last) == conflicts.MOST_KEPT
