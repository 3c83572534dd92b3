"""`objdb.diff`: what differs between two revisions of an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
from BTrees.IIBTree import IIBTree, IISet, IITreeSet
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree, OOBucket

import objdb
from tests.conftest import Databases
from tests.models import Counter, Custom, Person, Plain


class Slotted(objdb.Persistent):
    """Attributes in slots, and in `__dict__`."""

    __slots__ = ("__dict__", "inside")


class Titled(objdb.PersistentMapping):
    """A mapping with an attribute of its own."""

    title = "none"


class Shelf(OOBTree):
    """A BTree of the application."""


class TitledList(objdb.PersistentList):
    """A list with an attribute of its own."""

    title = "none"


class Story:
    """An object `it` that was changed once: `now`, and a connection to the time before."""

    def __init__(self, db: objdb.DB) -> None:
        self.db = db
        self.manager = transaction.TransactionManager()
        self.now = db.open(transaction_manager=self.manager)
        self.past: list[objdb.Connection] = []

    def tell(self, it: Any, change: Callable[[Any], Any], **others: Any) -> dict[Any, Any]:
        """Store *it*, change it, and return the differences."""
        root = self.now.root()
        root["it"] = it
        root.update(others)
        self.manager.commit()
        before = self.db.storage.lastTransaction()
        change(root["it"])
        self.manager.commit()
        self.past.append(self.db.open(at=before))
        found = objdb.diff(self.before(), root["it"])
        opposite = {name: values[::-1] for name, values in found.items()}
        assert objdb.diff(root["it"], self.before()) == opposite
        assert objdb.diff(root["it"], root["it"]) == {}
        return found

    def before(self) -> Any:
        return self.past[-1].root()["it"]

    def close(self) -> None:
        self.manager.abort()
        self.now.close()
        for connection in self.past:
            connection.close()


@pytest.fixture
def story(db: objdb.DB) -> Iterator[Story]:
    story = Story(db)
    yield story
    story.close()


def change_person(person: Person) -> None:
    person.name, person.new = "after", [1]
    del person.age


def test_attributes(story: Story) -> None:
    """Those that were changed, added and removed; not those that were set to what they were."""
    tags = {"a", ("b", frozenset({8, 0}))}
    found = story.tell(Person("before", age=1, tags=tags), change_person)
    assert found == {"name": ("before", "after"), "age": (1, ...), "new": (..., [1])}


def test_nested_sets(story: Story) -> None:
    """Equal sets are no difference, whatever was put into them first, and wherever they are."""

    def change(person: Person) -> None:
        person.data = [{"x": {8, 0}}]
        person.other = [{8, 1}]

    found = story.tell(Person(data=[{"x": {0, 8}}], other=[{8}]), change)
    assert found == {"other": ([{8}], [{1, 8}])}


def test_values_are_not_converted(story: Story) -> None:
    """1, 1.0 and True are different values."""
    found = story.tell(Person(data=1, other=1), lambda it: vars(it).update(data=True, other=1.0))
    assert found == {}  # nobody was told
    found = story.tell(Person(data=1), lambda it: setattr(it, "data", True))
    assert found == {"data": (1, True)}


def test_references(story: Story) -> None:
    """The same object is no difference, though it was changed; another one is, by its oid."""
    one, other = Person("one"), Person("other")

    def change(person: Person) -> None:
        person.friend, person.best = [person.friend[0]], story.now.root()["other"]
        person.friend[0].name = "changed"

    found = story.tell(Person(friend=[one], best=one), change, other=other)
    assert list(found) == ["best"]
    assert [value.oid for value in found["best"]] == [one._p_oid, other._p_oid]


def change_mapping(mapping: Any) -> None:
    mapping["changed"], mapping["new"] = 2, 3
    del mapping["gone"]


CHANGED_MAPPING = {"changed": (1, 2), "new": (..., 3), "gone": (0, ...)}


@pytest.mark.parametrize("cls", [objdb.PersistentMapping, OOBTree, OOBucket, Shelf])
def test_mappings(story: Story, cls: type) -> None:
    """Items are told by their keys."""
    assert story.tell(cls({"same": 0, "changed": 1, "gone": 0}), change_mapping) == CHANGED_MAPPING


def test_lists(story: Story) -> None:
    """Items are told by their positions."""

    def change(items: Any) -> None:
        items[1] = "x"
        items.append("y")

    assert story.tell(objdb.PersistentList("abc"), change) == {1: ("b", "x"), 3: (..., "y")}


@pytest.mark.parametrize(
    ("cls", "items", "key"), [(Titled, {"title": 1}, "title"), (TitledList, [1], 0)]
)
def test_attributes_beside_items(story: Story, cls: Any, items: Any, key: Any) -> None:
    """An attribute is told from an item of the same name."""

    def change(it: Any) -> None:
        it.title = "the title"
        it[key] = 2

    assert story.tell(cls(items), change) == {key: (1, 2), ".title": (..., "the title")}


@pytest.mark.parametrize("size", [0, 1, 1000])
@pytest.mark.parametrize("grown", [1, 1000])
def test_trees(story: Story, size: int, grown: int) -> None:
    """A tree is one mapping, in however many buckets it was, or is."""
    expected: dict[int, Any] = {-i: (..., i) for i in range(1, grown + 1)}
    if size:
        expected[size - 1] = (0, 5)

    def change(tree: Any) -> None:
        tree.update({-i: i for i in range(1, grown + 1)})
        if size:
            tree[size - 1] = 5

    assert story.tell(IIBTree(dict.fromkeys(range(size), 0)), change) == expected


def test_values_in_trees(story: Story) -> None:
    """Persistent objects in a tree are references."""
    found = story.tell(OOBTree(), lambda tree: tree.update({i: Person() for i in range(100)}))
    assert {found[i][1].oid for i in range(100)} == {
        person._p_oid for person in story.now.root()["it"].values()
    }


@pytest.mark.parametrize("cls", [IITreeSet, IISet])
@pytest.mark.parametrize("size", [10, 1000])
def test_sets(story: Story, cls: type, size: int) -> None:
    """Elements are there, or are not."""

    def change(it: Any) -> None:
        it.add(-1)
        it.remove(5)

    assert story.tell(cls(range(size)), change) == {-1: (..., -1), 5: (5, ...)}


def test_other_states(story: Story) -> None:
    """A state of another form is the attribute ""; slots are attributes."""
    assert story.tell(Length(3), lambda it: it.change(1)) == {"": (3, 4)}
    assert story.tell(Custom([1]), lambda it: setattr(it, "items", [2])) == {"": ((1,), (2,))}
    slotted = Slotted()
    slotted.inside, slotted.data = 1, 0
    assert story.tell(slotted, lambda it: setattr(it, "inside", 2)) == {"inside": (1, 2)}


def test_another_class(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the class has become another one, or is missing, attributes are compared all the
    same."""
    assert story.tell(Counter(), lambda it: it.add(1)) == {"value": (..., 1)}
    monkeypatch.delattr("tests.models.Counter")
    with story.db.open(transaction_manager=transaction.TransactionManager()) as connection:
        found = objdb.diff(story.before(), connection.root()["it"])
    assert found == {"value": (..., 1)}


def test_values_of_missing_classes(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values whose class is missing are told apart by what is stored of them, in a difference,
    and in what undoing would change."""

    def change(it: Person) -> None:
        it.other, it.kind, it.age = Plain(x=2), int, 2

    person = Person(same=Plain(x=1), other=Plain(x=1), kind=Plain, age=1)
    story.tell(person, change)
    monkeypatch.delattr("tests.models.Plain")
    manager = transaction.TransactionManager()
    with story.db.open(transaction_manager=manager) as connection:
        found = objdb.diff(story.before(), connection.root()["it"])
    assert found.keys() == {"other", "kind", "age"} and found["other"][1].x == 2
    [undone] = story.db.undo_preview(story.db.undoLog()[0]["id"]).changes
    assert undone.attributes.keys() == found.keys()


def test_a_preview_of_what_cannot_be_read(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What undoing would change in a record that cannot be read is an error with its oid."""
    story.tell(Person(data=Plain(x=1)), change_a_value)
    oid = story.now.root()["it"]._p_oid

    def refuse(self: Any, state: Any) -> None:
        raise ValueError("not this")

    monkeypatch.setattr(Plain, "__setstate__", refuse, raising=False)
    with pytest.raises(objdb.DeserializationError, match="not this") as caught:
        story.db.undo_preview(story.db.undoLog()[0]["id"])
    assert caught.value.oid == oid


def test_nothing_is_loaded(story: Story) -> None:
    """The objects need not be loaded, and are not, nor what they refer to; and the past need not
    be open any more to look at the result."""
    story.tell(Person(friend=Person()), lambda it: setattr(it, "friend", Person("new")))
    before, now = story.before(), story.now.root()["it"]
    for obj in (before, now):
        obj._p_deactivate()
    found = objdb.diff(before, now)
    assert before._p_changed is None and now._p_changed is None
    story.past.pop().close()
    assert [repr(value)[:14] for value in found["friend"]] == ["<reference to "] * 2


def test_other_databases_are_not_needed(databases: Databases) -> None:
    """References to objects in a database that is not open are compared by its name and oid."""
    group: dict[str, Any] = {}
    one = databases.open("one.fs", databases=group, database_name="one")
    two = databases.open("two.fs", databases=group, database_name="two")
    tids = []
    for name in ("a", "b"):
        with one.transaction() as connection:
            other = connection.get_connection("two")
            other.add(person := Person(name))
            connection.root()["there"] = person
        tids.append(one.storage.lastTransaction())
    one.close()
    two.close()
    alone = databases.open("one.fs")
    with alone.open(at=tids[0]) as before, alone.open(at=tids[1]) as after:
        found = objdb.diff(before.get(b"\0" * 8), after.get(b"\0" * 8))
    assert [value.database_name for value in found["there"]] == ["two", "two"]


def test_a_copy(story: Story, databases: Databases) -> None:
    """The other revision may be in a copy of the database."""
    story.tell(Person(age=1), lambda it: setattr(it, "age", 2))
    copy = objdb.FileStorage(databases.directory / "copy.fs")
    copy.copyTransactionsFrom(story.db.storage)
    story.now.root()["it"].age = 3
    story.manager.commit()
    with databases.open(copy).open() as connection:
        found = objdb.diff(connection.root()["it"], story.now.root()["it"])
    assert found == {"age": (2, 3)}


def change_a_value(it: Any) -> None:
    it.name = "uncommitted"


def change_a_bucket(it: Any) -> None:
    it[500] = "uncommitted"


@pytest.mark.parametrize("with_savepoint", [False, True])
@pytest.mark.parametrize(
    ("make", "change"),
    [(Person, change_a_value), (lambda: OOBTree(dict.fromkeys(range(1000))), change_a_bucket)],
    ids=["object", "node of a tree"],
)
def test_what_is_not_committed(story: Story, make: Any, change: Any, with_savepoint: bool) -> None:
    """Changes that are not committed make no revision; when they are, or are gone, all is well."""
    story.tell(make(), lambda it: None)
    change(story.now.root()["it"])
    if with_savepoint:
        story.manager.savepoint()
    with pytest.raises(objdb.UsageError, match=r"object 0x\w+ has changes that are not committed"):
        objdb.diff(story.before(), story.now.root()["it"])
    story.manager.commit()
    assert len(objdb.diff(story.before(), story.now.root()["it"])) == 1


def test_a_record_that_cannot_be_read(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the object."""
    story.tell(Person(data=Plain(x=1)), change_a_value)

    def refuse(self: Any, state: Any) -> None:
        raise ValueError("not this")

    monkeypatch.setattr(Plain, "__setstate__", refuse, raising=False)
    with pytest.raises(objdb.DeserializationError, match="not this") as caught:
        objdb.diff(story.before(), story.now.root()["it"])
    assert caught.value.oid == story.now.root()["it"]._p_oid


def test_mistakes(story: Story) -> None:
    """Other objects, and what is not stored, are refused in words."""
    story.tell(Person(), change_a_value)
    now = story.now.root()["it"]
    with pytest.raises(objdb.UsageError, match=r"0x0 .*PersistentMapping.* not two revisions"):
        objdb.diff(story.now.root(), now)
    for nothing in (Person(), "text", None):
        with pytest.raises(objdb.UsageError, match="no revisions"):
            objdb.diff(nothing, now)
        with pytest.raises(objdb.UsageError, match="no revisions"):
            objdb.diff(now, nothing)
    story.now.add(new := Person())
    with pytest.raises(objdb.UsageError, match="not committed"):
        objdb.diff(new, new)
    before = story.before()
    story.past.pop().close()
    with pytest.raises(objdb.ConnectionStateError):
        objdb.diff(before, now)


def test_it_counts_as_read(db: objdb.DB) -> None:
    """A serializable transaction that acted on differences fails when they are others now."""
    with db.transaction() as connection:
        connection.root()["it"], connection.root()["mine"] = Person(age=1), Person()
    begin = db.storage.lastTransaction()
    manager = transaction.TransactionManager()
    with db.open(transaction_manager=manager, isolation="serializable") as connection:
        it = connection.root()["it"]
        connection.root()["mine"].name = "acted"
        for is_changed in (False, True):
            with db.open(at=begin) as past:
                assert objdb.diff(past.root()["it"], it) == {}
            connection.root()["mine"].name = "acted"
            if is_changed:
                with db.transaction() as other:
                    other.root()["it"].age = 2
                with pytest.raises(objdb.ReadConflictError):
                    manager.commit()
            else:
                manager.commit()
        manager.abort()
