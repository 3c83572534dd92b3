"""Databases with versions: connections in them, what they see of one another, pools, requests."""

from __future__ import annotations

from typing import Any

import BTrees.OOBTree
import pytest
import transaction

import objdb
from objdb.errors import (
    ConflictError,
    ConnectionStateError,
    POSKeyError,
    ReadConflictError,
    VersionLockError,
)
from tests.conftest import Databases
from tests.models import Counter, Person


def change(db: objdb.DB, version: str = "", **attributes: Any) -> None:
    """Change Ann."""
    with db.transaction(version=version) as connection:
        for name, value in attributes.items():
            setattr(connection.root()["ann"], name, value)


def ages(db: objdb.DB, *versions: str) -> list[int]:
    """Ann's age in these versions."""
    found = []
    for version in versions:
        with db.transaction(version=version) as connection:
            found.append(connection.root()["ann"].age)
    return found


def commit_version(db: objdb.DB, *arguments: Any) -> None:
    db.commitVersion(*arguments)
    transaction.commit()


def abort_version(db: objdb.DB, version: str) -> None:
    db.abortVersion(version)
    transaction.commit()


def test_work_apart(people: objdb.DB) -> None:
    """What is changed and created in a version is seen there, and everywhere when it is
    committed."""
    with people.transaction(version="plan") as connection:
        assert connection.getVersion() == "plan"
        root = connection.root()
        root["ann"].age = 31
        root["tree"] = BTrees.OOBTree.OOBTree({i: Person(str(i)) for i in range(100)})
    with people.transaction() as connection:
        assert connection.getVersion() == ""
        assert connection.root()["ann"].age == 30
        assert "tree" not in connection.root()
    assert people.versions() == ["plan"] and not people.versionEmpty("plan")
    commit_version(people, "plan")
    with people.transaction() as connection:
        assert connection.root()["ann"].age == 31
        assert [person.name for person in connection.root()["tree"].values()] == [
            str(i) for i in range(100)
        ]
    assert people.versions() == [] and people.versionEmpty("plan")


def test_abort(people: objdb.DB) -> None:
    """After an abort nothing of the version is left, in connections that are open too."""
    manager = transaction.TransactionManager()
    with people.open("plan", transaction_manager=manager) as connection:
        connection.root()["ann"].age = 31
        connection.root()["bob"] = bob = Person("Bob")
        manager.commit()
        oid = bob._p_oid
        abort_version(people, "plan")
        manager.begin()
        assert connection.root()["ann"].age == 30
        assert "bob" not in connection.root()
        connection.cacheMinimize()
        with pytest.raises(POSKeyError):
            _ = bob.name
        assert people.modifiedInVersion(connection.root()["ann"]._p_oid) == ""
        with pytest.raises(POSKeyError):
            connection.get(oid)._p_activate()


def test_locked(people: objdb.DB) -> None:
    """What is changed in a version cannot be changed elsewhere, nor is trying again any use."""
    change(people, "plan", age=31)
    tries = []
    for version in ("", "another"):
        with pytest.raises(VersionLockError) as caught:
            for attempt in people.attempts(3, version=version):
                with attempt as connection:
                    tries.append(version)
                    connection.root()["ann"].age = 99
        assert caught.value.version == "plan"
        assert people.modifiedInVersion(caught.value.oid or b"") == "plan"
    assert tries == ["", "another"]
    assert not isinstance(caught.value, ConflictError)
    assert ages(people, "", "plan", "another") == [30, 31, 30]


def test_other_objects_are_free(people: objdb.DB) -> None:
    """What is not changed in a version can be changed outside, and is seen in the version."""
    with people.transaction() as connection:
        connection.root()["ann"].friend = Person("Bob", age=50)
    change(people, "plan", age=31)
    with people.transaction() as connection:
        connection.root()["ann"].friend.age = 51
    with people.transaction(version="plan") as connection:
        assert connection.root()["ann"].friend.age == 51


def test_snapshots(people: objdb.DB) -> None:
    """A connection in a version sees one moment, whatever is committed in it and outside."""
    managers = [transaction.TransactionManager() for _ in range(2)]
    inside = people.open("plan", transaction_manager=managers[0])
    outside = people.open(transaction_manager=managers[1])
    seen = []

    def look() -> None:
        for connection in (inside, outside):
            connection.cacheMinimize()
        seen.append((inside.root()["ann"].age, outside.root()["ann"].age))

    look()
    change(people, "plan", age=31)
    commit_version(people, "plan")
    change(people, "plan", age=32)
    look()
    for manager in managers:
        manager.begin()
    look()
    commit_version(people, "plan", "better")
    look()
    for manager in managers:
        manager.begin()
    look()
    assert seen == [(30, 30), (30, 30), (32, 31), (32, 31), (31, 31)]
    for connection in (inside, outside):
        connection.close()


def test_whom_a_commit_invalidates(people: objdb.DB) -> None:
    """A commit in a version makes ghosts in its own connections only; one outside, in all."""
    managers = {version: transaction.TransactionManager() for version in ("", "plan", "other")}
    connections = {
        version: people.open(version, transaction_manager=manager)
        for version, manager in managers.items()
    }

    def ghosts() -> list[str]:
        """Begin in all; say where Ann became a ghost, and load her again."""
        found = []
        for version, connection in connections.items():
            managers[version].begin()
            ann = connection.root()["ann"]
            if ann._p_changed is None:
                found.append(version)
            ann._p_activate()
        return found

    ghosts()
    change(people, age=31)
    assert ghosts() == ["", "plan", "other"]
    change(people, "plan", age=32)
    assert ghosts() == ["plan"]
    commit_version(people, "plan", "other")
    assert ghosts() == ["plan", "other"]
    commit_version(people, "other")
    assert ghosts() == ["", "plan", "other"]
    for connection in connections.values():
        connection.close()


def test_new_members_of_a_version_at_the_vote(people: objdb.DB) -> None:
    """What joins a version while it is being committed is committed with it, and seen."""
    class Late:
        """Changes another object in the version, before anybody votes."""

        transaction_manager = None

        def sortKey(self) -> str:
            return "~~~"

        def tpc_begin(self, txn: Any) -> None: ...
        def tpc_vote(self, txn: Any) -> None: ...
        def tpc_finish(self, txn: Any) -> None: ...
        def tpc_abort(self, txn: Any) -> None: ...
        def abort(self, txn: Any) -> None: ...

        def commit(self, txn: Any) -> None:
            with people.transaction(version="plan") as connection:
                connection.root()["late"] = 1

    change(people, "plan", age=31)
    manager = transaction.TransactionManager()
    with people.open(transaction_manager=manager) as watcher:
        watcher.root()["ann"]._p_activate()
        people.commitVersion("plan")
        transaction.get().join(Late())
        transaction.commit()
        manager.begin()
        assert watcher.root()["late"] == 1 and watcher.root()["ann"].age == 31
    assert people.versions() == []


def test_conflicts_in_a_version(people: objdb.DB) -> None:
    """Two in one version conflict as two outside do, and are merged as they are."""
    with people.transaction() as connection:
        connection.root()["count"] = Counter()
    managers = [transaction.TransactionManager() for _ in range(2)]
    first, second = (people.open("plan", transaction_manager=manager) for manager in managers)
    for connection in (first, second):
        connection.root()["count"].add(1)
    for manager in managers:
        manager.commit()
    for connection, age in ((first, 31), (second, 32)):
        connection.root()["ann"].age = age
    managers[0].commit()
    with pytest.raises(ConflictError):
        managers[1].commit()
    managers[1].abort()
    assert second.root()["count"].value == 2 and second.root()["ann"].age == 31
    first.close()
    second.close()
    with people.transaction() as connection:
        assert connection.root()["count"].value == 0


def test_serializable_in_versions(databases: Databases) -> None:
    """What was read outside is not changed by a version; what was read in it is."""
    db = databases.open(None, isolation="serializable")
    with db.transaction() as connection:
        connection.root()["ann"], connection.root()["bob"] = Person(age=1), Person(age=1)
    for version in ("", "plan"):
        manager = transaction.TransactionManager()
        with db.open(version, transaction_manager=manager) as connection:
            connection.root()["bob"].age = connection.root()["ann"].age + 1
            change(db, "plan", age=5)
            if version:
                with pytest.raises(ReadConflictError):
                    manager.commit()
                manager.abort()
            else:
                manager.commit()
                abort_version(db, "plan")


def test_read_current_in_versions(databases: Databases) -> None:
    """In the read-current mode, too, a version shows what is in it."""
    db = databases.open(None, isolation="read-current")
    with db.transaction() as connection:
        connection.root()["ann"] = Person(age=1)
    change(db, "plan", age=2)
    assert ages(db, "", "plan") == [1, 2]


def test_savepoints_in_a_version(people: objdb.DB) -> None:
    """Savepoints put away what belongs to the version."""
    manager = transaction.TransactionManager()
    with people.open("plan", transaction_manager=manager) as connection:
        connection.root()["ann"].age = 31
        savepoint = manager.savepoint()
        connection.root()["ann"].age = 32
        savepoint.rollback()
        assert connection.root()["ann"].age == 31
        manager.savepoint()
        connection.cacheMinimize()
        manager.commit()
    assert ages(people, "", "plan") == [30, 31]


def test_the_past_of_a_version(people: objdb.DB) -> None:
    """A connection to the past shows a version as it was."""
    change(people, "plan", age=31)
    then = people.storage.lastTransaction()
    change(people, "plan", age=32)
    commit_version(people, "plan")
    for version, expected in (("plan", 31), ("", 30)):
        with people.open(version, at=then) as connection:
            assert connection.root()["ann"].age == expected


def test_requests_in_one_transaction(people: objdb.DB) -> None:
    """Versions are committed and aborted when the transaction is, and not when that is aborted
    or rolled back."""
    change(people, "plan", age=31)
    with people.transaction(version="other") as connection:
        connection.root()["bob"] = Person("Bob")
    people.commitVersion("plan")
    transaction.abort()
    assert people.versions() == ["other", "plan"]
    people.commitVersion("plan")
    savepoint = transaction.savepoint()
    people.abortVersion("other")
    savepoint.rollback()
    transaction.commit()
    assert people.versions() == ["other"]
    assert ages(people, "") == [31]
    mine = transaction.TransactionManager(explicit=True)
    with mine as txn:
        people.commitVersion("other", "plan", txn)
    assert people.versions() == ["plan"]


def test_undo_of_a_version_commit(people: objdb.DB) -> None:
    """Undoing the commit of a version is seen by everybody, and so is redoing it."""
    change(people, "plan", age=31)
    commit_version(people, "plan")
    for expected, versions in (([30, 31], ["plan"]), ([31, 31], [])):
        people.undo(people.undoLog()[0]["id"])
        transaction.commit()
        assert ages(people, "", "plan") == expected
        assert people.versions() == versions


def test_two_connections_in_one_transaction(people: objdb.DB) -> None:
    """One transaction can change a version and what is outside; not the same object."""
    with people.transaction() as connection:
        connection.root()["bob"] = Person("Bob", age=50)
    manager = transaction.TransactionManager()
    inside, outside = (people.open(v, transaction_manager=manager) for v in ("plan", ""))
    inside.root()["ann"].age, outside.root()["bob"].age = 31, 51
    manager.commit()
    inside.root()["bob"].age, outside.root()["bob"].age = 52, 53
    with pytest.raises(ConnectionStateError, match="two connections"):
        manager.commit()
    manager.abort()
    inside.close()
    outside.close()
    with people.transaction(version="plan") as connection:
        assert (connection.root()["ann"].age, connection.root()["bob"].age) == (31, 51)


def test_diff(people: objdb.DB) -> None:
    """version_diff lists what was changed and created, how, and by whom."""
    manager = transaction.TransactionManager()
    with people.open("plan", transaction_manager=manager) as connection:
        for user, age in (("tom", 31), ("sue", 32)):
            manager.begin().setUser(user)
            connection.root()["ann"].age = age
            manager.commit()
        manager.get().note("Bob as well")
        connection.root()["ann"].friend = Person("Bob")
        manager.commit()
    with people.transaction(version="other") as connection:
        connection.root()["eve"] = 1
    ann, bob = people.version_diff("plan")
    assert ann.class_name == "tests.models.Person" and not ann.is_new
    assert ann.attributes["age"] == (30, 32)
    assert ann.attributes["friend"][0] is ... and ann.attributes["friend"][1].oid == bob.oid
    assert [entry["user_name"] for entry in ann.by] == ["", "/ sue", "/ tom"]
    assert ann.by[0]["description"] == "Bob as well"
    assert bob.is_new and bob.attributes["name"] == (..., "Bob")
    commit_version(people, "plan", "better")
    assert people.version_diff("plan") == []
    assert [change.oid for change in people.version_diff("better")] == [ann.oid, bob.oid]
    assert len(people.version_diff("better")[0].by) == 4
