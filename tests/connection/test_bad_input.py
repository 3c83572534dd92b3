"""What a program can do wrong with transactions: each a named error, and nothing is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import transaction
from persistent import Persistent
from transaction.interfaces import InvalidSavepointRollbackError, TransactionFailedError

import objdb
from tests.database.staging import Worker
from tests.models import Person


class Resolving(Persistent):
    """Merges as a test says."""

    merge: ClassVar[Callable[..., Any]]

    def __init__(self) -> None:
        self.value = 0

    def _p_resolveConflict(self, old: Any, committed: Any, new: Any) -> Any:
        return type(self).merge(self, old, committed, new)


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    with db.transaction() as connection:
        root = connection.root()
        root["ann"], root["resolving"] = Person("ann", age=1), Resolving()
    return db


@pytest.fixture
def connection(people: objdb.DB) -> Iterator[objdb.Connection]:
    with people.open() as connection:
        yield connection
        transaction.abort()


def collide(people: objdb.DB, connection: objdb.Connection, merge: Callable[..., Any]) -> None:
    """Change an object that another transaction changes too, for *merge* to resolve at the
    commit."""
    Resolving.merge = staticmethod(merge)
    connection.root()["resolving"].value = 1
    with people.transaction() as other:
        other.root()["resolving"].value = 2


def commit_unresolved() -> None:
    """Commit, in vain, and raise what the resolver ended in."""
    with pytest.raises(objdb.UnresolvableConflictError) as caught:
        transaction.commit()
    transaction.abort()
    assert caught.value.__cause__ is not None
    raise caught.value.__cause__


RESOLVERS: dict[str, Callable[..., Any]] = {
    "raises": lambda self, old, committed, new: 1 / 0,
    "returns None": lambda self, old, committed, new: None,
    "not picklable": lambda self, old, committed, new: {**new, "lock": threading.Lock()},
    "a new persistent object": lambda self, old, committed, new: {**new, "new": Person("new")},
    "itself": lambda self, old, committed, new: {**new, "self": self},
    "asks a reference": lambda self, old, committed, new: {**new, "n": new["other"].name},
    "needs its connection": lambda self, old, committed, new: self._p_jar.root(),
    "interrupted in vain": lambda self, old, committed, new: next(iter(())),
}


@pytest.mark.parametrize("name", RESOLVERS)
def test_resolvers(people: objdb.DB, connection: objdb.Connection, name: str) -> None:
    """A resolver that goes wrong makes it a conflict that cannot be resolved; the committed state
    stays."""
    with people.transaction() as other:
        other.root()["resolving"].other = other.root()["ann"]
    connection.sync()
    collide(people, connection, RESOLVERS[name])
    last = people.storage.lastTransaction()
    with pytest.raises(objdb.UnresolvableConflictError) as caught:
        transaction.commit()
    assert caught.value.class_name == f"{__name__}.Resolving"
    assert caught.value.__cause__ is not None
    transaction.abort()
    assert people.storage.lastTransaction() == last
    resolving = connection.root()["resolving"]
    assert resolving.value == 2
    resolving.value = 3
    transaction.commit()


def test_a_resolver_that_changes_another_object(
    people: objdb.DB, connection: objdb.Connection
) -> None:
    """An object that a resolver gets hold of, somehow, cannot be changed by it: the transaction
    is being committed."""
    ann = connection.root()["ann"]

    def meddle(self: Any, old: Any, committed: Any, new: Any) -> Any:
        ann.age = 99
        return new

    collide(people, connection, meddle)
    with pytest.raises(objdb.ConnectionStateError, match="gets states and returns one"):
        commit_unresolved()
    assert ann.age == 1


@pytest.mark.timeout(30)
def test_a_resolver_that_commits(people: objdb.DB, connection: objdb.Connection) -> None:
    """A transaction inside a resolver would wait for the one around it; it is refused."""

    def meddle(self: Any, old: Any, committed: Any, new: Any) -> Any:
        with people.transaction() as inner:
            inner.root()["ann"].age = 99
        return new

    collide(people, connection, meddle)
    with pytest.raises(objdb.StorageTransactionError, match="_p_resolveConflict"):
        commit_unresolved()
    with people.transaction() as other:  # and the storage goes on
        assert other.root()["ann"].age == 1
        other.root()["ann"].age = 2


def test_a_resolver_may_read(people: objdb.DB, connection: objdb.Connection) -> None:
    """Looking into the database from a resolver is unusual, and does no harm."""

    def look(self: Any, old: Any, committed: Any, new: Any) -> Any:
        with people.transaction() as inner:
            return {**new, "value": inner.root()["ann"].age + 10}

    collide(people, connection, look)
    transaction.commit()
    assert connection.root()["resolving"].value == 11


def test_changes_by_another_participant(people: objdb.DB, connection: objdb.Connection) -> None:
    """What a data manager changes in its commit() is stored with the rest; in its tpc_vote() it is
    too late, and an error."""
    ann = connection.root()["ann"]

    class Meddles:
        def __init__(self, phase: str) -> None:
            setattr(self, phase, self.meddle)

        def sortKey(self) -> str:
            return "~"

        def meddle(self, txn: Any) -> None:
            ann.age += 10

        def commit(self, txn: Any) -> None:
            return

        tpc_begin = tpc_vote = tpc_finish = tpc_abort = abort = commit

    connection.root()["new"] = 1
    transaction.get().join(Meddles("commit"))
    transaction.commit()
    connection.cacheMinimize()
    assert (ann.age, connection.root()["new"]) == (11, 1)
    connection.root()["new"] = 2
    transaction.get().join(Meddles("tpc_vote"))
    with pytest.raises(objdb.ConnectionStateError, match="cannot be changed during a vote"):
        transaction.commit()
    transaction.abort()
    assert (ann.age, connection.root()["new"]) == (11, 1)


def test_a_subtransaction_after_a_failure(people: objdb.DB, connection: objdb.Connection) -> None:
    """After a commit that failed, commit(1) is refused until the abort."""
    connection.root()["ann"].lock = threading.Lock()
    for subtransaction in (False, True, True):
        with pytest.raises((objdb.UnpicklableError, TransactionFailedError)):
            objdb.get_transaction().commit(subtransaction)
    objdb.get_transaction().abort()
    connection.root()["ann"].age = 2
    objdb.get_transaction().commit(1)
    objdb.get_transaction().commit()
    connection.cacheMinimize()
    assert connection.root()["ann"].age == 2


def test_a_subtransaction_that_fails(people: objdb.DB, connection: objdb.Connection) -> None:
    """A commit(1) that cannot put something away fails the transaction."""
    connection.root()["ann"].age = 2
    objdb.get_transaction().commit(1)
    connection.root()["ann"].lock = threading.Lock()
    with pytest.raises(objdb.UnpicklableError):
        objdb.get_transaction().commit(1)
    with pytest.raises(TransactionFailedError):
        objdb.get_transaction().commit()
    transaction.abort()
    assert connection.root()["ann"].age == 1


def test_used_up_savepoints(people: objdb.DB, connection: objdb.Connection) -> None:
    """A savepoint cannot be rolled back to after its transaction, nor after an older one was."""
    ann = connection.root()["ann"]
    older = transaction.savepoint()
    ann.age = 2
    newer = transaction.savepoint()
    older.rollback()
    with pytest.raises(InvalidSavepointRollbackError):
        newer.rollback()
    transaction.abort()  # which that error asks for
    for end in (transaction.commit, transaction.abort):
        ann.age = 3
        savepoint = transaction.savepoint()
        end()
        with pytest.raises(InvalidSavepointRollbackError):
            savepoint.rollback()
        transaction.abort()
    assert ann.age == 3


def test_objects_of_a_closed_connection(people: objdb.DB) -> None:
    """They can be neither loaded nor changed."""
    connection = people.open()
    ann = connection.root()["ann"]
    connection.cacheMinimize()
    connection.close()
    for use in (lambda: ann.age, lambda: setattr(ann, "age", 2), connection.root, connection.sync):
        with pytest.raises(objdb.ConnectionStateError):
            use()
    with people.open() as again:
        assert again.root()["ann"].age == 1


def test_two_threads_on_one_connection(people: objdb.DB, connection: objdb.Connection) -> None:
    """The second thread is refused to change anything, and the first goes on."""
    ann = connection.root()["ann"]
    assert ann.age == 1

    def meddle() -> None:
        ann.age = 2

    with pytest.raises(objdb.ConcurrentUseError, match="which another thread is using"):
        Worker(meddle, "meddles").finish()
    assert ann.age == 1
    ann.age = 3
    transaction.commit()
