"""Objects loaded ahead, in a worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent.list import PersistentList

import objdb
from objdb.connection.changes import ObjectState, object_state
from tests.aio.staging import reached, run
from tests.conftest import Databases
from tests.database.staging import Gate, GatedStorage
from tests.models import Person

GHOST = ObjectState.GHOST


def names(number: int) -> list[str]:
    return [f"{n:04}" for n in range(number)]


@pytest.fixture
def stored(db: objdb.DB) -> objdb.DB:
    """A tree of many nodes, whose people have a friend each; a list; a set."""
    with db.transaction() as connection:
        root = connection.root()
        root["tree"] = OOBTree({n: Person(n, friend=Person(f"of {n}")) for n in names(200)})
        root["list"] = PersistentList([Person("a"), Person("b")])
        root["set"] = OOTreeSet(names(200))
        root["trees"] = OOBTree({"inner": OOBTree({n: Person(n) for n in names(50)})})
        root["one"] = Person("one", friend=Person("two", friend=Person("three")))
    db.cacheMinimize()
    return db


def test_given_objects(stored: objdb.DB) -> None:
    """Ghosts that are given are loaded, others are not; those loaded already cost nothing."""
    async def main() -> None:
        async with stored.transaction() as connection:
            root = connection.root()
            one, people = root["one"], root["list"]
            assert await connection.prefetch(one, people) == 2
            assert one.friend._p_changed is None and people[0]._p_changed is None
            loads = connection.load_count
            assert (one.name, len(people)) == ("one", 2)
            assert connection.load_count == loads
            assert await connection.prefetch(one, people, Person("unsaved")) == 0

    run(main())


def test_depth(stored: objdb.DB) -> None:
    """`depth` follows references so many steps."""
    async def main() -> None:
        for depth, count in enumerate([1, 2, 3, 3]):
            async with stored.transaction() as connection:
                one = connection.root()["one"]
                assert await connection.prefetch(one, depth=depth) == count
                connection.cacheMinimize()

    run(main())


def test_a_tree_is_one_object(stored: objdb.DB) -> None:
    """A BTree comes with all its nodes; what is in it is one step further, trees in it too."""
    async def main() -> None:
        async with stored.transaction() as connection:
            root = connection.root()
            assert await connection.prefetch(root["tree"], root["set"]) > 2
            loads = connection.load_count
            people = list(root["tree"].values())
            assert list(root["tree"]) == list(root["set"]) == names(200)
            assert connection.load_count == loads
            assert {object_state(person) for person in people} == {GHOST}
            assert await connection.prefetch(root["tree"], depth=1) == 200
            assert await connection.prefetch(root["tree"], depth=2) == 200
            loads = connection.load_count
            assert [person.friend.name for person in people] == [f"of {n}" for n in names(200)]
            assert connection.load_count == loads
            inner = root["trees"]["inner"]
            assert inner._p_changed is None
            await connection.prefetch(root["trees"], depth=1)
            loads = connection.load_count
            assert list(inner) == names(50)
            assert connection.load_count == loads

    run(main())


def test_something_to_iterate_over(stored: objdb.DB) -> None:
    """Iterables are iterated over in the worker: a range of a tree, a list, a generator."""
    async def main() -> None:
        async with stored.transaction() as connection:
            tree = connection.root()["tree"]
            await connection.prefetch(tree.values("0010", "0019"))
            people = [tree[f"{n:04}"] for n in range(8, 22)]
            loaded = [object_state(person) is not GHOST for person in people]
            assert loaded == [False] * 2 + [True] * 10 + [False] * 2
            assert await connection.prefetch(people[:1], (p for p in people[-2:])) == 3

    run(main())


def test_what_was_changed_stays(stored: objdb.DB) -> None:
    """Changed and new objects stay as they are; what a new one refers to is not followed."""
    async def main() -> None:
        async with stored.transaction() as connection:
            one = connection.root()["one"]
            one.name = "changed"
            new = Person("new", friend=connection.root()["list"])
            connection.add(new)
            assert await connection.prefetch(one, new, depth=1) == 1
            assert one.name == "changed"
            assert new.friend._p_changed is None

    run(main())


def test_mistakes(stored: objdb.DB) -> None:
    """What cannot be loaded is an error with a name; errors of loading come out."""
    async def main() -> None:
        async with stored.transaction() as connection:
            async with stored.transaction() as other:
                for wrong in (other.root(), "text", [1, 2], connection.root()["tree"].items()):
                    with pytest.raises(objdb.UsageError):
                        await connection.prefetch(wrong)
            with pytest.raises(objdb.UsageError):
                await connection.prefetch(connection.root(), depth=-1)
            with pytest.raises(TypeError):
                await connection.prefetch(5)
        with pytest.raises(objdb.ConnectionStateError):
            await connection.prefetch(connection.root)

    run(main())


def test_missing_objects(databases: Databases) -> None:
    """An object that is not there is told as it is without prefetching."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["p"] = person = Person("p")
        connection.add(person)
        oid = person._p_oid
    db.storage._objects_removed = oid
    storage_load = db.storage.loadBefore

    def load(wanted: bytes, tid: bytes) -> Any:
        if wanted == oid:
            raise objdb.POSKeyError(wanted)
        return storage_load(wanted, tid)

    db.storage.loadBefore = load
    db.cacheMinimize()

    async def main() -> None:
        async with db.transaction() as connection:
            with pytest.raises(objdb.POSKeyError) as caught:
                await connection.prefetch(connection.root(), depth=1)
            assert caught.value.oid == oid

    run(main())
    del db.storage.loadBefore


def test_it_counts_as_read(databases: Databases) -> None:
    """In a serializable transaction, what was loaded ahead was read."""
    db = databases.open(None, isolation="serializable")
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["q"] = Person("p"), Person("q")
    db.cacheMinimize()

    async def main() -> None:
        with pytest.raises(objdb.ReadConflictError):
            async with db.transaction() as connection:
                await connection.prefetch(connection.root()["p"])
                connection.root()["q"].name = "changed"
                async with db.transaction() as other:
                    other.root()["p"].name = "changed"

    run(main())


@pytest.fixture
def gated(databases: Databases) -> tuple[objdb.DB, dict[bytes, Gate], bytes]:
    storage = GatedStorage()
    db = databases.open(storage)
    with db.transaction() as connection:
        connection.root()["list"] = PersistentList([Person(n) for n in names(10)])
        connection.root()["other"] = Person("other")
    with db.transaction() as connection:
        oid = connection.root()["list"][3]._p_oid
    db.cacheMinimize()
    return db, storage.gates, oid


def test_the_loop_goes_on(gated: tuple[objdb.DB, dict[bytes, Gate], bytes]) -> None:
    """While objects are loaded, other tasks run; one that uses the same connection is told."""
    db, gates, oid = gated

    async def main() -> None:
        async with db.transaction() as connection:
            gate = gates[oid] = Gate()
            task = asyncio.create_task(connection.prefetch(connection.root()["list"], depth=1))
            await reached(gate)
            with pytest.raises(objdb.ConcurrentUseError):
                _ = connection.root()["other"].name
            async with db.transaction() as other:
                assert other.root()["other"].name == "other"
            gate.open()
            assert await task == 11
            assert connection.root()["other"].name == "other"

    run(main())


def test_cancelled_in_the_middle(gated: tuple[objdb.DB, dict[bytes, Gate], bytes]) -> None:
    """When cancelled, it ends with the object that is being loaded."""
    db, gates, oid = gated

    async def main() -> None:
        async with db.transaction() as connection:
            gate = gates[oid] = Gate()
            people = connection.root()["list"]
            task = asyncio.create_task(connection.prefetch(people, depth=1))
            await reached(gate)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            states = [object_state(person) is GHOST for person in people]
            assert states == [False] * 4 + [True] * 6

    run(main())
