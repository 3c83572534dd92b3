"""The types of objdb.conflictfree: side by side in transactions, and by themselves."""

from __future__ import annotations

import copy
import datetime
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import transaction

import objdb
from objdb.conflictfree import AppendQueue, Counter, Mapping, MaxRegister, Set
from tests.conftest import Databases
from tests.connection.merging import CONFLICT, Change, commit_all, look, put, run
from tests.models import HashingByName, Person, Plain


class Named(Counter):
    """A counter with an attribute of its own."""

    name = "none"


# Two or more transactions, on each storage


def test_additions_add_up(db: objdb.DB) -> None:
    """Concurrent additions to a counter are all in its value, fractions and subtractions too."""
    amounts = (5, -2, Fraction(1, 3))
    changes: list[Change] = [lambda it, amount=amount: it.add(amount) for amount in amounts]
    assert run(db, Counter(10), *changes, how=lambda it: it.value) == 13 + Fraction(1, 3)


def test_the_largest_stays(db: objdb.DB) -> None:
    """Of concurrent values the largest stays, whichever was committed first."""
    for values in ((3, 9), (9, 3), (1, 2, 3)):
        changes: list[Change] = [lambda it, value=value: it.set(value) for value in values]
        assert run(db, MaxRegister(), *changes, how=lambda it: it.value) == max(values)


def test_appends_are_all_kept(db: objdb.DB) -> None:
    """Concurrently appended items are all there, in the order of the commits."""
    changes: list[Change] = [lambda it, n=n: (it.append(n), it.append("same")) for n in range(3)]
    expected = ["first", 0, "same", 1, "same", 2, "same"]
    assert run(db, AppendQueue(["first"]), *changes) == expected


def test_one_takes_one_appends(db: objdb.DB) -> None:
    """One transaction takes items while another appends, in either order."""
    for changes in (
        [AppendQueue.popleft, lambda it: it.append(3)],
        [lambda it: it.append(3), AppendQueue.popleft],
    ):
        assert run(db, AppendQueue([1, 2]), *changes) == [2, 3]


def test_an_item_is_taken_once(db: objdb.DB) -> None:
    """Two transactions that take the same item conflict, even if equal ones follow it."""
    assert run(db, AppendQueue([1, 1]), AppendQueue.popleft, AppendQueue.popleft) == CONFLICT


def test_taking_what_one_appended_oneself(db: objdb.DB) -> None:
    """Who takes an item of its own conflicts with who appended one before it."""
    def through(it: AppendQueue) -> None:
        it.append("mine")
        it.popleft()

    assert run(db, AppendQueue(), lambda it: it.append("theirs"), through) == CONFLICT
    assert run(db, AppendQueue(), through, lambda it: it.append("ours")) == ["ours"]
    assert run(db, AppendQueue(), through, through) == []


def test_set_changes_merge(db: objdb.DB) -> None:
    """Additions and removals of elements merge, the same ones included."""
    it = Set([1, 2, 3])
    add, discard = (lambda it: it.add(4)), (lambda it: it.discard(2))
    assert run(db, copy.deepcopy(it), add, discard, lambda it: it.add(5)) == [1, 3, 4, 5]
    assert run(db, copy.deepcopy(it), add, add) == [1, 2, 3, 4]
    assert run(db, copy.deepcopy(it), discard, discard) == [1, 3]


def test_set_adding_and_removing_one_element(db: objdb.DB) -> None:
    """A removal wins over adding what is there; an addition over removing what is not."""
    add, discard = (lambda it: it.add(1)), (lambda it: it.discard(1))
    for changes in ([add, discard], [discard, add]):
        assert run(db, Set([1]), *changes) == []
        assert run(db, Set(), *changes) == [1]


def test_mapping_keys_merge(db: objdb.DB) -> None:
    """Changes, additions and deletions of different keys merge, in the order of addition."""
    changes: list[Change] = [
        lambda it: it.update(a=10, d=4), lambda it: it.pop("b"), lambda it: it.update(e=5),
    ]
    found = run(db, Mapping(a=1, b=2, c=3), *changes, how=lambda it: list(it.items()))
    assert found == [("a", 10), ("c", 3), ("d", 4), ("e", 5)]


@pytest.mark.parametrize(("one", "other", "expected"), [
    ({"a": 2}, {"a": 3}, CONFLICT),
    ({"new": 2}, {"new": 3}, CONFLICT),
    ({"a": 1}, {"a": 3}, {"a": 3}),  # 1 is what it was
    ({"a": True}, {"b": 3}, {"a": True, "b": 3}),  # equal to what it was, and another value
    ({"a": True}, {"a": 2}, CONFLICT),
    ({"a": [2]}, {"a": [2]}, {"a": [2]}),
    ({"a": None}, {"a": None}, {"a": None}),
    ({"a": float("nan")}, {"b": 2}, {"b": 2}),
    ({"a": {"x", "y"}}, {"a": {"y", "x"}}, {"a": {"x", "y"}}),
    ({"a": Plain(x=1)}, {"a": Plain(x=1)}, {"a": Plain(x=1)}),
    ({"a": Plain(x=1)}, {"a": Plain(x=2)}, CONFLICT),
])
def test_mapping_changes_of_one_key(
    db: objdb.DB, one: dict, other: dict, expected: Any
) -> None:
    """Different changes of one key conflict; the same changes do not."""
    found = run(
        db, Mapping(a=1), lambda it: it.update(one), lambda it: it.update(other), how=dict
    )
    if isinstance(found, dict) and found["a"] != found["a"]:
        del found["a"]
    assert repr(found) == repr(expected) or found == expected


def test_mapping_deletion_and_change(db: objdb.DB) -> None:
    """Deleting a key conflicts with changing it, and not with deleting it."""
    change, delete = (lambda it: it.update(a=2)), (lambda it: it.pop("a"))
    for changes in ([change, delete], [delete, change]):
        assert run(db, Mapping(a=1), *changes) == CONFLICT
    assert run(db, Mapping(a=1), delete, delete) == []


def test_what_does_not_change_is_not_written(db: objdb.DB) -> None:
    """A call without an effect does not change the object."""
    calls = [
        (Counter(1), lambda it: it.add(0)),
        (MaxRegister(5), lambda it: it.set(4)),
        (Set([1]), lambda it: (it.add(1), it.discard(2))),
    ]
    for it, call in calls:
        put(db, it)
        with db.transaction() as connection:
            call(connection.root()["it"])
            assert not connection.root()["it"]._p_changed


def test_not_in_serializable_transactions(databases: Databases) -> None:
    """In serializable isolation nothing is merged."""
    db = databases.open(isolation="serializable")
    put(db, Counter())
    managers = [transaction.TransactionManager() for _ in range(2)]
    connections = [db.open(transaction_manager=manager) for manager in managers]
    for connection in connections:
        connection.root()["it"].add(1)
    managers[0].commit()
    with pytest.raises(objdb.ConflictError):
        managers[1].commit()
    for manager, connection in zip(managers, connections, strict=True):
        manager.abort()
        connection.close()


# Persistent objects inside


def of(it: Any, name: str) -> Any:
    return it._p_jar.root()[name]


@pytest.fixture(params=[Person, HashingByName])
def people(db: objdb.DB, request: pytest.FixtureRequest) -> objdb.DB:
    """A database with three persistent objects; those of one class have a hash of their own,
    and two of them are equal then."""
    put(db, None, ann=request.param("ann"), ben=request.param("ben"), ben2=request.param("ben"))
    return db


def make(db: objdb.DB, fill: Callable[[Any], Any]) -> None:
    """Store what *fill* makes with the root."""
    with db.transaction() as connection:
        connection.root()["it"] = fill(connection.root())


def test_persistent_elements_of_a_set(people: objdb.DB) -> None:
    """References are the same element if they refer to the same object, however they compare."""
    make(people, lambda root: Set([root["ann"], 1]))
    add, ben2 = (lambda it: it.add(of(it, "ben"))), (lambda it: it.add(of(it, "ben2")))
    assert commit_all(people, [add, ben2, add, lambda it: it.discard(of(it, "ann"))]) == [None] * 4
    with people.transaction() as connection:
        connection.cacheMinimize()
        root = connection.root()
        assert [element is root.get("ben") for element in root["it"]] == [False, True, False]
        assert root["ben2"] in root["it"] and root["ann"] not in root["it"] and 1 in root["it"]
        assert len(root["it"]) == 3


def test_elements_are_not_loaded(people: objdb.DB) -> None:
    """Looking for a persistent element loads neither it nor the others."""
    make(people, lambda root: Set([root["ann"], root["ben"]]))
    with people.transaction() as connection:
        connection.cacheMinimize()
        ann = connection.root()["ann"]
        assert ann in connection.root()["it"]
        assert all(element._p_changed is None for element in connection.root()["it"])


def test_new_persistent_elements(people: objdb.DB) -> None:
    """Objects that are stored with the change itself are kept as well."""
    make(people, lambda root: Set([(root["ann"], 1)]))
    changes: list[Change] = [
        lambda it: it.add(Person("new")),
        lambda it: it.add((of(it, "ben"), 1)),
        lambda it: it.discard((of(it, "ann"), 1)),
        lambda it: it.add((of(it, "ben"), 1)),
    ]
    assert commit_all(people, changes) == [None] * 4
    assert look(people, lambda it: [getattr(x, "name", 0) or x[0].name for x in it]) == [
        "new", "ben",
    ]


def test_persistent_keys_and_values(people: objdb.DB) -> None:
    """Mappings merge with persistent keys and values; two objects as one value conflict."""
    make(people, lambda root: Mapping([(root["ann"], root["ben"]), ("a", [root["ben"]])]))
    first: Change = lambda it: it.update({"b": of(it, "ben")})  # noqa: E731
    by_key: list[Change] = [
        first, first, lambda it: it.__setitem__(of(it, "ben"), [of(it, "ann")]),
        lambda it: it.__setitem__(of(it, "ben2"), of(it, "ann")),
        lambda it: it.update(b=of(it, "ben2")), lambda it: it.pop(of(it, "ann")),
    ]
    assert commit_all(people, by_key) == [None, None, None, None, CONFLICT, None]
    with people.transaction() as connection:
        connection.cacheMinimize()
        root = connection.root()
        it = root["it"]
        assert it["b"] is root["ben"] and it["a"] == [root["ben"]] and len(it) == 4
        assert it[root["ben"]] == [root["ann"]] and it[root["ben2"]] is root["ann"]
        assert root["ann"] not in it


def test_persistent_items_of_a_queue(people: objdb.DB) -> None:
    """A queue keeps persistent items, the same one twice and weak references included."""
    make(people, lambda root: AppendQueue([root["ann"], root["ann"]]))
    changes: list[Change] = [
        lambda it: it.append(of(it, "ben")), AppendQueue.popleft,
        lambda it: it.append(objdb.WeakRef(of(it, "ben2"))), AppendQueue.popleft,
    ]
    assert commit_all(people, changes) == [None, None, None, CONFLICT]
    with people.transaction() as connection:
        connection.cacheMinimize()
        root = connection.root()
        ann, ben, weak = root["it"]
        assert ann is root["ann"] and ben is root["ben"] and weak() is root["ben2"]


def test_tuples_in_a_register(people: objdb.DB) -> None:
    """Tuples with persistent objects are compared as long as an element before them decides."""
    def change(number: int, name: str) -> Change:
        return lambda it: it.set((number, of(it, name)))

    make(people, lambda root: MaxRegister())
    changes = [change(2, "ann"), change(1, "ben"), change(2, "ann"), change(2, "ben")]
    assert commit_all(people, changes) == [None, None, None, CONFLICT]
    assert look(people, lambda it: it.value[0] == 2 and it.value[1] is of(it, "ann"))


def test_references_to_another_database() -> None:
    """Objects of another database are the same element if they are the same object there."""
    databases: dict[str, objdb.DB] = {}
    with (
        objdb.DB(databases=databases, database_name="one") as db,
        objdb.DB(databases=databases, database_name="two") as other,
    ):
        put(other, None, ann=Person("ann"), ben=Person("ben"))
        put(db, Set())

        def add(name: str) -> Change:
            def change(it: Set) -> None:
                it.add(it._p_jar.get_connection("two").root()[name])
            return change
        assert commit_all(db, [add("ann"), add("ben"), add("ann")]) == [None] * 3
        assert look(db, lambda it: [person.name for person in it]) == ["ann", "ben"]


# Good manners


@pytest.mark.parametrize("cls", [Counter, MaxRegister, AppendQueue, Set, Mapping])
def test_old_states(cls: Any) -> None:
    """A state without an attribute, or none at all, loads and merges."""
    for state in (None, {}, {"other": 1}):
        it = cls.__new__(cls)
        if state is not None:
            it.__setstate__(state)
            assert repr(it).startswith(f"<{cls.__name__} ") and it == it and it != cls()
        merged = cls.__new__(cls)._p_resolveConflict(state, state, cls().__getstate__())
        assert pickle.loads(pickle.dumps(merged)) is not None
        it.__setstate__(merged)
        expected = {**cls().__getstate__(), **(state or {})}
        assert {**it.__getstate__(), **(state or {})} == expected


def test_attributes_of_subclasses(db: objdb.DB) -> None:
    """Attributes beside the type's own are merged by name."""
    def rename(name: str) -> Change:
        return lambda it: setattr(it, "name", name)

    def both(it: Named) -> tuple:
        return it.name, it.value

    assert run(db, Named(), rename("a"), lambda it: it.add(1), how=both) == ("a", 1)
    assert run(db, Named(), lambda it: it.add(1), rename("a"), how=both) == ("a", 1)
    assert run(db, Named(), rename("a"), rename("b"), how=both) == CONFLICT


def test_reprs() -> None:
    """A repr says what it is, and shows nothing that would have to be loaded."""
    things = [Counter(3), MaxRegister("x"), AppendQueue("ab"), Set("ab"), Mapping(a=1)]
    assert list(map(repr, things)) == [
        "<Counter 3>", "<MaxRegister 'x'>", "<AppendQueue of 2>", "<Set of 2>", "<Mapping of 1>",
    ]


def test_equality_is_left_alone() -> None:
    """Two of them are equal only if they are the same object, and they can be elements."""
    for cls in (Counter, MaxRegister, AppendQueue, Set, Mapping):
        assert cls() != cls() and len({cls(), cls()}) == 2


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: Counter().add(0.5), TypeError, "expected an int or a Fraction, not 0.5"),
    (lambda: Counter("1"), TypeError, "not '1'"),
    (lambda: MaxRegister(Person()), TypeError, "persistent object"),
    (lambda: MaxRegister(1).set("1"), TypeError, "not supported"),
    (lambda: MaxRegister(float("nan")), ValueError, "neither larger nor smaller"),
    (lambda: MaxRegister(frozenset("a")).set(frozenset("b")), ValueError, "neither larger"),
    (lambda: AppendQueue().popleft(), IndexError, "the queue is empty"),
    (lambda: Set([[]]), TypeError, "unhashable"),
    (lambda: Set().add(object()), TypeError, "equals only itself"),
    (lambda: Set().add((1, object())), TypeError, "equals only itself"),
    (lambda: Set().add(float("nan")), ValueError, "does not equal itself"),
    (lambda: Set().add(objdb.WeakRef(Person())), TypeError, "weak reference"),
    (lambda: Mapping()["a"], KeyError, "^'a'$"),
    (lambda: Mapping().pop("a"), KeyError, "^'a'$"),
    (lambda: Mapping().__setitem__([], 1), TypeError, "unhashable"),
    (lambda: setattr(Counter(), "value", 1), AttributeError, "value"),
])
def test_bad_arguments(call: Callable[[], Any], error: type, text: str) -> None:
    """What cannot be taken is refused, with the reason."""
    with pytest.raises(error, match=text):
        call()


def test_odd_elements(db: objdb.DB) -> None:
    """None, classes, functions, frozensets and named tuples are elements like others."""
    elements = [None, int, len, frozenset([1]), datetime.date(2000, 1, 1), (1, (2, None))]
    found = run(db, Set(elements[:2]), *[
        lambda it, element=element: it.add(element) for element in elements
    ])
    assert found == elements


def test_equal_keys() -> None:
    """As in a dict, the first of two equal keys stays, with the later value."""
    it = Mapping([(1, "a")], b=2)
    it[True] = "c"
    assert repr(list(it.items())) == "[(1, 'c'), ('b', 2)]"


@pytest.mark.parametrize("it", [Set("abc"), Mapping(a=1, b=2, c=3), AppendQueue("abc")], ids=repr)
def test_copies(it: Any) -> None:
    """A copy is independent, and iterates alike."""
    for other in (copy.deepcopy(it), pickle.loads(pickle.dumps(it))):
        assert list(other) == list("abc") and len(other) == 3
        {Set: Set.discard, Mapping: Mapping.pop}.get(type(it), AppendQueue.append)(other, "a")
        assert len(it) == 3 != len(other)
