"""Databases with versions: their pools and caches, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB.MappingStorage

import objdb
from objdb.errors import (
    ReadOnlyError,
    Unsupported,
    UsageError,
    VersionCommitError,
    VersionError,
)
from tests.conftest import Databases
from tests.database.test_versions import abort_version, ages, change, commit_version
from tests.models import Person

# -- pools


def test_pools(databases: Databases) -> None:
    """Each version has a pool of its own, whose connections keep their caches."""
    db = databases.open(None, pool_size=1, version_pool_size=2, pool_wait=0.01)
    first, second = db.open("plan"), db.open("plan")
    with pytest.raises(objdb.PoolTimeoutError, match="version_pool_size"):
        db.open("plan")
    db.open().close()
    db.open("other").close()
    second.close()
    assert db.open("plan") is second
    db.open("plan", temporary=True).close()
    db.setVersionPoolSize(3)
    third = db.open("plan")
    assert db.getVersionPoolSize() == 3 and db.statistics().connections_out == 3
    for connection in (first, second, third):
        connection.close()
    assert db.open() is not third


def test_pools_go_with_their_versions(people: objdb.DB) -> None:
    """The pool of a version that was committed or aborted is let go, unless it is in use."""
    kept = people.open("plan")
    kept.close()
    change(people, "plan", age=31)
    commit_version(people, "plan")
    used = people.open("plan")
    assert used is not kept
    abort_version(people, "plan")
    used.close()
    again = people.open("plan")
    assert again is used
    again.close()
    people.removeVersionPool("plan")
    people.removeVersionPool("of nobody")
    with people.open("plan") as other:
        assert other is not used


def test_who_waits_is_served_after_a_removal(databases: Databases) -> None:
    """A pool that somebody waits for is not let go."""
    db = databases.open(None, version_pool_size=1)
    connection, opened = db.open("plan"), []
    thread = threading.Thread(target=lambda: opened.append(db.open("plan")))
    thread.start()
    while not db._version_pools.of("plan")._waiting:
        pass
    db.removeVersionPool("plan")
    connection.close()
    thread.join(60)
    assert opened == [connection]
    connection.close()


def test_caches_of_versions(people: objdb.DB) -> None:
    """Connections in versions have a cache size of their own, and are counted."""
    people.setVersionCacheSize(7)
    assert people.getVersionCacheSize() == 7
    with people.open("plan") as connection:
        connection.root()["ann"]._p_activate()
        assert connection._cache.cache_size == 7
        people.setVersionCacheSize(8)
        assert connection._cache.cache_size == 8
        people.setCacheSize(9)  # of those outside
        assert connection._cache.cache_size == 8
    assert people.cacheSize() >= 2
    people.cacheMinimize()
    assert not [c for c in people.statistics().connections if c.loaded_objects]


def test_one_connection_for_a_transaction(people: objdb.DB) -> None:
    """open(version, transaction) gives the same connection for the same version and transaction."""
    manager = transaction.TransactionManager()
    txn = manager.begin()
    inside, outside = people.open("plan", txn), people.open("", txn)
    assert people.open("plan", txn) is inside is not outside
    inside.root()["ann"].age = 31
    manager.commit()
    assert ages(people, "", "plan") == [30, 31]


def test_tasks_in_versions(people: objdb.DB) -> None:
    """Coroutines work in versions as threads do."""

    async def main() -> None:
        async with people.transaction(version="plan") as connection:
            connection.root()["ann"].age = 31
        connection = await people.aopen("plan")
        assert connection.root()["ann"].age == 31
        connection.close()

        async def grow(connection: objdb.Connection) -> None:
            connection.root()["ann"].age += 1

        await people.arun(grow, version="plan")
        with pytest.raises(VersionError):
            people.aopen("x" * 70_000)

    asyncio.run(main())
    assert ages(people, "", "plan") == [30, 32]


def test_several_databases(databases: Databases) -> None:
    """What is reached in another database of the group is seen in the same version."""
    group: dict[str, Any] = {}
    one = databases.open(None, databases=group, database_name="one")
    two = databases.open(None, databases=group, database_name="two")
    with one.transaction() as connection:
        other = connection.get_connection("two")
        other.root()["ann"] = connection.root()["ann"] = ann = Person(age=30)
        other.add(ann)
    with one.transaction(version="plan") as connection:
        connection.root()["ann"].age = 31
    assert two.versions() == ["plan"] and one.versions() == []
    assert ages(two, "", "plan") == ages(one, "", "plan") == [30, 31]


# -- what is refused


@pytest.mark.parametrize("name", ["x" * 70_000, "\ud800"])
def test_no_name(people: objdb.DB, name: str) -> None:
    """What can be no name of a version is refused by everything that takes one, at once."""
    for refuse in (
        people.open, people.commitVersion, people.abortVersion, people.versionEmpty,
        people.version_diff, lambda name: people.transaction(version=name).__enter__(),
        lambda name: people.commitVersion("plan", name),
    ):
        with pytest.raises(VersionError):
            refuse(name)
    transaction.commit()


def test_refused_at_once(people: objdb.DB) -> None:
    """Commits of nothing, or to itself, are refused when they are asked for."""
    for arguments in (("",), ("plan", "plan"), ("", "plan")):
        with pytest.raises(VersionCommitError):
            people.commitVersion(*arguments)
    for refuse in (people.abortVersion, people.versionEmpty, people.version_diff):
        with pytest.raises(VersionError):
            refuse("")
    for options in ({"version_pool_size": 0}, {"version_cache_size": -1}):
        with pytest.raises(UsageError):
            objdb.DB(None, **options)  # type: ignore[arg-type]


def test_unsupported() -> None:
    """Over a storage without versions everything about them is refused, by name."""
    with objdb.DB(ZODB.MappingStorage.MappingStorage()) as db:
        assert not db.supportsVersions()
        for refuse in (
            lambda: db.open("plan"), lambda: db.commitVersion("plan"), db.versions,
            lambda: db.abortVersion("plan"), lambda: db.versionEmpty("plan"),
            lambda: db.modifiedInVersion(bytes(8)), lambda: db.version_diff("plan"),
        ):
            with pytest.raises(Unsupported):
                refuse()


def test_read_only(tmp_path: Path) -> None:
    """A read-only database shows its versions, and commits and aborts none; it follows those of
    the process that writes."""
    with objdb.DB(tmp_path / "data.fs") as db:
        with db.transaction() as connection:
            connection.root()["ann"] = Person("Ann", age=30)
        change(db, "plan", age=31)
        with objdb.DB(objdb.FileStorage(tmp_path / "data.fs", read_only=True)) as reader:
            assert reader.versions() == ["plan"]
            assert ages(reader, "", "plan") == [30, 31]
            for refuse in (reader.commitVersion, reader.abortVersion):
                with pytest.raises(ReadOnlyError):
                    refuse("plan")
            change(db, "plan", age=32)
            assert ages(reader, "", "plan") == [30, 32]
            commit_version(db, "plan", "other")
            assert ages(reader, "", "plan", "other") == [30, 30, 32]
            assert reader.versions() == ["other"]
            commit_version(db, "other")
            assert ages(reader, "", "other") == [32, 32]
            assert reader.versions() == []


def test_pools_of_versions_without_changes_go(people: objdb.DB) -> None:
    """However many names of versions are opened, the pools that stay are those of versions with
    changes, those in use, and some."""
    change(people, "plan", age=31)
    used = people.open("used")
    kept = people.open("plan")
    kept.close()
    for number in range(200):
        people.open(f"visitor {number}").close()
    pools = people._version_pools
    assert len(pools._pools) < 40 and {"plan", "used"} <= pools._pools.keys()
    assert people.open("plan") is kept
    used.close()
    kept.close()


def test_a_connection_of_a_pool_that_went(people: objdb.DB) -> None:
    """A connection that was taken from a pool while that was let go is closed with its database."""
    pool = people._version_pools.of("plan")
    people.removeVersionPool("plan")
    connection = pool.take()
    assert pool in people._version_pools.all() and people._version_pools.of("plan") is not pool
    people.close()
    assert connection.pool is pool and pool._is_closed
