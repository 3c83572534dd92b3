"""Who may use a connection, and what closing does to those who still have one."""

from __future__ import annotations

from typing import Any

import pytest
import transaction

import objdb
from objdb.errors import ConcurrentUseError, ConnectionStateError, ObjdbError
from tests.conftest import Databases
from tests.database.staging import Gate, GatedStorage, Worker, in_thread
from tests.models import Person


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["q"] = Person("p"), Person("q")
    return db


def change(obj: Any) -> None:
    obj.name = "changed in another thread"


def test_thread_bound_connections_are_changed_by_their_thread(people: objdb.DB) -> None:
    """A connection in its thread's transactions cannot be changed by another thread, which would
    change them behind its back: told with both threads' part in it, and nothing is changed."""
    with people.open() as connection:
        person = connection.root()["p"]
        for use in (
            lambda: change(person), lambda: connection.add(Person("new")), connection.sync,
            lambda: person.__delattr__("name"),
        ):
            with pytest.raises(ConcurrentUseError, match=r"'intruder'.*connection per thread"):
                in_thread(use, "intruder")
        assert person.name == "p"
        assert person._p_changed is False
        person.name = "changed by its own thread"
        transaction.commit()


def test_explicit_managers_may_wander(people: objdb.DB) -> None:
    """A connection with a transaction manager of its own can be used by one thread after the
    other."""
    manager = transaction.TransactionManager()
    connection = people.open(transaction_manager=manager)
    in_thread(lambda: change(connection.root()["p"]))
    assert connection.root()["p"].name == "changed in another thread"
    in_thread(manager.commit)
    in_thread(connection.close)
    with people.transaction() as connection:
        assert connection.root()["p"].name == "changed in another thread"


def test_a_manager_as_first_argument(people: objdb.DB) -> None:
    """A first argument that is no string is the transaction manager."""
    manager = transaction.TransactionManager()
    connection = people.open(manager)
    assert connection.transaction_manager is manager
    connection.root()["p"].name = "x"
    transaction.commit()  # the thread's own: not concerned
    assert connection.root()["p"]._p_changed is True
    manager.commit()
    connection.close()


def test_each_thread_has_its_own_transactions(people: objdb.DB) -> None:
    """Connections opened by default take part in the transactions of the thread that opened
    them."""
    mine = people.open()
    mine.root()["p"].name = "mine"

    def elsewhere() -> None:
        with people.open() as connection:
            assert connection.root()["p"].name == "p"
            connection.root()["q"].name = "theirs"
            transaction.commit()

    in_thread(elsewhere)
    transaction.commit()
    assert (mine.root()["p"].name, mine.root()["q"].name) == ("mine", "theirs")
    mine.close()


@pytest.mark.parametrize("make_manager", [lambda: None, transaction.TransactionManager])
def test_simultaneous_loads(make_manager: Any) -> None:
    """Two threads that load through one connection at once: the second is told; the first, and
    the connection, are not disturbed."""
    storage = GatedStorage()
    with objdb.DB(storage) as db:
        with db.transaction() as connection:
            root = connection.root()
            root["p"], root["q"] = person, _ = Person("p"), Person("q")
        slow = person._p_oid
        connection = db.open(temporary=True, transaction_manager=make_manager())
        root = connection.root()
        root._p_activate()
        gate = storage.gates[slow] = Gate()
        worker = Worker(lambda: root["p"].name, "first")
        gate.wait_until_reached()
        with pytest.raises(ConcurrentUseError, match="connection per thread"):
            _ = root["q"].name
        assert root["q"]._p_changed is None
        gate.open()
        assert worker.finish() == "p"
        assert (root["p"].name, root["q"].name) == ("p", "q")
        connection.close()


def test_loads_one_after_the_other(people: objdb.DB) -> None:
    """Threads that read through one connection in turn are not told off."""
    with people.open(transaction_manager=transaction.TransactionManager()) as connection:
        root = connection.root()
        assert in_thread(lambda: root["p"].name) == "p"
        assert root["q"].name == "q"


def test_a_load_that_fails_frees_the_connection(people: objdb.DB) -> None:
    """After an error while loading, another thread can use the connection."""
    with people.open(transaction_manager=transaction.TransactionManager()) as connection:
        ghost = Person.__new__(Person)
        ghost._p_jar, ghost._p_oid = connection, b"\0" * 7 + b"\xee"
        ghost._p_deactivate()
        with pytest.raises(objdb.POSKeyError):
            in_thread(lambda: ghost.name)
        assert connection.root()["p"].name == "p"


def test_closing_the_database_with_connections_open(people: objdb.DB) -> None:
    """Closing the database makes open connections unusable, drops their changes, and spares
    what is loaded; ending their transaction stores nothing and does no harm."""
    connection = people.open()
    person, ghost = connection.root()["p"], connection.root()["q"]
    person.name = "never stored"
    ghost._p_deactivate()
    people.close()
    with pytest.raises(ConnectionStateError, match="closed"):
        _ = ghost.name
    with pytest.raises(ObjdbError):
        connection.root()
    with pytest.raises(ObjdbError):
        connection.add(Person())
    with pytest.raises(ObjdbError):
        transaction.commit()
    transaction.abort()
    connection.close()


def test_closing_the_database_from_another_thread(databases: Databases) -> None:
    """A database can be closed while another thread has a connection in its own transactions."""
    db = databases.open("data.fs")
    gate = Gate()

    def hold() -> str:
        connection = db.open()
        connection.root()["p"] = Person("never stored")
        gate.pass_through()
        with pytest.raises(ObjdbError):
            transaction.commit()
        transaction.abort()
        with pytest.raises(ObjdbError):
            connection.root()
        return "ended well"

    worker = Worker(hold)
    gate.wait_until_reached()
    try:
        db.close()
    finally:
        gate.open()
        assert worker.finish() == "ended well"
    with databases.open("data.fs").transaction() as connection:
        assert list(connection.root()) == []


def test_temporary_connections_end_with_the_database(databases: Databases) -> None:
    """A temporary connection of a closed database loads nothing, and says so."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["p"] = Person("p")
    connection = db.open(temporary=True)
    person = connection.root()["p"]
    person._p_deactivate()
    db.close()
    with pytest.raises(ObjdbError, match="closed"):
        _ = person.name
    connection.close()


def test_a_commit_in_another_thread(people: objdb.DB) -> None:
    """Two threads commit at once with connections of their own; nothing is lost."""
    gates = Gate(), Gate()

    def add(key: str, gate: Gate) -> None:
        with people.transaction() as connection:
            connection.root()[key].name += "!"
            gate.pass_through()

    workers = [Worker(lambda k=k, g=g: add(k, g)) for k, g in zip("pq", gates, strict=True)]
    for gate in gates:
        gate.wait_until_reached()
    for gate in gates:
        gate.open()
    for worker in workers:
        worker.finish()
    with people.transaction() as connection:
        assert (connection.root()["p"].name, connection.root()["q"].name) == ("p!", "q!")


def test_get_with_what_is_no_oid(people: objdb.DB) -> None:
    """get takes 8 bytes; anything else, and an oid of nothing, raises POSKeyError."""
    with people.open() as connection:
        for wrong in ("p", 0, None, b"", b"\0" * 7, b"\0" * 9, bytearray(8), (0,), 1.5):
            with pytest.raises(objdb.POSKeyError):
                connection.get(wrong)
        with pytest.raises(objdb.POSKeyError) as caught:
            connection.get(b"\x7f" * 8)
        assert caught.value.oid == b"\x7f" * 8
        assert connection[bytes(8)] is connection.root()
