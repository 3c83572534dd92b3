"""Files go back and forth between ZODB and objdb."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from BTrees.IOBTree import IOBTree
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree, OOTreeSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from ZODB.FileStorage import FileStorage as ZODBFileStorage
from ZODB.serialize import referencesf

import objdb
from objdb.records.references import references
from tests.campaign.graphs import Graph, in_objdb, in_zodb
from tests.models import Counter, Custom, Person, Plain, Point

pytestmark = pytest.mark.peer


def fill(root: Any) -> None:
    """Objects of every kind, referring to each other in every way."""
    anna, ben = Person("Anna"), Person("Ben", data={"list": [1, (2, b"3")], "plain": Plain(x=1)})
    anna.friend, ben.friend = ben, anna
    root["anna"], root["map"] = anna, PersistentMapping(ben=ben)
    root["weak"] = WeakRef(anna)
    root["point"], root["custom"] = Point(1, 2), Custom([anna, "x"])
    root["points"] = [root["point"]]
    root["tree"] = OOBTree({f"key {i}": Person(str(i)) for i in range(200)})
    root["numbers"] = IOBTree({i: i * i for i in range(100)})
    root["set"], root["length"] = OOTreeSet(["a", "b"]), Length(7)
    root["counter"] = Counter()


def verify(root: Any) -> None:
    """What `fill` made is all there."""
    assert root["anna"].friend.friend is root["anna"]
    assert root["map"]["ben"].data == {"list": [1, (2, b"3")], "plain": Plain(x=1)}
    assert root["weak"]() is root["anna"]
    assert root["point"].made_with == (1, 2)
    assert root["points"][0] is root["point"]
    assert root["custom"].items[0] is root["anna"]
    assert root["tree"]["key 150"].name == "150"
    assert len(root["tree"]) == 200
    assert list(root["numbers"].items()) == [(i, i * i) for i in range(100)]
    assert list(root["set"]) == ["a", "b"]
    assert root["length"]() == 7
    assert isinstance(root["counter"], Counter)


def test_written_by_zodb(tmp_path: Path) -> None:
    """A file written by ZODB opens here, is changed here, and goes back."""
    path = tmp_path / "data.fs"
    with in_zodb(path) as connection:
        fill(connection.root())
    with in_objdb(path) as connection:
        verify(connection.root())
        connection.root()["anna"].name = "changed here"
        connection.root()["tree"]["new"] = Person("new")
    with in_zodb(path) as connection:
        root = connection.root()
        verify_rest = root["anna"].name, root["tree"].pop("new").name
        assert verify_rest == ("changed here", "new")
        verify(root)


def test_written_here(tmp_path: Path) -> None:
    """A file written here opens in ZODB, is packed there, and comes back."""
    path = tmp_path / "data.fs"
    with in_objdb(path) as connection:
        fill(connection.root())
    for i in range(3):
        with in_objdb(path) as connection:
            connection.root()["anna"].age = i
            connection.root()["garbage"] = Person("garbage")
        with in_objdb(path) as connection:
            del connection.root()["garbage"]
    size = path.stat().st_size
    with in_zodb(path) as connection:
        verify(connection.root())
        assert connection.root()["anna"].age == 2
        connection.db().pack()
    assert path.stat().st_size < size
    with in_objdb(path) as connection:
        verify(connection.root())
        assert connection.root()["anna"].age == 2
        connection.root()["anna"].age = 3
    with in_zodb(path) as connection:
        verify(connection.root())
        assert connection.root()["anna"].age == 3


def test_pack_with_an_open_view_of_history(tmp_path: Path) -> None:
    """A file that ZODB packed to a time in the middle keeps transactions whose positions moved:
    their checksums, which no longer apply, are told by the position they were made for."""
    path = tmp_path / "data.fs"
    with in_objdb(path) as connection:
        connection.root()["p"] = Person("0")
    with in_objdb(path) as connection:
        connection.root()["p"].name = "1"
    middle = __import__("time").time()
    for i in range(2, 5):
        with in_objdb(path) as connection:
            connection.root()["p"].name = str(i)
    with in_zodb(path) as connection:
        connection.db().pack(middle)
    with in_objdb(path) as connection:
        assert connection.root()["p"].name == "4"
    with objdb.FileStorage(path) as storage:
        statuses = [t.status for t in storage.iterator()]
    assert "p" in statuses and statuses[-1] == " "


def test_undone_in_zodb(tmp_path: Path) -> None:
    """Undo records, whose data is a back pointer, and un-created objects load here."""
    path = tmp_path / "data.fs"
    with in_zodb(path) as connection:
        connection.root()["p"] = Person("first")
    with in_zodb(path) as connection:
        connection.root()["p"].name = "second"
    db = ZODB.DB(ZODBFileStorage(str(path)))
    db.undo(db.undoInfo(0, 5)[0]["id"])
    transaction.commit()
    db.close()
    with in_objdb(path) as connection:
        assert connection.root()["p"].name == "first"
        oid = connection.root()["p"]._p_oid
    db = ZODB.DB(ZODBFileStorage(str(path)))
    db.undo(db.undoInfo(0, 5)[2]["id"])
    transaction.commit()
    db.close()
    with in_objdb(path) as connection:
        assert list(connection.root()) == []
        with pytest.raises(objdb.POSKeyError):
            connection.get(oid)
    with objdb.DB(path) as db:
        records = [r for t in db.storage.iterator() for r in t]
        assert any(record.data_txn for record in records)


def test_savepoints_in_zodb(tmp_path: Path) -> None:
    """A transaction with savepoints, rolled back in part, written by ZODB, reads here."""
    path = tmp_path / "data.fs"
    db = ZODB.DB(str(path))
    with db.transaction() as connection:
        manager = connection.transaction_manager
        connection.root()["p"] = Person("kept")
        savepoint = manager.savepoint()
        connection.root()["q"] = Person("dropped")
        savepoint.rollback()
    db.close()
    with in_objdb(path) as connection:
        assert sorted(connection.root()) == ["p"]


def test_blobs_are_kept_with_a_clear_error(tmp_path: Path) -> None:
    """A ZODB blob loads as a broken object that says what it is, and is written back as it
    was."""
    path = tmp_path / "data.fs"
    blobs = str(tmp_path / "blobs")
    with in_zodb(path, blob_dir=blobs) as connection:
        from ZODB.blob import Blob

        connection.root()["blob"], connection.root()["p"] = Blob(b"content"), Person("p")
    with in_objdb(path) as connection:
        blob = connection.root()["blob"]
        with pytest.raises(AttributeError, match="ZODB blob"):
            blob.open("r")
        with pytest.raises(objdb.BrokenObjectError, match="ZODB blob"):
            blob.title = "x"
        connection.root()["other"] = blob
    with (
        in_zodb(path, blob_dir=blobs) as connection,
        connection.root()["other"].open("r") as content,
    ):
        assert content.read() == b"content"


def test_references_agree_with_zodb(tmp_path: Path) -> None:
    """References are found in every record as ZODB finds them."""
    path = tmp_path / "data.fs"
    with in_zodb(path) as connection:
        fill(connection.root())
    with in_objdb(path) as connection:
        fill(connection.root())
    with objdb.FileStorage(path) as storage:
        for txn in storage.iterator():
            for revision in txn:
                assert sorted(references(revision.data)) == sorted(referencesf(revision.data))


def test_iterators_agree(tmp_path: Path) -> None:
    """ZODB's iterator and ours list the same transactions and records of one file."""
    path = tmp_path / "data.fs"
    with in_objdb(path) as connection:
        fill(connection.root())
    with in_zodb(path) as connection:
        connection.root()["anna"].name = "x"
    peer = ZODBFileStorage(str(path), read_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [(t.tid, [(r.oid, r.tid, r.data) for r in t]) for t in peer.iterator()]
    peer.close()
    with objdb.FileStorage(path) as storage:
        ours = [(t.tid, [(r.oid, r.tid, r.data) for r in t]) for t in storage.iterator()]
    assert ours == theirs


# -- random graphs


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    | st.tuples(inner, inner) | st.builds(lambda x: Plain(x=x), inner),
    max_leaves=8,
)
edges = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 3)), max_size=20)
steps = st.lists(st.sampled_from(["zodb", "objdb", "pack"]), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edges=edges, values=st.lists(values, min_size=1, max_size=4), steps=steps)
def test_random_graphs(
    tmp_path_factory: pytest.TempPathFactory, edges: list, values: list, steps: list
) -> None:
    """Random graphs written by one are read, rewritten and packed by the other, in any order."""
    path = tmp_path_factory.mktemp("graphs") / "data.fs"
    graph = Graph(edges, values)
    for number, step in enumerate(["objdb", *steps, "objdb", "zodb"]):
        with (in_objdb if step == "objdb" else in_zodb)(path) as connection:
            root = connection.root()
            if number:
                graph.compare(root)
            if step == "pack" and number > 1:
                connection.db().pack()
            else:
                graph.build(root)


def test_a_zodb_storage_under_our_database(tmp_path: Path) -> None:
    """Our DB works over ZODB's own FileStorage, which knows nothing of us."""
    path = tmp_path / "data.fs"
    with in_zodb(path) as connection:
        connection.root()["p"] = Person("p")
    with objdb.DB(ZODBFileStorage(str(path))) as db:
        with db.transaction() as connection:
            connection.root()["p"].name = "through objdb"
        with db.transaction() as connection:
            assert connection.root()["p"].name == "through objdb"


def test_state_pickles_are_self_contained() -> None:
    """What is written here can be loaded by a plain unpickler, class pickle and state apart."""
    import pickle

    with objdb.DB(None) as db:
        with db.transaction() as connection:
            connection.root()["p"] = Person("Anna")
        record = db.storage.load(bytes(7) + b"\1")[0]
    file = io.BytesIO(record)
    assert pickle.load(file) is Person
    assert pickle.load(file) == {"name": "Anna"}
