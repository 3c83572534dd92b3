"""Reading what is current: which loads are refused, and what a refused one means for the commit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree

import objdb
from objdb.connection.isolation import ISOLATIONS
from tests.conftest import Databases
from tests.database.staging import Worker
from tests.models import Counter, Person


class Independent(Person):
    """Says of itself whether its newest state can be shown with older ones."""

    def _p_independent(self) -> bool:
        return bool(self.independent)


@pytest.fixture(params=[None, "data.fs"], ids=["memory", "file"])
def db(request: pytest.FixtureRequest, databases: Databases) -> objdb.DB:
    db = databases.open(request.param, isolation="read-current")
    with db.transaction() as connection:
        root = connection.root()
        root["ann"], root["ben"] = Person("ann", age=1), Person("ben", age=1)
        root["index"], root["counter"] = Independent("index", independent=True, age=1), Counter()
    return db


@pytest.fixture
def manager() -> Iterator[Any]:
    manager = transaction.TransactionManager()
    yield manager
    manager.abort()


@pytest.fixture
def root(db: objdb.DB, manager: Any) -> Iterator[Any]:
    """The root object, loaded, of a connection that has loaded nothing else."""
    with db.open(transaction_manager=manager) as connection:
        yield root_alone(connection)
        manager.abort()


def root_alone(connection: objdb.Connection) -> Any:
    """Return the root object, loaded, of a connection that then has loaded nothing else."""
    connection.cacheMinimize()
    root = connection.root()
    assert "ann" in root
    return root


def change(db: objdb.DB, *names: str, **attributes: Any) -> None:
    """Let another transaction give objects other attributes."""
    with db.transaction(note="meanwhile") as connection:
        for name in names:
            for attribute, value in attributes.items():
                setattr(connection.root()[name], attribute, value)


def test_a_newer_state_is_refused(db: objdb.DB, root: Any) -> None:
    """Loading an object that was changed since the transaction began is a ReadConflictError,
    which tells all about it."""
    change(db, "ann", age=2)
    with pytest.raises(objdb.ReadConflictError, match="after this transaction began") as caught:
        _ = root["ann"].age
    error = caught.value
    committed, before = error.serials
    assert error.oid == root["ann"]._p_oid and error.class_name == "tests.models.Person"
    assert before < committed and error.other["description"] == "meanwhile"
    assert error.explain() == {"age": (1, 2, ...)}
    assert pickle.loads(pickle.dumps(error)).serials == error.serials
    assert db.conflicts.by_class == {"tests.models.Person": 1}
    assert root["ann"]._p_changed is None
    assert root["ben"].age == 1  # what was not changed can be read


def test_what_is_loaded_stays(db: objdb.DB, root: Any, manager: Any) -> None:
    """An object that was loaded before keeps its state until the transaction ends; to change it
    is a conflict."""
    assert root["ann"].age == 1
    change(db, "ann", age=2)
    assert root["ann"].age == 1
    root["ann"].age = 3
    with pytest.raises(objdb.ConflictError):
        manager.commit()
    manager.abort()
    assert root["ann"].age == 2


@pytest.mark.parametrize("wrote", [False, True])
def test_a_swallowed_error_refuses_the_commit(
    db: objdb.DB, root: Any, manager: Any, wrote: bool
) -> None:
    """Nothing can be committed after a read conflict, whether or not anything was changed."""
    if wrote:
        root["ben"].age = 2
    change(db, "ann", age=2)
    with pytest.raises(objdb.ReadConflictError):
        _ = root["ann"].age
    root["ben"].age = 3
    with pytest.raises(objdb.ReadConflictError, match="can only be aborted") as caught:
        manager.commit()
    assert caught.value.oid == root["ann"]._p_oid
    manager.abort()
    assert (root["ann"].age, root["ben"].age) == (2, 1)
    root["ben"].age = 4
    manager.commit()


def test_a_transaction_without_changes_is_refused_as_well(
    db: objdb.DB, root: Any, manager: Any
) -> None:
    """The commit is refused even if all that happened was the read."""
    change(db, "ann", age=2)
    with pytest.raises(objdb.ReadConflictError):
        _ = root["ann"].age
    with pytest.raises(objdb.ReadConflictError):
        manager.commit()


def test_another_database_is_not_committed_either(
    db: objdb.DB, root: Any, manager: Any, databases: Databases
) -> None:
    """What the same transaction did elsewhere is not committed."""
    other = databases.open(None)
    change(db, "ann", age=2)
    with other.open(transaction_manager=manager) as connection:
        connection.root()["copy"] = 1
        with pytest.raises(objdb.ReadConflictError):
            _ = root["ann"].age
        with pytest.raises(objdb.ReadConflictError):
            manager.commit()
        manager.abort()
        assert "copy" not in connection.root()


def test_a_savepoint_is_refused(db: objdb.DB, root: Any, manager: Any) -> None:
    """A savepoint, or a subtransaction, would go on with what cannot be committed."""
    change(db, "ann", age=2)
    with pytest.raises(objdb.ReadConflictError):
        _ = root["ann"].age
    with pytest.raises(objdb.ReadConflictError, match="can only be aborted"):
        objdb.get_transaction(manager).commit(1)


def test_sync_begins_anew(db: objdb.DB, root: Any, manager: Any) -> None:
    """After sync() the new state is there, and can be changed."""
    change(db, "ann", age=2)
    with pytest.raises(objdb.ReadConflictError):
        _ = root["ann"].age
    root._p_jar.sync()
    root["ann"].age += 1
    manager.commit()
    root._p_jar.sync()
    assert root["ann"].age == 3


def test_an_independent_object_shows_its_newest_state(
    db: objdb.DB, root: Any, manager: Any
) -> None:
    """An object whose _p_independent() is true is loaded as it is now, and can be changed."""
    change(db, "index", age=2)
    assert root["index"].age == 2
    root["index"].age = 3
    manager.commit()
    with db.transaction() as connection:
        assert connection.root()["index"].age == 3


def test_independence_is_asked_of_the_new_state(db: objdb.DB, root: Any) -> None:
    """An object that is not independent any more is refused."""
    change(db, "index", independent=False)
    with pytest.raises(objdb.ReadConflictError):
        _ = root["index"].age
    assert root["index"]._p_changed is None


def test_an_error_of_independence_comes_out(db: objdb.DB, root: Any) -> None:
    """What _p_independent() raises is not taken for an answer."""
    with db.transaction() as connection:
        del connection.root()["index"].independent
    with pytest.raises(AttributeError, match="independent"):
        _ = root["index"].age
    assert root["index"]._p_changed is None


def test_a_new_object_can_be_read(db: objdb.DB, root: Any) -> None:
    """What was created since the transaction began was not changed since: an independent object
    may lead to it."""
    with db.transaction() as connection:
        connection.root()["index"].latest = Person("new", age=5)
    assert root["index"].latest.age == 5
    change(db, "index", age=2)  # now an older one is in the cache: all is as it was
    assert root["index"].latest.age == 5


def test_own_changes_are_read_from_savepoints(db: objdb.DB, root: Any, manager: Any) -> None:
    """An object that this transaction has changed is read as it left it, even if another
    transaction has changed it, too; the commit is the conflict then."""
    root["ann"].age = 7
    savepoint = manager.savepoint()
    root["ann"].age = 8
    change(db, "ann", age=2)
    root._p_jar.cacheMinimize()
    savepoint.rollback()
    assert root["ann"].age == 7
    with pytest.raises(objdb.ConflictError):
        manager.commit()


def test_changes_are_merged(db: objdb.DB, root: Any, manager: Any) -> None:
    """Conflicts of what was loaded in time are resolved as ever."""
    root["counter"].add(1)
    with db.transaction() as connection:
        connection.root()["counter"].add(10)
    manager.commit()
    assert root["counter"].value == 11


def test_retries_begin_anew(db: objdb.DB) -> None:
    """run() tries again after a refused read."""
    seen = []

    def look(connection: objdb.Connection) -> int:
        root = root_alone(connection)
        if not seen:
            change(db, "ann", age=2)
        seen.append("try")
        return int(root["ann"].age)

    assert db.run(look) == 2
    assert seen == ["try", "try"]


def test_swallowing_inside_a_block(db: objdb.DB) -> None:
    """The end of a db.transaction() block is a commit like any other."""

    def swallow() -> None:
        with db.transaction() as connection:
            root = root_alone(connection)
            change(db, "ann", age=2)
            with pytest.raises(objdb.ReadConflictError):
                _ = root["ann"].age

    with pytest.raises(objdb.ReadConflictError, match="can only be aborted"):
        swallow()
    with db.transaction() as connection:
        assert connection.root()["ann"].age == 2


def test_outside_a_transaction(db: objdb.DB) -> None:
    """With an explicit manager and no transaction begun, a refused read is just that."""
    manager = transaction.TransactionManager(explicit=True)
    with db.open(transaction_manager=manager) as connection:
        root = root_alone(connection)
        change(db, "ann", age=2)
        with pytest.raises(objdb.ReadConflictError):
            _ = root["ann"].age
        manager.begin()
        assert root["ann"].age == 2
        manager.commit()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_connection_changes_its_mode(
    db: objdb.DB, isolation: str
) -> None:
    """A pooled connection that was used in this mode is as good as a new one in the next."""
    db.setPoolSize(1)
    manager = transaction.TransactionManager()
    for mode in ("read-current", isolation):
        with db.open(transaction_manager=manager, isolation=mode) as connection:
            assert connection.isolation == mode
            root = root_alone(connection)
            others = transaction.TransactionManager()
            with db.open(temporary=True, transaction_manager=others) as other:
                other.root()["index"].age += 1
                others.commit()
            age = root["index"].age
            with db.open(temporary=True, transaction_manager=others) as other:
                now = other.root()["index"].age
            assert (age == now) == (mode == "read-current")
            manager.abort()


def test_a_pair_never_differs(db: objdb.DB) -> None:
    """Threads that change two objects together, and load them anew all the time, never see one
    without the other's change, nor lose one."""
    db.setPoolSize(20)
    with db.transaction() as connection:
        connection.root()["tree"] = OOBTree({i: Person(str(i), age=0) for i in range(100)})

    def both(connection: objdb.Connection) -> None:
        tree = connection.root()["tree"]
        connection.cacheMinimize()
        one, other = tree[3], tree[90]
        assert one.age == other.age
        one.age += 1
        other.age += 1

    def work() -> None:
        for _ in range(40):
            db.run(both, tries=10_000)

    workers = [Worker(work, f"changes {n}") for n in range(5)]
    for worker in workers:
        worker.finish()
    with db.transaction() as connection:
        tree = connection.root()["tree"]
        assert tree[3].age == tree[90].age == 200


@pytest.mark.parametrize("mode", ["", "Snapshot", "read_current", None, 1])
def test_an_unknown_mode_is_refused(databases: Databases, mode: Any) -> None:
    """The error lists the modes there are; nothing is left open."""
    names = ".*".join(ISOLATIONS)
    with pytest.raises(objdb.UsageError, match=names):
        objdb.DB(str(databases.directory / "data.fs"), isolation=mode)
    db = databases.open("data.fs", pool_size=1)
    if mode is not None:  # the database's own
        with pytest.raises(objdb.UsageError, match=names):
            db.open(isolation=mode)
    db.open().close()


