"""`detect_mutations`: changes inside plain attributes that nobody was told of."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
from BTrees.IIBTree import IIBTree
from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent import Persistent

import objdb
from tests.conftest import Databases
from tests.models import Custom, Fussy, Person, Plain, Point


class Colour(enum.Enum):
    RED = 1


class Slotted:
    """Has no __dict__."""

    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = [1], 2


class ByIdentity:
    """Equal to nothing but itself, and not when it was loaded twice."""

    def __init__(self, name: str) -> None:
        self.name = name


class LiesAboutEquality:
    """Says that it equals everything."""

    def __init__(self) -> None:
        self.value = 1

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


class Migrating(Person):
    """Adds an attribute to old states."""

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({"added": [], **state})


class Ticking(Persistent):
    """Its state has a part that differs each time."""

    ticks = 0

    def __init__(self) -> None:
        self.kept: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        type(self).ticks += 1
        return {"kept": self.kept, "ticks": type(self).ticks}


class Attached(Person):
    """Needs its connection to be loaded."""

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._v_name = self._p_jar.db().name


def everything() -> dict[str, Any]:
    """Attributes of all kinds."""
    ring: list[Any] = [1]
    ring.append(ring)
    return {
        "number": 1, "text": "x", "nan": float("nan"), "none": None, "tags": ["a", "b"],
        "words": {"one": [1, 2], "two": {"three": {3}}}, "letters": {"a", "b"},
        "plain": Plain(inner=Plain(deep=[1])), "slots": Slotted(), "ring": ring,
        "identities": {ByIdentity("x"), ByIdentity("y")}, "by key": {ByIdentity("k"): [1]},
        "queue": collections.deque([1, 2]), "ordered": collections.OrderedDict(a=1, b=2),
        "default": collections.defaultdict(list, a=[1]), "bytes": bytearray(b"abc"),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), "colour": Colour.RED,
        "price": decimal.Decimal("1.0"), "friend": Person("friend"), "classes": [Person, len],
        "liar": LiesAboutEquality(), "frozen": frozenset([(1, 2)]), "pairs": ([1], [2]),
    }


@pytest.fixture
def db(databases: Databases) -> objdb.DB:
    db = databases.open("data.fs", detect_mutations=True)
    with db.transaction() as connection:
        root = connection.root()
        root["ann"] = Person("ann", **everything())
        root["tree"] = OOBTree({("a", "tuple"): [2], ("key",): [1]})
        root["large"] = OOBTree({i: [i] for i in range(100)})
        root["others"] = [
            IIBTree({1: 2}), OOTreeSet([1]), Custom([1, 2]), Point(1, 2), Migrating("old"),
            Attached("attached"), objdb.PersistentList([1]), Fussy(), OOBTree(),
            objdb.WeakRef(root["ann"]),
        ]
    with db.transaction() as connection:  # so that nothing in a cache was not loaded
        connection.cacheMinimize()
    return db


@pytest.fixture
def root(db: objdb.DB) -> Iterator[Any]:
    with db.open() as connection:
        yield connection.root()
        transaction.abort()


def touch_all(root: Any) -> None:
    """Load everything."""
    _ = root["ann"].friend.name, [list(tree.items()) for tree in (root["tree"], root["large"])]
    for other in root["others"]:
        if not isinstance(other, objdb.WeakRef):
            other._p_activate()


MUTATIONS: dict[str, Callable[[Any], Any]] = {
    "tags[1]": lambda ann: ann.tags.__setitem__(1, "c"),
    "tags[2]": lambda ann: ann.tags.append("c"),
    "tags[0]": lambda ann: ann.tags.clear(),
    "words['one'][0]": lambda ann: ann.words["one"].pop(0),
    "words['new']": lambda ann: ann.words.update(new=1),
    "words['two']": lambda ann: ann.words.pop("two"),
    "words['two']['three']": lambda ann: ann.words["two"]["three"].add(4),
    "letters": lambda ann: ann.letters.discard("a"),
    "plain.inner.deep[1]": lambda ann: ann.plain.inner.deep.append(2),
    "plain.more": lambda ann: setattr(ann.plain, "more", 1),
    "slots.a[1]": lambda ann: ann.slots.a.append(2),
    "slots.b": lambda ann: setattr(ann.slots, "b", 3),
    "ring[0]": lambda ann: ann.ring.__setitem__(0, 2),
    "ring[2]": lambda ann: ann.ring.append(2),
    "identities": lambda ann: setattr(next(iter(ann.identities)), "name", "z"),
    "queue[2]": lambda ann: ann.queue.append(3),
    "ordered['b']": lambda ann: ann.ordered.update(b=3),
    "default['new']": lambda ann: ann.default["new"],
    "default['a'][1]": lambda ann: ann.default["a"].append(2),
    "bytes": lambda ann: ann.bytes.extend(b"d"),
    "liar.value": lambda ann: setattr(ann.liar, "value", 2),
    "pairs[1][1]": lambda ann: ann.pairs[1].append(3),
    "number": lambda ann: ann.__dict__.update(number=True),
    "nan": lambda ann: ann.__dict__.update(nan=1.0),
    "friend": lambda ann: ann.__dict__.update(friend=Person("new")),
    "added": lambda ann: ann.__dict__.update(added=1),
    "none": lambda ann: ann.__dict__.pop("none"),
    "classes[0]": lambda ann: ann.classes.__setitem__(0, Point),
    "plain.lock": lambda ann: setattr(ann.plain, "lock", (i for i in ())),
}


@pytest.mark.parametrize("path", MUTATIONS)
def test_a_mutation_is_found(db: objdb.DB, root: Any, path: str) -> None:
    """The commit fails, names class, oid and path, and stores nothing; the abort drops the
    change."""
    touch_all(root)
    tid = db.storage.lastTransaction()
    ann = root["ann"]
    MUTATIONS[path](ann)
    with pytest.raises(objdb.UnregisteredMutationError, match="_p_changed = True") as caught:
        transaction.commit()
    error = caught.value
    assert error.attribute == path
    assert (error.oid, error.class_name) == (ann._p_oid, "tests.models.Person")
    assert f"tests.models.Person {'0x' + ann._p_oid.hex().lstrip('0')}.{path}" in str(error)
    transaction.abort()
    assert db.storage.lastTransaction() == tid
    touch_all(root)
    transaction.commit()  # what is in memory is what is stored
    assert ann.tags == ["a", "b"] and ann.number == 1


def test_nothing_is_found_where_nothing_changed(db: objdb.DB, root: Any) -> None:
    """Objects of all kinds, loaded, are not taken for changed: their states, pickled and loaded
    again, are compared part by part."""
    for _ in range(2):
        touch_all(root)
        transaction.commit()
    root["ann"].name = "Ann"
    root["tree"]["more",] = 1
    transaction.commit()
    root["ann"].name = "ann"
    transaction.commit()


def test_a_state_that_is_another_one_each_time(db: objdb.DB, root: Any) -> None:
    """What __getstate__ makes anew each time is no change."""
    root["ticking"] = Ticking()
    transaction.commit()
    root["ticking"]._p_deactivate()
    assert root["ticking"].kept == []
    transaction.commit()


def test_declared_changes_are_fine(db: objdb.DB, root: Any) -> None:
    """With _p_changed, or an assignment, the same change is stored."""
    ann = root["ann"]
    ann.tags.append("c")
    ann._p_changed = True
    ann.words = {**ann.words, "new": 1}
    transaction.commit()
    root._p_jar.cacheMinimize()
    assert ann.tags[2] == "c" and ann.words["new"] == 1


def test_volatile_attributes_may_change(db: objdb.DB, root: Any) -> None:
    """`_v_` attributes are not part of the state."""
    root["ann"]._v_cache = [1]
    root["ann"]._v_cache.append(2)
    transaction.commit()


@pytest.mark.parametrize(("name", "key", "path"), [
    ("tree", ("key",), "[('key',)][1]"), ("tree", ("a", "tuple"), "[('a', 'tuple')][1]"),
    ("large", 50, "[50][1]"),
])  # fmt: skip
def test_values_of_trees(db: objdb.DB, root: Any, name: str, key: Any, path: str) -> None:
    """A plain list as a value of a tree is told with its key."""
    root[name][key].append(0)
    with pytest.raises(objdb.UnregisteredMutationError) as caught:
        transaction.commit()
    assert caught.value.attribute == path
    assert caught.value.class_name.startswith("BTrees.OOBTree.OO")


def test_states_of_other_forms(db: objdb.DB, root: Any) -> None:
    """A state that is a tuple, and one that __setstate__ adds to, are compared as well."""
    custom, migrating = root["others"][2], root["others"][4]
    custom.items.append(3)
    with pytest.raises(objdb.UnregisteredMutationError) as caught:
        transaction.commit()
    assert caught.value.attribute == "[2]"
    transaction.abort()
    migrating.added.append(1)
    with pytest.raises(objdb.UnregisteredMutationError) as caught:
        transaction.commit()
    assert caught.value.attribute == "added[0]"


def test_many_are_told_together(db: objdb.DB, root: Any) -> None:
    """One error tells of several objects, and says how many more there are."""
    with db.transaction() as connection:
        connection.root()["many"] = [Person(str(i), tags=[]) for i in range(8)]
    transaction.begin()
    for person in root["many"]:
        person.tags.append(1)
    with pytest.raises(objdb.UnregisteredMutationError) as caught:
        transaction.commit()
    assert str(caught.value).count("tests.models.Person") == 5
    assert "and 3 more" in str(caught.value)


def test_beside_registered_changes(db: objdb.DB, root: Any) -> None:
    """Nothing is stored when one object was changed properly and another was not."""
    tid = db.storage.lastTransaction()
    root["ann"].friend.name = "other"
    root["ann"].tags.append("c")
    with pytest.raises(objdb.UnregisteredMutationError):
        transaction.commit()
    transaction.abort()
    assert db.storage.lastTransaction() == tid
    assert root["ann"].friend.name == "friend" and root["ann"].tags == ["a", "b"]


def test_after_a_savepoint(db: objdb.DB, root: Any) -> None:
    """What a savepoint has put away is what the object is compared with."""
    ann = root["ann"]
    ann.tags.append("c")
    ann._p_changed = True
    transaction.savepoint()
    transaction.commit()
    ann.tags.append("d")
    ann._p_changed = True
    transaction.savepoint()
    ann.tags.append("e")
    with pytest.raises(objdb.UnregisteredMutationError) as caught:
        transaction.commit()
    assert caught.value.attribute == "tags[4]"
    transaction.abort()
    assert ann.tags == ["a", "b", "c"]


def test_an_abort_is_not_refused(db: objdb.DB, root: Any) -> None:
    """Aborting drops the change, in a transaction that has failed already as well."""
    root["ann"].tags.append("c")
    transaction.abort()
    assert root["ann"].tags == ["a", "b"]

    class Fails:
        def sortKey(self) -> str:
            return ""

        def tpc_begin(self, txn: Any) -> None:
            raise ZeroDivisionError

        def abort(self, txn: Any) -> None:
            return

        tpc_abort = abort

    transaction.get().join(Fails())
    with pytest.raises(ZeroDivisionError):
        transaction.commit()
    root["ann"].tags.append("c")
    transaction.abort()
    assert root["ann"].tags == ["a", "b"]


def test_in_every_way_to_commit(db: objdb.DB) -> None:
    """db.transaction, db.run and open(transaction=) look as well."""

    def mutate(connection: objdb.Connection) -> None:
        connection.root()["ann"].tags.append("c")

    def in_block() -> None:
        with db.transaction() as connection:
            mutate(connection)

    for way in (in_block, lambda: db.run(mutate)):
        with pytest.raises(objdb.UnregisteredMutationError):
            way()
    txn = transaction.TransactionManager().begin()
    mutate(db.open(transaction=txn))
    with pytest.raises(objdb.UnregisteredMutationError):
        txn.commit()
    txn.abort()
    with db.transaction() as connection:
        assert connection.root()["ann"].tags == ["a", "b"]


@pytest.mark.parametrize("isolation", ["serializable", "read-current"])
def test_looking_is_not_reading(db: objdb.DB, isolation: str) -> None:
    """In serializable mode, what was only compared does not count as read."""
    manager = transaction.TransactionManager()
    with db.open(transaction_manager=manager, isolation=isolation) as connection:
        root = connection.root()
        touch_all(root)
        manager.commit()
        root["others"][2].items = [5]
        with db.transaction() as other:
            other.root()["ann"].name = "new"
        manager.commit()
        assert root["ann"].name == "new"


def test_read_only_files(databases: Databases) -> None:
    """A database that is open for reading is looked at too."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["ann"] = Person("ann", tags=[])
    db.close()
    uri = f"file:{db.name}?read_only=true&detect_mutations=true"
    with objdb.DB(uri) as reader, reader.open() as connection:
        connection.root()["ann"].tags.append(1)
        with pytest.raises(objdb.UnregisteredMutationError):
            transaction.commit()
        transaction.abort()
        assert connection.root()["ann"].tags == []


def test_off_unless_asked_for(databases: Databases) -> None:
    """By default nobody looks; a plain change in memory is lost with the cache."""
    db = databases.open(None)
    with db.open() as connection:
        connection.root()["ann"] = Person("ann", tags=[])
        transaction.commit()
        connection.root()["ann"].tags.append(1)
        transaction.commit()
        connection.cacheMinimize()
        assert connection.root()["ann"].tags == []


def test_what_cannot_be_compared(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an object whose state cannot be compared it is said, once for each class, that changes of
    it are not found; nothing is refused."""

    def fail(*arguments: Any) -> None:
        raise RecursionError("nested too deeply")

    with objdb.DB(detect_mutations=True) as db:
        with db.transaction() as connection:
            for name in "ab":
                connection.root()[name] = Person(name)
        monkeypatch.setattr("objdb.records.comparing.Comparison.in_states", fail)
        with db.transaction() as connection:
            assert [connection.root()[name].name for name in "ab"] == ["a", "b"]
            connection.root()["c"] = 1
        with db.transaction() as connection:
            assert connection.root()["c"] == 1
    told = [record.message for record in caplog.records if "cannot be compared" in record.message]
    assert len([text for text in told if "Person" in text]) == 1
