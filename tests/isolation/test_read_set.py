"""Serializable transactions: what counts as read, whatever happens to the cache meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree

import objdb
from tests.conftest import Databases
from tests.models import Counter, Person

PEOPLE = 10


class Party:
    """A serializable connection with transactions of its own."""

    def __init__(self, db: objdb.DB, isolation: str = "serializable") -> None:
        self.manager = transaction.TransactionManager()
        self.connection = db.open(transaction_manager=self.manager, isolation=isolation)
        self.root = self.connection.root()

    def commit(self) -> None:
        self.manager.commit()

    def close(self) -> None:
        self.manager.abort()
        self.connection.close()


@pytest.fixture
def db(databases: Databases, where: Any) -> objdb.DB:
    db = databases.open(where)
    with db.transaction() as connection:
        root = connection.root()
        root["people"] = [Person(str(i), data=0) for i in range(PEOPLE)]
        root["tree"] = OOBTree({f"key{i:03}": Person(str(i), data=0) for i in range(200)})
        root["mine"], root["counter"] = Person("mine", data=0), Counter()
    return db


@pytest.fixture(params=[None, "data.fs"], ids=["memory", "file"])
def where(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def party(db: objdb.DB) -> Iterator[Party]:
    party = Party(db)
    yield party
    party.close()


def change(db: objdb.DB, path: Callable[[Any], Any]) -> None:
    """Let somebody else change an object."""
    with db.transaction() as connection:
        path(connection.root()).data += 1


def first(root: Any) -> Any:
    return root["people"][0]


def refused(party: Party) -> None:
    """The commit of a change fails, since something that was read has changed."""
    party.root["mine"].data += 1
    with pytest.raises(objdb.ReadConflictError):
        party.commit()
    party.manager.abort()


def test_what_was_loaded_is_read(db: objdb.DB, party: Party) -> None:
    """An object loaded in the transaction must not have changed at its commit; the error names
    it."""
    assert first(party.root).data == 0
    change(db, first)
    party.root["mine"].data += 1
    with pytest.raises(objdb.ReadConflictError) as caught:
        party.commit()
    assert caught.value.oid == first(party.root)._p_oid
    assert caught.value.class_name == "tests.models.Person"
    party.manager.abort()
    assert first(party.root).data == 1


def test_what_was_touched_is_read(db: objdb.DB, party: Party) -> None:
    """So must one that was in the cache already; and one that was not touched may change."""
    for person in party.root["people"]:
        assert person.data == 0
    party.manager.abort()
    assert party.root["people"][1].data == 0
    change(db, first)
    party.root["mine"].data += 1
    party.commit()
    assert first(party.root).data == 1
    change(db, first)
    refused(party)


def test_readers_never_fail(db: objdb.DB, party: Party) -> None:
    """A transaction that writes nothing commits, whatever changed."""
    assert first(party.root).data == 0
    change(db, first)
    party.commit()
    assert first(party.root).data == 1


@pytest.mark.parametrize(
    "empty",
    [
        lambda party: party.connection.cacheMinimize(),
        lambda party: party.connection.cacheGC(),
        lambda party: party.manager.savepoint(),
        lambda party: party.manager.savepoint().rollback(),
        lambda party: party.connection.db().cacheMinimize(),
    ],
    ids=["minimize", "gc", "savepoint", "rollback", "of the database"],
)
@pytest.mark.parametrize("is_hot", [False, True], ids=["loaded", "touched"])
def test_what_leaves_the_cache_was_read(
    db: objdb.DB, party: Party, empty: Callable[[Party], None], is_hot: bool
) -> None:
    """What was read counts, when the cache has been emptied since."""
    db.setCacheSize(1)
    if is_hot:
        assert first(party.root).data == 0
        party.manager.begin()
    party.root["mine"].data += 1
    assert first(party.root).data == 0
    empty(party)
    change(db, first)
    refused(party)


@pytest.mark.parametrize("is_hot", [False, True], ids=["loaded", "touched"])
def test_what_the_program_deactivates_was_read(
    db: objdb.DB, party: Party, is_hot: bool
) -> None:
    """What a program deactivates by itself counts too; without changes by others all is well."""
    if is_hot:
        assert first(party.root).data == 0
        party.manager.begin()
    assert first(party.root).data == 0
    first(party.root)._p_deactivate()
    party.root["mine"].data += 1
    party.commit()
    if is_hot:
        assert first(party.root).data == 0
        party.manager.begin()
    assert first(party.root).data == 0
    first(party.root)._p_deactivate()
    change(db, first)
    refused(party)


def test_a_full_cache_is_no_conflict(databases: Databases, where: Any) -> None:
    """What leaves a full cache between two transactions is no reading: somebody else's change of
    another object is in nobody's way."""
    db = databases.open(where, cache_size=5)
    with db.transaction() as connection:
        connection.root()["people"] = [Person(str(i), data=0) for i in range(50)]
        connection.root()["mine"] = Person("mine", data=0)
    party = Party(db)
    for _ in range(3):
        assert sum(person.data for person in party.root["people"]) == 0
        party.commit()  # the next transaction begins by itself
        change(db, lambda root: root["people"][49])
        party.root["mine"].data += 1
        party.commit()
        with db.transaction() as connection:
            connection.root()["people"][49].data = 0
        party.manager.begin()
    party.close()


def test_a_change_taken_back_was_read(db: objdb.DB, party: Party) -> None:
    """An object whose change is rolled back was read all the same."""
    savepoint = party.manager.savepoint()
    first(party.root).data += 5
    savepoint.rollback()
    change(db, first)
    refused(party)


def test_keys_and_ranges_are_read(db: objdb.DB, party: Party) -> None:
    """A key that is not in a tree, and a range of it, are read with the buckets they would be
    in: no phantoms."""
    for look in (
        lambda tree: tree.get("key100a"), lambda tree: list(tree.keys("key090", "key110")),
        lambda tree: "key100a" in tree,
    ):
        look(party.root["tree"])
        with db.transaction() as connection:
            connection.root()["tree"]["key100a"] = Person("phantom", data=0)
        refused(party)
        with db.transaction() as connection:
            del connection.root()["tree"]["key100a"]
        party.manager.begin()
        party.root["tree"].get("key001")
        with db.transaction() as connection:
            connection.root()["tree"]["key190"] = Person("elsewhere", data=0)
        party.root["mine"].data += 1
        party.commit()


def test_written_objects_are_read(db: objdb.DB, party: Party) -> None:
    """A class's merge is not used: a transaction may have acted on what it read."""
    party.root["counter"].add(1)
    with db.transaction() as connection:
        connection.root()["counter"].add(1)
    with pytest.raises(objdb.ConflictError) as caught:
        party.commit()
    assert not isinstance(caught.value, objdb.ReadConflictError)
    party.manager.abort()
    assert party.root["counter"].value == 1


class LateParticipant:
    """Somebody else's data manager, which calls *action* when it is to commit, after the
    connections."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def sortKey(self) -> str:
        return "~late"

    def commit(self, txn: Any) -> None:
        self.action()

    def nothing(self, txn: Any) -> None:
        """Do nothing in the other phases."""

    tpc_begin = tpc_vote = tpc_finish = tpc_abort = abort = nothing


@pytest.mark.parametrize("is_hot", [False, True], ids=["loaded", "touched"])
@pytest.mark.parametrize("changes_too", [False, True], ids=["reads", "changes"])
def test_what_another_participant_reads(
    db: objdb.DB, party: Party, is_hot: bool, changes_too: bool
) -> None:
    """What another participant's commit reads through the connection counts, and what it
    relies on when it changes something."""

    def act() -> None:
        if first(party.root).data == 0 and changes_too:
            party.root["people"][1].data += 1

    for changed_meanwhile in (False, True):
        if is_hot:
            assert first(party.root).data == 0
            party.manager.begin()
        party.root["mine"].data += 1
        party.manager.get().join(LateParticipant(act))
        if not changed_meanwhile:
            party.commit()
            continue
        change(db, first)
        with pytest.raises(objdb.ReadConflictError) as caught:
            party.commit()
        assert caught.value.oid == first(party.root)._p_oid
        party.manager.abort()


def test_retries_succeed(databases: Databases, where: Any) -> None:
    """`db.run` tries again after a read conflict."""
    db = databases.open(f"{where}2" if where else None, isolation="serializable")
    with db.transaction() as connection:
        connection.root()["people"] = [Person("read", data=0), Person("written", data=0)]
    tries = []

    def copy(connection: objdb.Connection) -> None:
        read, written = connection.root()["people"]
        written.data = read.data
        tries.append(read.data)
        if len(tries) == 1:
            manager = transaction.TransactionManager()
            with db.open(transaction_manager=manager) as other:
                other.root()["people"][0].data = 7
                manager.commit()

    db.run(copy)
    assert tries == [0, 7]
    with db.transaction() as connection:
        assert connection.root()["people"][1].data == 7


def test_two_databases(databases: Databases) -> None:
    """What was read from another database of the group is checked, though nothing is written
    there."""
    group: dict[str, Any] = {}
    one = databases.open("one.fs", databases=group, database_name="one")
    two = databases.open("two.fs", databases=group, database_name="two")
    for db in (one, two):
        with db.transaction() as connection:
            connection.root()["people"] = [Person("p", data=0)]
            connection.root()["mine"] = Person("mine", data=0)
    for reads_first in (True, False):
        party = Party(one)
        if reads_first:
            assert first(party.connection.get_connection("two").root()).data >= 0
            party.root["mine"].data += 1
        else:
            party.root["mine"].data += 1
            assert first(party.connection.get_connection("two").root()).data >= 0
        change(two, first)
        with pytest.raises(objdb.ReadConflictError):
            party.commit()
        party.close()


def test_modes_side_by_side(db: objdb.DB) -> None:
    """A connection has the mode it was opened in; the pool hands it out in any. An unknown mode
    is refused with the modes there are."""
    for isolation in ("serializable", "snapshot", "serializable"):
        party = Party(db, isolation)
        assert party.connection.isolation == isolation
        assert first(party.root).data >= 0
        change(db, first)
        if isolation == "snapshot":
            party.root["mine"].data += 1
            party.commit()
        else:
            refused(party)
        party.close()
    with pytest.raises(objdb.UsageError, match=r"snapshot.*serializable"):
        db.open(isolation="chaos")
    with pytest.raises(objdb.UsageError, match="chaos"):
        objdb.DB(None, isolation="chaos")
    with pytest.raises(objdb.UsageError, match="chaos"):
        objdb.DB("memory:?isolation=chaos")
    with objdb.DB("memory:?isolation=serializable") as other, other.open() as connection:
        assert connection.isolation == "serializable"
