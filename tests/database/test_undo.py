"""Undoing through the database: requests in transactions, and what connections see of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import transaction
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree
from zope.interface import implementer_only

import objdb
from objdb.ids import ROOT_OID, next_tid
from objdb.interfaces import IStorage
from tests.conftest import Databases
from tests.database.staging import Gate, Worker
from tests.models import Counter, Person


def log(db: objdb.DB) -> list[str]:
    """The ids of all transactions, newest first."""
    return [entry["id"] for entry in db.undoLog(0, -1000)]


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    """Three transactions: Ann is made, is 30, is 31."""
    with db.transaction("made") as connection:
        connection.root()["ann"] = Person("Ann")
    for age in (30, 31):
        with db.transaction(f"now {age}") as connection:
            connection.root()["ann"].age = age
    return db


def test_undo(people: objdb.DB) -> None:
    """An undo takes effect when the current transaction commits, in all connections, those of
    this thread as well, and those of others when their next transaction begins."""
    mine = people.open()
    manager = transaction.TransactionManager()
    other = people.open(transaction_manager=manager)
    ann, theirs = mine.root()["ann"], other.root()["ann"]
    assert (ann.age, theirs.age) == (31, 31)
    people.undo(log(people)[0])
    assert ann.age == 31
    transaction.commit()
    assert ann.age == 30
    assert theirs.age == 31
    manager.begin()
    assert theirs.age == 30
    mine.close()
    other.close()


def test_an_aborted_request(people: objdb.DB) -> None:
    """What was asked for in a transaction that is aborted does not happen."""
    people.undo(log(people)[0])
    transaction.abort()
    transaction.commit()
    assert len(log(people)) == 4
    with people.transaction() as connection:
        assert connection.root()["ann"].age == 31


def test_redo(people: objdb.DB) -> None:
    """The undo is a transaction with a note of its own, and can be undone."""
    with people.transaction() as connection:
        ann = connection.root()["ann"]
    for age in (30, 31, 30, 31):
        transaction.get().note(f"back to {age}")
        transaction.get().setUser("anna")
        transaction.get().setExtendedInfo("because", age)
        people.undo(log(people)[0])
        transaction.commit()
        entry = people.undoLog(0, 1)[0]
        assert (entry["description"], entry["because"]) == (f"back to {age}", age)
        assert "anna" in entry["user_name"]
        assert {"_crc32", "_objdb_position"}.isdisjoint(entry)
        with people.transaction() as connection:
            ann = connection.root()["ann"]
            assert ann.age == age


def test_given_transaction(people: objdb.DB) -> None:
    """The request joins the transaction it is given."""
    manager = transaction.TransactionManager()
    people.undo(log(people)[0], manager.get())
    transaction.commit()
    assert len(log(people)) == 4
    manager.commit()
    assert len(log(people)) == 5


def test_in_a_block(people: objdb.DB) -> None:
    """In a block with a transaction of its own, the request is given that one; a function that is
    tried again requests again."""
    moved = log(people)[0]
    with people.transaction() as connection:
        connection.root()["ben"] = Person("Ben")
    with people.transaction("by a block") as connection:
        people.undo(moved, connection.transaction_manager.get())
        connection.root()["ben"].age = 1
    undone, tries = people.undoLog()[0], []
    assert undone["description"] == "by a block"

    def redo(connection: objdb.Connection) -> None:
        tries.append(1)
        people.undo(undone["id"], connection.transaction_manager.get())
        connection.root()["tries"] = len(tries)
        if len(tries) == 1:
            with people.transaction() as other:
                other.root()["other"] = 1

    people.run(redo)
    with people.transaction() as connection:
        root = connection.root()
        assert (root["ann"].age, root["tries"], root["other"]) == (31, 2, 1)
        assert not hasattr(root["ben"], "age")


def test_undo_multiple(people: objdb.DB) -> None:
    """Several are undone in one transaction, the newest first, whatever their order."""
    ids = log(people)[:3]
    people.undoMultiple([ids[1], ids[2], ids[0], ids[1]])
    transaction.commit()
    with people.transaction() as connection:
        assert dict(connection.root()) == {}
    people.undo(log(people)[0])
    transaction.commit()
    with people.transaction() as connection:
        assert connection.root()["ann"].age == 31


def test_requests_add_up(people: objdb.DB) -> None:
    """Calls in one transaction are one request; a savepoint goes back to what it was."""
    ids = log(people)
    people.undo(ids[1])
    savepoint = transaction.savepoint()
    people.undo(ids[2])
    savepoint.rollback()
    people.undo(ids[0])
    transaction.commit()
    with people.transaction() as connection:
        assert not hasattr(connection.root()["ann"], "age")


def test_a_savepoint_before_the_request(people: objdb.DB) -> None:
    """Rolling back to a savepoint from before drops the request; another one can follow."""
    savepoint = transaction.savepoint()
    people.undo(log(people)[1])
    savepoint.rollback()
    people.undo(log(people)[0])
    transaction.commit()
    with people.transaction() as connection:
        assert connection.root()["ann"].age == 30


def test_undo_and_changes_together(people: objdb.DB) -> None:
    """Objects can be changed in the transaction that undoes; the same object cannot."""
    connection = people.open()
    root = connection.root()
    root["ben"] = Person("Ben")
    people.undo(log(people)[0])
    transaction.commit()
    assert (root["ann"].age, root["ben"].name) == (30, "Ben")
    root["ann"].age = 99
    people.undo(log(people)[2])
    with pytest.raises(objdb.UndoError, match="changed in the same transaction"):
        transaction.commit()
    transaction.abort()
    assert root["ann"].age == 30
    connection.close()


def test_uncreated_objects(people: objdb.DB) -> None:
    """An object whose creation was undone is gone; the past still has it; redo brings it back."""
    with people.transaction() as connection:
        connection.root()["ben"] = Person("Ben")
    tid = people.storage.lastTransaction()
    connection = people.open()
    ben = connection.root()["ben"]
    people.undo(log(people)[0])
    transaction.commit()
    assert "ben" not in connection.root()
    with pytest.raises(objdb.POSKeyError):
        _ = ben.name
    with people.open(at=tid) as past:
        assert past.root()["ben"].name == "Ben"
    people.undo(log(people)[0])
    transaction.commit()
    assert connection.root()["ben"] is ben and ben.name == "Ben"
    connection.close()


def test_merges(db: objdb.DB) -> None:
    """What classes merge is undone though others went on: counters, lengths, trees."""
    with db.transaction() as connection:
        connection.root()["tree"] = OOBTree({f"key {i}": i for i in range(20)})
        connection.root()["counter"], connection.root()["length"] = Counter(), Length(20)
    for i in range(3):
        with db.transaction() as connection:
            root = connection.root()
            root["tree"][f"new {i}"] = i
            root["counter"].add(10**i)
            root["length"].change(1)
    db.undo(log(db)[1])
    transaction.commit()
    with db.transaction() as connection:
        root = connection.root()
        assert sorted(set(root["tree"]) - {f"key {i}" for i in range(20)}) == ["new 0", "new 2"]
        assert (root["counter"].value, root["length"]()) == (101, 22)


def test_obstacles(people: objdb.DB) -> None:
    """What cannot be undone is an error at the commit with object and class; all obstacles are
    listed; nothing is changed; the transaction can be aborted, and the next one goes on."""
    with people.transaction() as connection:
        connection.root()["ben"] = Person("Ben", age=1)
    with people.transaction() as connection:
        connection.root()["ann"].age = connection.root()["ben"].age = 50
    with people.transaction() as connection:
        connection.root()["ann"].age = 51
    people.undo(log(people)[1])
    with pytest.raises(objdb.UndoError, match="Person cannot be merged") as caught:
        transaction.commit()
    with people.transaction() as connection:
        assert caught.value.oid == connection.root()["ann"]._p_oid
        connection.root()["ben"].age = 51
    transaction.abort()
    people.undo(log(people)[2])
    with pytest.raises(objdb.MultipleUndoErrors) as several:
        transaction.commit()
    transaction.abort()
    error = pickle.loads(pickle.dumps(several.value))
    assert len(error.reasons) == 2 and caught.value.oid in dict(error.reasons)
    with people.transaction() as connection:
        assert {connection.root()[name].age for name in ("ann", "ben")} == {51}


@pytest.mark.parametrize("transaction_id", ["nonsense", b"", "AAAAAAAAAAE=", b"\0" * 8])
def test_ids_that_are_none(people: objdb.DB, transaction_id: Any) -> None:
    """Malformed and unknown ids are told by the commit, and nothing is changed."""
    people.undoMultiple([log(people)[0], transaction_id])
    with pytest.raises(objdb.UndoError):
        transaction.commit()
    transaction.abort()
    assert len(log(people)) == 4


def test_ids_of_another_database(people: objdb.DB, databases: Databases) -> None:
    """An id of another database is unknown here."""
    other = databases.open("other.fs")
    people.undo(log(other)[0])
    with pytest.raises(objdb.UndoError, match="no such transaction"):
        transaction.commit()
    transaction.abort()


def test_changed_while_committing(people: objdb.DB) -> None:
    """A commit of others that comes between the request's commit and its vote is seen."""
    gate, original = Gate(), people.storage.undo

    def gated(*arguments: Any) -> Any:
        result = original(*arguments)
        gate.pass_through()
        return result

    def undo() -> None:
        people.undo(log(people)[0])
        try:
            transaction.commit()
        finally:
            transaction.abort()

    people.storage.undo = gated
    worker = Worker(undo)
    gate.wait_until_reached()
    with people.transaction() as connection:
        connection.root()["ann"].age = 99
    gate.open()
    with pytest.raises(objdb.UndoError):
        worker.finish()
    with people.transaction() as connection:
        assert connection.root()["ann"].age == 99


def test_a_stale_connection_after_an_undo(people: objdb.DB) -> None:
    """A change that began before an undo of the same object conflicts, and can be tried again."""
    ids = log(people)
    manager = transaction.TransactionManager()
    connection = people.open(transaction_manager=manager)
    manager.begin()
    connection.root()["ann"].age += 100
    people.undo(ids[0])
    transaction.commit()
    with pytest.raises(objdb.ConflictError):
        manager.commit()
    manager.abort()
    connection.root()["ann"].age += 100
    manager.commit()
    connection.close()
    with people.transaction() as again:
        assert again.root()["ann"].age == 130


def test_several_databases(databases: Databases) -> None:
    """One transaction undoes in two databases."""
    both = [databases.open("one.fs"), databases.open("two.fs")]
    for db in both:
        with db.transaction() as connection:
            connection.root()["x"] = 1
    for db in both:
        db.undo(log(db)[0])
    transaction.commit()
    for db in both:
        with db.transaction() as connection:
            assert "x" not in connection.root()


def test_the_root_stays(people: objdb.DB) -> None:
    """The transaction that made the database cannot be undone."""
    people.undo(log(people)[-1])
    with pytest.raises(objdb.UndoError):
        transaction.commit()
    transaction.abort()


def test_preview(people: objdb.DB) -> None:
    """The preview says which attributes of which objects would change, and what is in the way."""
    ids = log(people)
    changes, obstacles = people.undo_preview(ids[0])
    assert obstacles == []
    [change] = changes
    assert (change.class_name, change.attributes) == ("tests.models.Person", {"age": (31, 30)})
    [change] = people.undo_preview([ids[1], ids[0]]).changes
    assert change.attributes == {"age": (31, ...)}
    both = people.undo_preview(ids[:3])
    assert both.obstacles == [] and len(both.changes) == 2
    ann = next(change for change in both.changes if change.oid != ROOT_OID)
    assert ann.then is None and ann.attributes == {"name": ("Ann", ...), "age": (31, ...)}
    changes, obstacles = people.undo_preview([ids[1], "nonsense"])
    assert changes == []
    assert [(o.oid is None, o.class_name) for o in obstacles] == [
        (False, "tests.models.Person"), (True, None),
    ]
    people.undo(ids[0])
    people.undo(ids[1])
    people.undo(ids[2])
    transaction.commit()
    [ann] = [c for c in people.undo_preview(log(people)[0]).changes if c.oid != ROOT_OID]
    assert ann.now is None and ann.attributes == {"name": (..., "Ann"), "age": (..., 31)}
    assert len(log(people)) == 5


def test_histories(people: objdb.DB) -> None:
    """The history of an object, by its oid and by the connection; of a new object, none."""
    connection = people.open()
    ann = connection.root()["ann"]
    expected = ["now 31", "now 30", "made"]
    assert [e["description"] for e in people.history(ann._p_oid, 9)] == expected
    assert [e["description"] for e in connection.history(ann, 2)] == expected[:2]
    assert connection.history(ann)[0]["tid"] == ann._p_serial
    assert connection.history(Person("new")) == []
    added = Person("added")
    connection.add(added)
    assert connection.history(added) == []
    transaction.abort()
    connection.close()


def test_read_only(tmp_path: Path) -> None:
    """A read-only database lists what could be undone, and undoes nothing."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        connection.root()["x"] = 1
    with objdb.DB(objdb.FileStorage(path, read_only=True)) as db:
        assert len(log(db)) == 2
        assert len(db.undo_preview(log(db)[0]).changes) == 1
        with pytest.raises(objdb.ReadOnlyError):
            db.undo(log(db)[0])


def test_a_storage_that_cannot() -> None:
    """A storage that does not declare the interface is Unsupported."""

    @implementer_only(IStorage)
    class Plain(objdb.MappingStorage):
        """Declares nothing beyond the contract."""

    with objdb.DB(Plain()) as db:
        assert not db.supportsTransactionalUndo()
        for call in (lambda: db.undo(""), db.undoLog, db.undoInfo, lambda: db.undo_preview([])):
            with pytest.raises(objdb.Unsupported):
                call()
        with pytest.raises(objdb.Unsupported):
            db.history(ROOT_OID)


def test_serializable(databases: Databases) -> None:
    """A serializable transaction that read what is undone meanwhile, and writes, fails."""
    db = databases.open("data.fs", isolation="serializable")
    with db.transaction() as connection:
        connection.root()["a"], connection.root()["b"] = Person("a"), Person("b")
    with db.transaction() as connection:
        connection.root()["a"].age = 1
    manager = transaction.TransactionManager()
    connection = db.open(transaction_manager=manager)
    manager.begin()
    connection.root()["b"].age = connection.root()["a"].age
    db.undo(log(db)[0])
    transaction.commit()
    with pytest.raises(objdb.ReadConflictError):
        manager.commit()
    manager.abort()
    connection.close()


def test_snapshots_stay(people: objdb.DB) -> None:
    """A transaction under way goes on to see what was there before the undo."""
    manager = transaction.TransactionManager()
    connection = people.open(transaction_manager=manager)
    manager.begin()
    root = connection.root()
    people.undo(log(people)[0])
    transaction.commit()
    assert root["ann"].age == 31
    manager.commit()
    assert root["ann"].age == 30
    assert next_tid(root["ann"]._p_serial) > people.storage.lastTransaction()
    connection.close()


def test_closed(people: objdb.DB) -> None:
    """A closed database says so."""
    people.close()
    for call in (people.undoLog, lambda: people.undo(""), lambda: people.history(ROOT_OID)):
        with pytest.raises(objdb.StorageClosedError):
            call()
