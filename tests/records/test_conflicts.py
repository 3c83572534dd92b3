"""Merging two changes of one object."""

from __future__ import annotations

from typing import Any

import pytest
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree, OOTreeSet

import objdb
from objdb.errors import ConflictError, UnresolvableConflictError
from objdb.records.conflicts import PersistentReference, resolve
from objdb.records.references import references
from tests.models import Counter, Person, Plain
from tests.records.handmade import Ref, application, oid, record, storage_with

SERIALS = (b"\0" * 7 + b"\2", b"\0" * 7 + b"\1")


class Merging(objdb.Persistent):
    """Calls `merge`, a function of the test, to merge three states."""

    merge: Any = None
    constructed = 0

    def __init__(self) -> None:
        type(self).constructed += 1

    def _p_resolveConflict(self, old: dict, committed: dict, new: dict) -> Any:
        assert vars(self) == {}
        assert self._p_jar is None and self._p_oid is None
        return type(self).merge(old, committed, new)


class Mixed(objdb.Persistent):
    """Made with an argument, and merges by keeping everything."""

    def __new__(cls, kind: str) -> Mixed:
        mixed = objdb.Persistent.__new__(cls)
        mixed.__dict__["kind"] = kind
        return mixed

    def __getnewargs__(self) -> tuple[str]:
        return (self.kind,)

    def _p_resolveConflict(self, old: dict, committed: dict, new: dict) -> dict:
        assert self.kind == new["kind"]
        return {**old, **committed, **new}


class Two:
    """Two connections with transactions of their own."""

    def __init__(self, db: objdb.DB) -> None:
        self.managers = [transaction.TransactionManager() for _ in range(2)]
        self.a, self.b = (db.open(transaction_manager=manager) for manager in self.managers)

    def commit(self) -> None:
        for manager in self.managers:
            manager.commit()

    def close(self) -> None:
        for manager in self.managers:
            manager.abort()
        self.a.close()
        self.b.close()


@pytest.fixture
def two(db: objdb.DB) -> Any:
    with db.transaction() as connection:
        root = connection.root()
        root["tree"] = OOBTree({i: i for i in range(0, 300, 3)})
        root["people"] = OOBTree({i: Person(str(i)) for i in range(0, 300, 3)})
        root["numbers"], root["set"] = IOBTree({1: "x"}), OOTreeSet(["a"])
        root["length"], root["counter"] = Length(5), Counter()
        root["merging"], root["mixed"] = Merging(), Mixed("k")
        root["p"], root["q"] = Person("p"), Person("q")
    pair = Two(db)
    yield pair
    pair.close()


def refer(form: Any) -> PersistentReference:
    return PersistentReference(form)


EQUAL = [
    (oid(1), oid(1)), (oid(1), (oid(1), Person)), ((oid(1), Person), (oid(1), Counter)),
    ([oid(1)], ["w", (oid(1),)]), (["n", ("two", oid(1))], ["m", ("two", oid(1), Person)]),
]
DIFFERENT = [
    (oid(1), oid(2)), (oid(1), ["w", (oid(1),)]), (oid(1), ["n", ("two", oid(1))]),
    (["w", (oid(1),)], ["w", (oid(1), "two")]), (["n", ("two", oid(1))], ["n", ("three", oid(1))]),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_references(one: Any, other: Any) -> None:
    """References to one object are equal, in whatever form they were stored, and hash alike."""
    assert refer(one) == refer(other)
    assert refer(one).__ne__(refer(other)) is False
    assert hash(refer(one)) == hash(refer(other))
    assert {refer(one): 1}[refer(other)] == 1
    assert refer(one) <= refer(other) and refer(one) >= refer(other)
    assert not refer(one) < refer(other) and not refer(one) > refer(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_references(one: Any, other: Any) -> None:
    """Comparing references to different objects, in any way, raises ValueError: nobody knows how
    the objects compare."""
    a, b = refer(one), refer(other)
    for compare in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
        with pytest.raises(ValueError):
            getattr(a, compare)(b)


@pytest.mark.parametrize("other", [None, 1, "x", oid(1), object()])
def test_references_and_other_values(other: Any) -> None:
    """Comparing a reference with any other value raises ValueError; with itself it is equal."""
    reference = refer(oid(1))
    with pytest.raises(ValueError):
        _ = reference == other
    assert reference == reference


def test_facts_of_references() -> None:
    """A reference tells oid, database and whether it is weak."""
    reference = refer(["w", (oid(1), "two")])
    assert (reference.oid, reference.database_name, reference.weak) == (oid(1), "two", True)
    assert refer((oid(1), Person)).database_name is None
    assert "0x1" in repr(reference) and "weak" in repr(reference)


def three(make: Any) -> list[bytes]:
    return [record(Merging, make(number)) for number in range(3)]


def test_states_and_references() -> None:
    """The three states arrive in order, references in them as PersistentReference, the same
    object for the same target in all of them; the merged ones go back as they were."""
    seen: list[Any] = []

    def merge(*states: dict) -> dict:
        seen.extend(states)
        return {"kept": [states[1]["to"], states[2]["weak"]], "n": [s["n"] for s in states]}

    Merging.merge = staticmethod(merge)
    form = (oid(7), Person)
    merged = resolve(
        oid(1), *three(lambda n: {"n": n, "to": Ref(form), "weak": Ref(["w", (oid(8),)])}), SERIALS
    )
    assert [state["to"].oid for state in seen] == [oid(7)] * 3
    assert seen[0]["to"] is seen[1]["to"] is seen[2]["to"]
    assert references(merged) == [oid(7)]
    assert merged.startswith(record(Merging, None)[:-4])
    with objdb.DB(storage_with(merged)) as db, db.open() as connection:
        merging = connection.get(oid(1))
        assert merging.n == [0, 1, 2]
        assert merging.kept[0]._p_oid == oid(7)
        assert merging.kept[1].oid == oid(8)


@pytest.mark.parametrize(
    "merge",
    [
        lambda old, committed, new: 1 / 0,
        lambda old, committed, new: committed["to"] == new["other"],
        lambda old, committed, new: lambda: None,
        lambda old, committed, new: (_ for _ in ()).throw(ConflictError("cannot")),
    ],
    ids=["raises", "compares references", "not picklable", "conflict"],
)
def test_merging_that_fails(merge: Any) -> None:
    """Any error while merging is an UnresolvableConflictError with oid, class and tids."""
    Merging.merge = staticmethod(merge)
    with pytest.raises(UnresolvableConflictError) as caught:
        resolve(
            oid(1), *three(lambda n: {"to": Ref(oid(7)), "other": Ref(oid(8))}), SERIALS
        )
    error = caught.value
    assert (error.oid, error.serials) == (oid(1), SERIALS)
    assert error.class_name == f"{__name__}.Merging"
    assert error.__cause__ is not None


def test_what_cannot_merge() -> None:
    """Without `_p_resolveConflict`, without the old revision, and without the class there is a
    plain ConflictError."""
    Merging.merge = staticmethod(lambda *states: states[0])
    with application() as module:
        gone = record(module.Thing, {"x": 1})
    people = record(Person, {"name": "p"})
    merging = record(Merging, {})
    for old, new in ((people, people), (None, merging), (gone, gone)):
        with pytest.raises(ConflictError) as caught:
            resolve(oid(1), old, new, new, SERIALS)
        assert type(caught.value) is ConflictError
        assert caught.value.class_name in str(caught.value)
        assert (caught.value.oid, caught.value.serials) == (oid(1), SERIALS)


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x03c\xff\xfe\n\xfd\n.N."])
def test_damaged_records_conflict(damage: bytes, damaged: int) -> None:
    """Merging with a damaged record among the three is a ConflictError, nothing else."""
    Merging.merge = staticmethod(lambda *states: states[0])
    contents = three(lambda n: {"n": n})
    contents[damaged] = damage
    with pytest.raises(ConflictError):
        resolve(oid(1), *contents, SERIALS)


def test_lengths_and_counters(two: Two) -> None:
    """Length, and a class that adds up, merge to the sum."""
    for connection, amount in ((two.a, 3), (two.b, -4)):
        connection.root()["length"].change(amount)
        connection.root()["counter"].add(amount)
    two.commit()
    for connection in (two.a, two.b):
        connection.sync()
        assert (connection.root()["length"](), connection.root()["counter"].value) == (4, -1)


def test_trees(two: Two) -> None:
    """Insertions, changes and removals of different keys of one bucket merge, in trees of every
    kind, values that are persistent objects included."""
    a, b = two.a.root(), two.b.root()
    a["tree"][1], b["tree"][2] = 1001, 1002
    a["tree"][3], b["tree"][6] = 1003, 1006
    del a["tree"][9], b["tree"][12]
    a["people"][1], b["people"][2] = Person("new a"), Person("new b")
    del a["people"][3], b["people"][6]
    a["numbers"][2], b["numbers"][3] = "a", "b"
    a["set"].add("b"), b["set"].add("c")
    two.commit()
    for connection in (two.a, two.b):
        connection.sync()
        root = connection.root()
        tree = {i: i for i in range(0, 300, 3)} | {1: 1001, 2: 1002, 3: 1003, 6: 1006}
        del tree[9], tree[12]
        assert dict(root["tree"]) == tree
        names = {i: person.name for i, person in root["people"].items()}
        expected = {i: str(i) for i in range(0, 300, 3)} | {1: "new a", 2: "new b"}
        del expected[3], expected[6]
        assert names == expected
        assert dict(root["numbers"]) == {1: "x", 2: "a", 3: "b"}
        assert list(root["set"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree, who: tree.__setitem__(3, who),
        lambda tree, who: tree.__setitem__(1, who),
        lambda tree, who: tree.pop(3) if who == "a" else tree.__setitem__(3, who),
        lambda tree, who: tree.pop(3),
        lambda tree, who: tree.clear() if who == "a" else tree.__setitem__(4, who),
    ],
    ids=["same value", "same new key", "removed and changed", "removed twice", "emptied"],
)
def test_trees_that_cannot_merge(two: Two, change: Any) -> None:
    """Changes of one key, and an emptied bucket, are conflicts; the first commit stands."""
    change(two.a.root()["tree"], "a")
    change(two.b.root()["tree"], "b")
    two.managers[0].commit()
    expected = dict(two.a.root()["tree"])
    with pytest.raises(ConflictError) as caught:
        two.managers[1].commit()
    assert caught.value.class_name.startswith("BTrees.OOBTree")
    two.managers[1].abort()
    assert dict(two.b.root()["tree"]) == expected


def test_other_persistent_values_conflict(two: Two) -> None:
    """Two changes that put different persistent objects under one key do not merge."""
    two.a.root()["people"][3], two.b.root()["people"][3] = Person("a"), Person("b")
    two.managers[0].commit()
    with pytest.raises(UnresolvableConflictError):
        two.managers[1].commit()


def test_references_to_new_objects_survive_a_merge(two: Two) -> None:
    """An object created in the transaction that merges is stored and found."""
    Merging.merge = staticmethod(lambda old, committed, new: {**committed, **new})
    two.a.root()["merging"].a = Person("by a")
    two.b.root()["merging"].b = [Person("by b"), objdb.WeakRef(two.b.root()["p"])]
    two.b.root()["merging"].plain = Plain(inside=two.b.root()["q"])
    two.commit()
    two.a.sync()
    merging = two.a.root()["merging"]
    assert (merging.a.name, merging.b[0].name, merging.b[1]().name) == ("by a", "by b", "p")
    assert merging.plain.inside is two.a.root()["q"]


def test_arguments_of_the_new_state(two: Two) -> None:
    """A class with `__getnewargs__` is made with those of the new record to merge, and keeps
    them."""
    two.a.root()["mixed"].a, two.b.root()["mixed"].b = 1, 2
    two.commit()
    two.a.sync()
    mixed = two.a.root()["mixed"]
    assert (mixed.a, mixed.b, mixed.kind) == (1, 2, "k")


def test_what_was_merged_is_loaded_again(two: Two) -> None:
    """After a merge the connection shows the merged state, at once, and can change it again."""
    Merging.merge = staticmethod(lambda old, committed, new: {**committed, "merged": True})
    two.a.root()["merging"].a = 1
    mine = two.b.root()["merging"]
    mine.b = 1
    two.commit()
    assert vars_of(mine) == {"a": 1, "merged": True}
    mine.c = 1
    two.managers[1].commit()
    two.a.sync()
    assert vars_of(two.a.root()["merging"]) == {"a": 1, "merged": True, "c": 1}


def vars_of(obj: Any) -> dict:
    obj._p_activate()
    return dict(vars(obj))


def test_one_conflict_among_merges(two: Two) -> None:
    """A transaction that could merge some objects and not another is dropped as a whole."""
    for connection, amount in ((two.a, 3), (two.b, 4)):
        connection.root()["length"].change(amount)
        connection.root()["p"].name = str(amount)
    two.managers[0].commit()
    with pytest.raises(ConflictError) as caught:
        two.managers[1].commit()
    assert caught.value.class_name == "tests.models.Person"
    two.managers[1].abort()
    assert (two.b.root()["length"](), two.b.root()["p"].name) == (8, "3")


def test_merging_three_times_over(db: objdb.DB) -> None:
    """Each of several transactions from one snapshot merges with all that went before."""
    with db.transaction() as connection:
        connection.root()["length"] = Length()
    managers = [transaction.TransactionManager() for _ in range(4)]
    connections = [db.open(transaction_manager=manager) for manager in managers]
    for i, connection in enumerate(connections):
        connection.root()["length"].change(10**i)
    for manager in managers:
        manager.commit()
    for connection in connections:
        connection.sync()
        assert connection.root()["length"]() == 1111
        connection.close()


def test_a_removed_object_conflicts(db: objdb.DB) -> None:
    """Changing an object that another transaction removed from the storage is a conflict."""
    with db.transaction() as connection:
        connection.root()["length"] = length = Length()
        connection.root()["p"] = Person("p")
    manager = transaction.TransactionManager()
    connection = db.open(transaction_manager=manager)
    connection.root()["length"].change(1)
    with db.transaction() as other:
        del other.root()["length"]
    metadata = db.metadata_of(manager.get())
    db.storage.tpc_begin(metadata)
    db.storage.deleteObject(length._p_oid, db.storage.getTid(length._p_oid), metadata)
    db.storage.tpc_vote(metadata)
    db.storage.tpc_finish(metadata)
    with pytest.raises(ConflictError):
        manager.commit()
    manager.abort()
    assert list(connection.root()) == ["p"]
    connection.close()


def test_a_merge_meets_no_application(two: Two) -> None:
    """Merging makes no object by `__init__`."""
    made = Merging.constructed
    Merging.merge = staticmethod(lambda old, committed, new: new)
    two.a.root()["merging"].a, two.b.root()["merging"].b = 1, 2
    two.commit()
    assert Merging.constructed == made
