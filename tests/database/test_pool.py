"""The pool of connections: how many are out, who waits, what is kept."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import transaction

import objdb
from objdb.errors import PoolTimeoutError, StorageClosedError
from tests.conftest import Databases
from tests.database.staging import Gate, Worker, in_thread
from tests.models import Person


def managed(db: objdb.DB, **options: Any) -> objdb.Connection:
    """A connection with transactions of its own."""
    return db.open(transaction_manager=transaction.TransactionManager(), **options)


def test_seven_by_default(databases: Databases) -> None:
    """Seven connections can be out; the eighth open waits, and gives up after pool_wait."""
    db = databases.open(None, pool_wait=0)
    assert db.getPoolSize() == 7
    connections = [managed(db) for _ in range(7)]
    assert len({id(connection) for connection in connections}) == 7
    with pytest.raises(PoolTimeoutError, match="all 7 connections"):
        managed(db)
    connections.pop().close()
    managed(db).close()
    for connection in connections:
        connection.close()


def test_open_wakes_when_a_connection_comes_back(databases: Databases) -> None:
    """A thread that waits for a connection gets the one that another thread gives back."""
    db = databases.open(None, pool_size=1, pool_wait=60)
    connection = managed(db)
    opening = threading.Event()

    def wait_for_one() -> Any:
        opening.set()
        got = managed(db)
        got.close()
        return got

    worker = Worker(wait_for_one)
    assert opening.wait(60)
    connection.close()
    assert worker.finish() is connection


def test_every_waiting_thread_gets_its_turn(databases: Databases) -> None:
    """Many threads share two connections; all are served."""
    db = databases.open(None, pool_size=2, pool_wait=60)
    inside, most, lock = [], [], threading.Lock()

    def use() -> None:
        for _ in range(10):
            connection = managed(db)
            with lock:
                inside.append(connection)
                most.append(len(inside))
                assert len(set(map(id, inside))) == len(inside)
            connection.root()
            with lock:
                inside.remove(connection)
            connection.close()

    for worker in [Worker(use) for _ in range(8)]:
        worker.finish()
    assert max(most) <= 2
    assert db.statistics().connections_out == 0


def test_who_waits_longest_is_next(databases: Databases) -> None:
    """A thread that gives its connection back and takes one again, over and over, does not keep
    another waiting for ever."""
    db = databases.open("data.fs", pool_size=1, pool_wait=60)
    asking, served = threading.Event(), threading.Event()

    def ask() -> None:
        asking.set()
        managed(db).close()
        served.set()

    connection = managed(db)
    worker = Worker(ask)
    assert asking.wait(60)
    count = 0
    while not served.is_set() and count < 3000:
        count += 1
        connection.root()["n"] = count
        connection.transaction_manager.commit()  # which lets other threads run
        connection.close()
        connection = managed(db)
    connection.close()
    worker.finish()
    assert count < 3000


def test_timeout_names_the_holders(databases: Databases) -> None:
    """The error says which threads hold the connections, and how to learn where they were
    opened."""
    db = databases.open(None, pool_size=2, pool_wait=0)
    held = [in_thread(lambda: managed(db), name) for name in ("hoarder", "miser")]
    with pytest.raises(PoolTimeoutError) as caught:
        managed(db)
    assert "'hoarder'" in str(caught.value) and "'miser'" in str(caught.value)
    assert "record_stacks" in str(caught.value)
    assert len(caught.value.holders) == 2
    assert "hoarder" in caught.value.holders[0]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.holders == caught.value.holders
    for connection in held:
        connection.close()


def test_timeout_tells_where_connections_were_opened(databases: Databases) -> None:
    """With record_stacks=True the error shows the code that opened each connection."""
    db = databases.open(None, pool_size=1, pool_wait=0, record_stacks=True)

    def a_function_that_forgets_to_close() -> Any:
        return managed(db)

    connection = in_thread(a_function_that_forgets_to_close)
    with pytest.raises(PoolTimeoutError) as caught:
        managed(db)
    assert "a_function_that_forgets_to_close" in str(caught.value)
    assert __file__ in caught.value.holders[0]
    connection.close()


def test_caches_are_kept(db: objdb.DB) -> None:
    """A connection that comes out of the pool again has its objects loaded; what others changed
    meanwhile is loaded anew."""
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["q"] = Person("p"), Person("q")
        people = connection.root()["p"], connection.root()["q"]
    again = managed(db)
    assert again is connection
    loads = again.load_count
    assert (again.root()["p"].name, again.root()["q"].name) == ("p", "q")
    assert again.root()["p"] is people[0]
    assert again.load_count == loads
    other = managed(db)
    other.root()["p"].name = "changed"
    other.transaction_manager.commit()
    other.close()
    again.close()
    assert managed(db) is again
    assert (again.root()["p"].name, again.root()["q"].name) == ("changed", "q")
    assert again.load_count == loads + 1
    again.close()


def test_the_freshest_cache_comes_first(databases: Databases) -> None:
    """The connection that came back last is handed out first."""
    db = databases.open(None)
    connections = [managed(db) for _ in range(3)]
    for connection in connections:
        connection.close()
    assert managed(db) is connections[2]
    assert managed(db) is connections[1]
    connections[2].close()
    assert managed(db) is connections[2]
    for connection in connections[1:]:
        connection.close()


def test_temporary_connections(databases: Databases) -> None:
    """Temporary connections are not counted, and never come out again."""
    db = databases.open(None, pool_size=1, pool_wait=0)
    pooled = managed(db)
    temporary = [managed(db, temporary=True) for _ in range(3)]
    temporary[0].root()["p"] = Person("by a temporary one")
    temporary[0].transaction_manager.commit()
    for connection in temporary:
        connection.close()
    pooled.close()
    again = managed(db)
    assert again is pooled
    assert again.root()["p"].name == "by a temporary one"
    again.close()
    assert len(db.statistics().connections) == 1


def test_resizing(databases: Databases) -> None:
    """setPoolSize lets waiting threads go on, and drops connections there are too many of."""
    db = databases.open(None, pool_size=1, pool_wait=60)
    first = managed(db)
    worker = Worker(lambda: managed(db))
    db.setPoolSize(2)
    second = worker.finish()
    assert second is not first
    assert db.getPoolSize() == 2
    first.close()
    second.close()
    db.setPoolSize(1)
    assert len(db.statistics().connections) == 1
    db.setPoolSize(2)
    first, second = managed(db), managed(db)
    db.setPoolSize(1)  # while more are out
    first.close()
    second.close()
    assert len(db.statistics().connections) == 1


def test_closing_the_database_ends_waiting(databases: Databases) -> None:
    """A thread that waits for a connection is told when the database closes."""
    db = databases.open(None, pool_size=1, pool_wait=60)
    managed(db)
    worker = Worker(lambda: managed(db))
    db.close()
    with pytest.raises(StorageClosedError):
        worker.finish()


def test_a_failed_open_takes_no_place(databases: Databases) -> None:
    """When a connection cannot join the transactions it was to join, its place is free again."""
    class Refusing(transaction.TransactionManager):
        def registerSynch(self, synch: Any) -> None:
            raise RuntimeError("not today")

    db = databases.open(None, pool_size=1, pool_wait=0)
    with pytest.raises(RuntimeError, match="today"):
        db.open(transaction_manager=Refusing())
    connection = managed(db)
    assert connection.root() is not None
    connection.close()


def test_a_connection_per_transaction(db: objdb.DB) -> None:
    """open(transaction=t) gives the same connection for the same transaction, another one for
    another, and takes part in that transaction's commit."""
    manager, other = transaction.TransactionManager(), transaction.TransactionManager()
    txn = manager.begin()
    connection = db.open(transaction=txn)
    assert db.open(transaction=txn) is connection
    assert db.open("", txn) is connection
    another = db.open(transaction=other.begin())
    assert another is not connection
    connection.root()["p"] = Person("p")
    manager.commit()
    other.abort()
    with db.transaction() as third:
        assert third.root()["p"].name == "p"


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_closed_at_the_end_of_its_transaction(databases: Databases, end: str) -> None:
    """A connection opened for a transaction goes back to the pool when that ends, by commit or
    abort, with changes or without."""
    db = databases.open(None, pool_size=1, pool_wait=0)
    for change in (True, False):
        manager = transaction.TransactionManager()
        connection = db.open(transaction=manager.begin())
        if change:
            connection.root()[f"by {end}"] = 1
        getattr(manager, end)()
        assert db.statistics().connections_out == 0
        with pytest.raises(objdb.ConnectionStateError):
            connection.get(bytes(8))
    with db.transaction() as connection:
        assert list(connection.root()) == (["by commit"] if end == "commit" else [])


def test_closed_after_a_failed_commit(databases: Databases) -> None:
    """After a commit that failed the connection stays until the abort that has to follow."""
    db = databases.open(None, pool_size=2, pool_wait=0)
    with db.transaction() as connection:
        connection.root()["p"] = Person("p")
    manager = transaction.TransactionManager()
    connection = db.open(transaction=manager.begin())
    connection.root()["p"].name = "late"
    with db.transaction() as other:
        other.root()["p"].name = "first"
    with pytest.raises(objdb.ConflictError):
        manager.commit()
    assert db.statistics().connections_out == 1
    manager.abort()
    assert db.statistics().connections_out == 0


def test_the_next_holder_is_left_alone(databases: Databases) -> None:
    """What the next holder of a connection does, after a transaction closed it, is not undone by
    what that transaction still has to do at its end."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["p"] = Person("0")
    manager, other = transaction.TransactionManager(), transaction.TransactionManager()
    connection = db.open(transaction=manager.begin())
    connection.root()["p"].name = "1"
    taken: list[Any] = []

    def take_it(is_committed: bool) -> None:
        taken.append(db.open(transaction_manager=other))
        taken[0].root()["p"].name = "2"

    manager.get().addAfterCommitHook(take_it)
    manager.commit()
    other.commit()
    taken[0].close()
    with db.transaction() as connection:
        assert connection.root()["p"].name == "2"


def test_closing_twice_gives_back_once(databases: Databases) -> None:
    """A connection closed twice is in the pool once, also if it was handed out in between."""
    db = databases.open(None)
    connection = managed(db)
    connection.close()
    connection.close()
    first, second = managed(db), managed(db)
    assert first is not second
    first.close()
    second.close()


def test_closing_in_another_thread(databases: Databases) -> None:
    """A connection opened with the thread's own transactions can be closed by another thread,
    and takes part in those of neither any more."""
    db = databases.open(None, pool_size=1, pool_wait=0)
    connection = in_thread(db.open)
    connection.close()
    assert db.statistics().connections_out == 0
    with db.transaction() as again:
        again.root()["p"] = 1


def test_connections_of_threads_that_ended(databases: Databases) -> None:
    """A connection that a thread leaves open when it ends is taken from it by who needs one, with
    a warning that says where it was opened. What it had not committed is lost."""
    db = databases.open("data.fs", pool_size=1, record_stacks=True)
    left: list[objdb.Connection] = []

    def forgetful() -> None:
        left.append(db.open())
        left[0].root()["never"] = "committed"

    Worker(forgetful, "forgetful").finish()
    with pytest.warns(objdb.LeakedConnectionWarning, match=r"(?s)'forgetful'.*in forgetful"):
        connection = db.open()
    assert "never" not in connection.root()
    assert db.statistics().connections_out == 1
    connection.close()
    with pytest.raises(objdb.ConnectionStateError):
        left[0].root()


def test_without_waiting(databases: Databases) -> None:
    """Who does not wait at all gets it as well."""
    db = databases.open("data.fs", pool_size=1, pool_wait=0)
    Worker(db.open).finish()
    with pytest.warns(objdb.LeakedConnectionWarning):
        connection = db.open()
    connection.close()


def test_a_thread_that_ends_while_another_waits(databases: Databases) -> None:
    """Who waits already gets the connection as well."""
    db = databases.open("data.fs", pool_size=1)
    gate = Gate()

    def forgetful() -> None:
        db.open()
        gate.pass_through()

    worker = Worker(forgetful)
    gate.wait_until_reached()
    manager = transaction.TransactionManager()
    waiting = Worker(lambda: db.open(transaction_manager=manager))
    assert waiting.is_alive()

    def let_it_end() -> objdb.Connection:
        gate.open()
        worker.finish()
        return waiting.finish()

    with pytest.warns(objdb.LeakedConnectionWarning, match="record_stacks"):
        connection = let_it_end()
    connection.close()


def test_connections_that_others_can_use_are_left(databases: Databases) -> None:
    """A connection with transactions of its own may be used by any thread, so it is left to
    those who have it when its opener ends."""
    db = databases.open("data.fs", pool_size=1, pool_wait=0.05)
    manager = transaction.TransactionManager()
    connection = Worker(lambda: db.open(transaction_manager=manager)).finish()
    with pytest.raises(objdb.PoolTimeoutError):
        db.open()
    connection.root()["p"] = "still good"
    manager.commit()
    connection.close()
