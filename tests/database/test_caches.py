"""Caches, what others changed in them, and the numbers a database gives about itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import transaction
from BTrees.IOBTree import IOBTree

import objdb
from objdb.database import invalidations
from tests.conftest import Databases
from tests.database.staging import Worker
from tests.models import Person

COUNT = 100


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    with db.transaction() as connection:
        connection.root()["all"] = IOBTree({i: Person(f"p{i}") for i in range(COUNT)})
    with db.open(transaction_manager=transaction.TransactionManager()) as connection:
        connection.cacheMinimize()
    return db


def load_all(connection: objdb.Connection) -> list[Person]:
    loaded = list(connection.root()["all"].values())
    for person in loaded:
        assert person.name.startswith("p")
    return loaded


def states(people: list[Person]) -> list[bool]:
    """Whether each person is loaded."""
    return [person._p_changed is not None for person in people]


def test_cache_size_is_kept_between_transactions(people: objdb.DB) -> None:
    """At the end of a transaction a cache shrinks to its size, least recently used first; a
    changed size applies to all connections, and to new ones."""
    people.setCacheSize(20)
    assert people.getCacheSize() == 20
    with people.open() as connection:
        loaded = load_all(connection)
        assert all(states(loaded))
        transaction.commit()
        assert sum(states(loaded)) <= 20
        assert states(loaded)[-10:] == [True] * 10
        people.setCacheSize(1000)
        load_all(connection)
        transaction.commit()
        assert all(states(loaded))
        other = people.open(temporary=True)
        kept = load_all(other)
        transaction.commit()
        assert all(states(kept))
        other.close()


def test_cache_size_in_bytes(people: objdb.DB) -> None:
    """A limit in bytes lets a cache keep objects whose records are of that size together."""
    people.setCacheSizeBytes(1000)
    assert people.getCacheSizeBytes() == 1000
    with people.open() as connection:
        loaded = load_all(connection)
        transaction.commit()
        few = sum(states(loaded))
        assert few < COUNT / 2
        people.setCacheSizeBytes(0)
        load_all(connection)
        transaction.commit()
        assert all(states(loaded))


def test_changed_objects_stay(people: objdb.DB) -> None:
    """No cache function drops an object with changes."""
    people.setCacheSize(1)
    with people.open() as connection:
        first = connection.root()["all"][0]
        first.name = "changed"
        load_all_but_first = [connection.root()["all"][i].name for i in range(1, COUNT)]
        assert len(load_all_but_first) == COUNT - 1
        connection.cacheGC()
        connection.cacheMinimize()
        connection.cacheFullSweep(0)
        people.cacheMinimize()
        people.cacheFullSweep(0)
        assert first._p_changed is True
        assert first.name == "changed"
        transaction.commit()
    with people.transaction() as connection:
        assert connection.root()["all"][0].name == "changed"


def test_minimize_all(people: objdb.DB) -> None:
    """cacheMinimize of the database empties the caches of all connections, in the pool too."""
    managers = [transaction.TransactionManager() for _ in range(2)]
    connections = [people.open(transaction_manager=manager) for manager in managers]
    loaded = [load_all(connection) for connection in connections]
    connections[1].close()
    assert people.cacheSize() >= 2 * COUNT
    people.cacheMinimize()
    assert people.cacheSize() == 0
    assert not any(states(loaded[0]) + states(loaded[1]))
    assert [person.name for person in loaded[0]] == [f"p{i}" for i in range(COUNT)]
    connections[0].close()


class Clock:
    def __init__(self, connection: objdb.Connection) -> None:
        self.now = connection.cache.epochs.clock()
        connection.cache.epochs.clock = self

    def __call__(self) -> float:
        return self.now


def test_sweeping_by_age(people: objdb.DB) -> None:
    """cacheFullSweep drops what was not used for so many seconds, and nothing else."""
    connection = people.open()
    clock = Clock(connection)
    loaded = load_all(connection)
    for seconds in range(1, 101):
        clock.now += 1
        transaction.begin()
        if seconds <= COUNT:
            assert loaded[seconds - 1].name
    # Person i was used 99 - i seconds ago.
    connection.cacheFullSweep(50)
    assert not any(states(loaded)[:48])
    assert all(states(loaded)[51:])
    connection.cacheMinimize(20)
    assert not any(states(loaded)[:78])
    assert all(states(loaded)[81:])
    people.setCacheDeactivateAfter(10)
    people.cacheFullSweep()
    assert not any(states(loaded)[:88])
    assert all(states(loaded)[91:])
    people.cacheFullSweep(1000)
    assert all(states(loaded)[91:])
    connection.close()


def test_default_age(databases: Databases) -> None:
    """cache_deactivate_after is a minute by default, and what cacheFullSweep goes by."""
    db = databases.open(None)
    assert db.options.cache_deactivate_after == 60
    with db.transaction() as connection:
        connection.root()["p"] = Person("p")
    with db.open() as connection:
        clock = Clock(connection)
        person = connection.root()["p"]
        assert person.name == "p"
        for _ in range(2):
            clock.now += 29
            transaction.begin()
        connection.cacheFullSweep()
        assert states([person]) == [True]
        clock.now += 32  # a minute after the epoch ended in which it was used
        connection.cacheFullSweep()
        assert states([person]) == [False]


@pytest.mark.parametrize("shrink", ["cacheMinimize", "cacheGC", "cacheFullSweep"])
def test_long_lives(databases: Databases, shrink: str) -> None:
    """A connection whose cache is shrunk now and then goes on for any number of transactions
    over any time."""
    db = databases.open(None, cache_size=3)
    with db.transaction() as connection:
        connection.root()["all"] = [Person(f"p{i}") for i in range(10)]
    connection = db.open()
    clock = Clock(connection)
    for number in range(1500):
        clock.now += 7
        transaction.begin()
        assert connection.root()["all"][number % 10].name == f"p{number % 10}"
        if number % 400 == 10:
            getattr(connection, shrink)()
    connection.cacheFullSweep(1)
    connection.close()


def test_details(people: objdb.DB) -> None:
    """cacheDetail counts loaded objects by class; cacheExtremeDetail lists them; neither shows
    what is not the application's."""
    people.cacheMinimize()
    with people.open() as connection:
        clock = Clock(connection)
        for _ in range(3):
            clock.now += 5
            transaction.begin()
        connection.root()["all"][0].name  # noqa: B018
        connection.root()["all"][1].name = "changed"
        detail = dict(people.cacheDetail())
        assert detail["tests.models.Person"] == 2
        assert detail["persistent.mapping.PersistentMapping"] == 1
        assert set(detail) <= {
            "tests.models.Person", "persistent.mapping.PersistentMapping",
            "BTrees.IOBTree.IOBTree", "BTrees.IOBTree.IOBucket",
        }
        entries = people.cacheExtremeDetail()
        assert len(entries) == sum(detail.values()) == people.cacheSize()
        mine = [e for e in entries if e["klass"] == "tests.models.Person"]
        assert {e["oid"] for e in mine} == {
            connection.root()["all"][i]._p_oid for i in range(2)
        }
        assert sorted(e["state"] for e in mine) == [0, 1]
        assert all(e["size"] > 0 and e["conn_no"] == 0 for e in mine)
        sizes = people.cacheDetailSize()
        assert sum(s["ngsize"] for s in sizes) == people.cacheSize()
        assert all(s["size"] >= s["ngsize"] for s in sizes)
        transaction.abort()


def test_details_of_connections_in_the_pool(people: objdb.DB) -> None:
    """The details tell of connections in the pool, and of objects not committed yet, as well."""
    people.cacheMinimize()
    manager = transaction.TransactionManager()
    pooled = people.open(transaction_manager=manager)
    other = people.open(transaction_manager=transaction.TransactionManager())
    loaded = load_all(pooled)
    pooled.close()
    other.root()["new"] = Person("new")
    other.transaction_manager.savepoint()
    other.root()["new"].name = "p new"
    entries = people.cacheExtremeDetail()
    assert {e["oid"] for e in entries} > {person._p_oid for person in loaded}
    assert other.root()["new"]._p_oid in {e["oid"] for e in entries}
    assert len(entries) == people.cacheSize() == sum(n for _, n in people.cacheDetail())
    assert len(people.cacheDetailSize()) == 2
    other.transaction_manager.abort()
    other.close()


def test_statistics(people: objdb.DB) -> None:
    """statistics counts objects, bytes, connections, loads, stores, commits and conflicts."""
    before = people.statistics()
    assert before.objects == len(people.storage) > COUNT
    assert before.size_bytes == people.storage.getSize() > 0
    assert before.last_tid == people.storage.lastTransaction()
    assert (before.pool_size, before.connections_out, before.conflicts) == (7, 0, 0)
    assert before.name == people.name
    connection = people.open()
    load_all(connection)
    for i in range(5):
        connection.root()["all"][i].name = "new"
    transaction.commit()
    after = people.statistics()
    assert after.connections_out == 1
    (mine,) = [c for c in after.connections if c.held_by]
    assert mine.held_by == threading.current_thread().name
    assert mine.loads >= COUNT
    assert mine.stores >= 5
    assert mine.loaded_objects >= COUNT
    assert mine.estimated_bytes == 0  # counted only while there is a limit in bytes
    assert after.commits == before.commits + 1
    assert after.last_tid > before.last_tid
    connection.close()
    people.cacheMinimize()
    idle = people.statistics()
    assert idle.connections_out == 0
    assert all(c.loaded_objects == 0 for c in idle.connections)


def test_estimated_bytes(databases: Databases) -> None:
    """With a limit in bytes, statistics tells the size of the records that a cache holds."""
    db = databases.open(None, cache_size_bytes=10**6)
    with db.transaction() as connection:
        connection.root()["p"] = Person("p", data="x" * 5000)
    connection = db.open()
    assert len(connection.root()["p"].data) == 5000
    (only,) = db.statistics().connections
    assert 5000 < only.estimated_bytes < 10_000
    connection.cacheMinimize()
    assert db.statistics().connections[0].estimated_bytes < 100
    connection.close()


# -- what others changed


def two(db: objdb.DB) -> tuple[Any, Any, Any]:
    manager = transaction.TransactionManager()
    connection = db.open(transaction_manager=manager)
    return manager, connection, load_all(connection)


def commit_many(db: objdb.DB, count: int) -> None:
    for number in range(count):
        with db.transaction() as connection:
            connection.root()["all"][number % COUNT].name = f"p changed {number}"


def test_only_what_changed_is_dropped(people: objdb.DB) -> None:
    """A new view drops the objects that others changed since the last one, and no others."""
    manager, connection, loaded = two(people)
    with people.transaction() as other:
        other.root()["all"][3].name = "p new"
        other.root()["all"][5].name = "p new"
    assert all(states(loaded))
    manager.begin()
    assert [i for i, is_loaded in enumerate(states(loaded)) if not is_loaded] == [3, 5]
    assert (loaded[3].name, loaded[4].name) == ("p new", "p4")
    connection.close()


def test_own_changes_stay_loaded(people: objdb.DB) -> None:
    """A connection does not drop what it committed itself."""
    manager, connection, loaded = two(people)
    loaded[3].name = "p mine"
    manager.commit()
    manager.begin()
    assert all(states(loaded))
    connection.close()


def test_a_log_that_is_too_short(people: objdb.DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose view is older than the log of changes reaches drops its whole cache,
    and sees everything right."""
    monkeypatch.setattr(invalidations, "_MOST_OIDS", 20)
    manager, connection, loaded = two(people)
    seen = [person.name for person in loaded]
    commit_many(people, 30)
    assert [person.name for person in loaded] == seen
    manager.begin()
    assert not any(states(loaded))
    expected = [f"p changed {i}" if i < 30 else f"p{i}" for i in range(COUNT)]
    assert [person.name for person in loaded] == expected
    # From here on the log reaches back far enough again.
    commit_many(people, 1)
    manager.begin()
    assert states(loaded) == [False] + [True] * (COUNT - 1)
    assert loaded[0].name == "p changed 0"
    connection.close()


@pytest.mark.parametrize("behind", range(1, 14))
def test_a_log_that_is_just_long_enough_or_not(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """However far a view is behind when the log is shortened, the next one is right."""
    monkeypatch.setattr(invalidations, "_MOST_OIDS", 12)
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["all"] = IOBTree({i: Person(f"p{i}") for i in range(COUNT)})
    commit_many(db, 3)
    manager, connection, loaded = two(db)
    commit_many(db, behind)
    manager.begin()
    for i in range(20):
        assert loaded[i].name == (f"p changed {i}" if i < max(behind, 3) else f"p{i}")
    connection.close()


def test_dropping_all_caches(people: objdb.DB) -> None:
    """invalidateCache lets every connection drop its cache when its next transaction begins,
    whether anything was committed since or not."""
    manager, connection, loaded = two(people)
    people.invalidateCache()
    assert all(states(loaded))
    manager.begin()
    assert not any(states(loaded))
    assert [person.name for person in loaded] == [f"p{i}" for i in range(COUNT)]
    commit_many(people, 2)
    manager.begin()
    assert states(loaded)[:3] == [False, False, True]
    connection.close()


def test_a_connection_from_the_pool_is_up_to_date(people: objdb.DB) -> None:
    """A connection that lay in the pool while others committed shows their changes at once."""
    first = people.open(transaction_manager=transaction.TransactionManager())
    second = people.open(transaction_manager=transaction.TransactionManager())
    loaded = load_all(first)
    first.close()
    second.root()["all"][0].name = "p changed"
    second.transaction_manager.commit()
    again = people.open(transaction_manager=transaction.TransactionManager())
    assert again is first
    assert loaded[0].name == "p changed"
    again.close()
    second.close()


def test_what_a_storage_reports(people: objdb.DB) -> None:
    """Changes that the storage tells the database of are dropped like those of connections."""
    manager, connection, loaded = two(people)
    oid, tid = loaded[0]._p_oid, people.storage.getTid(loaded[0]._p_oid)
    content = people.storage.load(oid)[0].replace(b"p0", b"pX")
    metadata = people.metadata_of(manager.get())
    people.storage.tpc_begin(metadata)
    people.storage.store(oid, tid, content, "", metadata)
    people.storage.tpc_vote(metadata)
    people.storage.tpc_finish(metadata, lambda tid: people.invalidate(tid, [oid]))
    assert loaded[0].name == "p0"
    manager.begin()
    assert loaded[0].name == "pX"
    connection.close()


def test_other_threads_do_not_touch_the_cache(people: objdb.DB) -> None:
    """A cache is emptied for another thread when its owner's next transaction begins; one in the
    pool, and one of the thread that asks, at once."""
    with people.open() as connection, people.open() as second:
        loaded, in_pool = load_all(connection), load_all(second)
        second.close()
        transaction.begin()
        Worker(people.cacheMinimize).finish()
        assert all(states(loaded)) and not any(states(in_pool))
        transaction.begin()
        assert not any(states(loaded))
        load_all(connection)
        transaction.begin()
        people.cacheMinimize()
        assert not any(states(loaded))


def test_an_error_while_emptying_loses_no_connection(people: objdb.DB) -> None:
    """When an object objects to becoming a ghost, the connections stay in the pool."""
    people.setPoolSize(3)
    managers = [transaction.TransactionManager() for _ in range(3)]
    for connection in [people.open(transaction_manager=manager) for manager in managers]:
        load_all(connection)
        connection.close()

    def object_to_it(connection: objdb.Connection) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        people._pool.for_each(object_to_it)
    assert people.statistics().connections_out == 0
    assert len(people.statistics().connections) == 3
