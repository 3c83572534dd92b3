"""Snapshots, conflicts and their resolution, savepoints."""

from __future__ import annotations

import pytest
import transaction
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree

import objdb
from objdb.storage.staging import SPOOL_BYTES
from tests.conftest import Databases
from tests.models import Counter, Person


class Two:
    """Two connections, each with transactions of its own."""

    def __init__(self, db: objdb.DB) -> None:
        self.managers = [transaction.TransactionManager() for _ in range(2)]
        self.a, self.b = (db.open(transaction_manager=manager) for manager in self.managers)

    def commit_a(self) -> None:
        self.managers[0].commit()

    def commit_b(self) -> None:
        self.managers[1].commit()

    def close(self) -> None:
        for manager, connection in zip(self.managers, (self.a, self.b), strict=True):
            manager.abort()
            connection.close()


@pytest.fixture
def two(db: objdb.DB):
    with db.transaction() as connection:
        root = connection.root()
        root["p"], root["q"], root["n"] = Person("p"), Person("q"), Counter()
        root["tree"], root["length"] = OOBTree(), Length()
    pair = Two(db)
    yield pair
    pair.close()


def test_snapshot_does_not_move(two: Two) -> None:
    """A transaction sees the database as it was at its begin, ghosts loaded late included."""
    assert two.b.root()["p"].name == "p"
    two.a.root()["p"].name = two.a.root()["q"].name = "new"
    two.commit_a()
    assert (two.b.root()["p"].name, two.b.root()["q"].name) == ("p", "q")
    two.managers[1].begin()
    assert (two.b.root()["p"].name, two.b.root()["q"].name) == ("new", "new")


def test_sync_moves_the_view(two: Two) -> None:
    """sync drops changes and shows the last transaction."""
    two.b.root()["q"].name = "dropped"
    two.a.root()["p"].name = "new"
    two.commit_a()
    two.b.sync()
    assert (two.b.root()["p"].name, two.b.root()["q"].name) == ("new", "q")


def test_conflict(two: Two) -> None:
    """The second to change an object gets a ConflictError that says all; after abort it sees
    the other's change and can go on."""
    two.a.root()["p"].name, two.b.root()["p"].name = "a", "b"
    base = two.b.root()["p"]._p_serial
    two.commit_a()
    with pytest.raises(objdb.ConflictError) as caught:
        two.commit_b()
    error = caught.value
    assert error.oid == two.a.root()["p"]._p_oid
    assert error.class_name == "tests.models.Person"
    assert error.serials == (two.a.root()["p"]._p_serial, base)
    assert "tests.models.Person" in str(error)
    two.managers[1].abort()
    assert two.b.root()["p"].name == "a"
    two.b.root()["p"].name = "b"
    two.commit_b()
    two.managers[0].begin()
    assert two.a.root()["p"].name == "b"


def test_resolved_conflict(two: Two) -> None:
    """Two additions to a Counter and a Length are merged, and both connections see the sum."""
    for connection, amount in ((two.a, 3), (two.b, 4)):
        connection.root()["n"].add(amount)
        connection.root()["length"].change(amount)
    two.commit_a()
    two.commit_b()
    for connection, manager in zip((two.a, two.b), two.managers, strict=True):
        manager.begin()
        assert connection.root()["n"].value == 7
        assert connection.root()["length"]() == 7


def test_tree_insertions_are_merged(two: Two) -> None:
    """Different keys of one bucket are merged, between full buckets as well; the same key is a
    conflict."""
    two.a.root()["tree"].update({i: Person(str(i)) for i in range(0, 400, 2)})
    two.commit_a()
    two.managers[1].begin()
    two.a.root()["tree"][101] = Person("a")
    two.b.root()["tree"][105] = Person("b")
    two.commit_a()
    two.commit_b()
    two.managers[0].begin()
    assert two.a.root()["tree"][101].name == "a" and two.a.root()["tree"][105].name == "b"
    two.managers[1].begin()
    two.a.root()["tree"][107], two.b.root()["tree"][107] = Person("a"), Person("b")
    two.commit_a()
    with pytest.raises(objdb.UnresolvableConflictError):
        two.commit_b()


def test_read_current(two: Two) -> None:
    """readCurrent makes a change of an object that was only read a ReadConflictError, if the
    transaction writes; without it that is no conflict."""
    for read_current in (False, True):
        two.managers[1].begin()
        if read_current:
            two.b.readCurrent(two.b.root()["p"])
        _ = two.b.root()["p"].name
        two.b.root()["q"].name = "b"
        two.a.root()["p"].name = f"a {read_current}"
        two.commit_a()
        if read_current:
            with pytest.raises(objdb.ReadConflictError):
                two.commit_b()
        else:
            two.commit_b()


def test_read_current_is_for_one_transaction(two: Two) -> None:
    """What had to be current in one transaction may change before the next one."""
    two.b.readCurrent(two.b.root()["p"])
    two.b.root()["q"].name = "b"
    two.commit_b()
    two.a.root()["p"].name = "a"
    two.commit_a()
    two.managers[1].begin()
    two.b.root()["q"].name = "b again"
    two.commit_b()


def test_a_failed_commit_takes_back_everything(two: Two) -> None:
    """After a conflict about one object, others that were changed with it are as before, too."""
    p, q = two.b.root()["p"], two.b.root()["q"]
    p.name = q.name = "b"
    two.a.root()["p"].name = "a"
    two.commit_a()
    with pytest.raises(objdb.ConflictError):
        two.commit_b()
    two.managers[1].abort()
    assert (p.name, q.name) == ("a", "q")


def test_own_changes_are_seen_and_kept(two: Two) -> None:
    """A transaction sees its own changes, and its objects stay loaded after its commit."""
    person = two.a.root()["p"]
    person.name = "mine"
    assert two.a.root()["p"].name == "mine"
    two.commit_a()
    assert person._p_changed is False


def test_savepoints_nest(db: objdb.DB) -> None:
    """Rolling back to a savepoint restores changed objects and un-creates new ones; an earlier
    one stays usable, a later one does not."""
    connection = db.open()
    root = connection.root()
    root["p"] = Person("0")
    transaction.commit()
    root["p"].name = "1"
    first = transaction.savepoint()
    root["p"].name = "2"
    root["new"] = new = Person("new")
    second = transaction.savepoint()
    root["p"].name = "3"
    second.rollback()
    assert (root["p"].name, root["new"].name) == ("2", "new")
    second.rollback()
    first.rollback()
    assert root["p"].name == "1"
    assert "new" not in root
    assert new._p_jar is None and new.name == "new"
    with pytest.raises(transaction.interfaces.InvalidSavepointRollbackError):
        second.rollback()
    transaction.commit()
    assert root["p"].name == "1"
    connection.close()


def test_savepoint_then_abort(db: objdb.DB) -> None:
    """An abort after savepoints drops all of the transaction; new objects are unsaved and whole,
    even if they had left memory."""
    connection = db.open()
    root = connection.root()
    root["p"] = person = Person("new")
    transaction.savepoint()
    connection.cacheMinimize()
    transaction.abort()
    assert (person._p_jar, person.name) == (None, "new")
    assert list(root) == []
    connection.close()


def test_savepoint_lets_objects_leave_memory(databases: Databases) -> None:
    """After a savepoint changed objects can become ghosts and come back with their changes; the
    commit stores what was put away, spooled by the storage as well."""
    db = databases.open("data.fs", cache_size=10)
    connection = db.open()
    tree = connection.root()["tree"] = OOBTree()
    size = SPOOL_BYTES // 100
    for i in range(150):
        tree[i] = Person(str(i), data=bytes([i]) * size)
        if i % 10 == 9:
            transaction.savepoint()
    loaded = [v for v in tree.values() if v._p_changed is not None]
    assert len(loaded) < 30
    assert tree[3].data == b"\3" * size
    tree[3].name = "changed again"
    transaction.commit()
    with db.transaction() as fresh:
        tree = fresh.root()["tree"]
        assert tree[3].name == "changed again"
        assert all(tree[i].data == bytes([i]) * size for i in range(150))
    connection.close()


def test_savepoint_conflict_at_the_end(two: Two) -> None:
    """A change that passed through a savepoint conflicts at commit like any other."""
    two.b.root()["p"].name = "b"
    two.managers[1].savepoint()
    two.a.root()["p"].name = "a"
    two.commit_a()
    with pytest.raises(objdb.ConflictError):
        two.commit_b()


def test_first_change_after_a_savepoint(db: objdb.DB) -> None:
    """A savepoint taken before a connection changed anything rolls it back to nothing."""
    connection = db.open()
    connection.root()["p"] = Person("0")
    transaction.commit()
    savepoint = transaction.savepoint()
    connection.root()["p"].name = "1"
    savepoint.rollback()
    assert connection.root()["p"].name == "0"
    connection.root()["p"].name = "2"
    transaction.commit()
    assert connection.root()["p"].name == "2"
    connection.close()


def test_notes_users_and_extensions_are_stored(db: objdb.DB) -> None:
    """User, description and extension of a transaction are in the storage's iterator."""
    with db.open() as connection:
        txn = transaction.get()
        txn.setUser("anna")
        txn.note("ein Fünfer")
        txn.setExtendedInfo("ticket", 7)
        connection.root()["p"] = Person()
        transaction.commit()
    last = list(db.storage.iterator())[-1]
    assert last.user.decode().strip("/ ") == "anna"
    assert last.description.decode() == "ein Fünfer"
    assert last.extension == {"ticket": 7}


def test_cross_database(databases: Databases) -> None:
    """Objects refer across databases of one group, strongly and weakly, and one commit stores
    both; outside the group it is refused."""
    group: dict = {}
    one = databases.open(None, databases=group, database_name="one")
    two = databases.open(None, databases=group, database_name="two")
    connection = one.open()
    other = connection.get_connection("two")
    assert other.get_connection("one") is connection
    other.root()["p"] = Person("over there")
    other.add(other.root()["p"])  # or it would belong to the first database that stores it
    connection.root()["p"] = other.root()["p"]
    connection.root()["w"] = objdb.WeakRef(other.root()["p"])
    transaction.commit()
    connection.close()
    with pytest.raises(objdb.ConnectionStateError):
        _ = other.root()["q"]
    with one.transaction() as fresh:
        assert fresh.root()["p"].name == "over there"
        assert fresh.root()["w"]().name == "over there"
        assert fresh.root()["p"]._p_jar.db() is two
    stranger = databases.open(None)
    with stranger.open() as third, one.open() as connection:
        connection.root()["bad"] = third.root()
        with pytest.raises(objdb.InvalidObjectReference, match="not in the same group"):
            transaction.commit()
        transaction.abort()
        with one.open() as again:
            connection.root()["bad"] = again.root()
            with pytest.raises(objdb.InvalidObjectReference, match="another connection of the"):
                transaction.commit()
            transaction.abort()
