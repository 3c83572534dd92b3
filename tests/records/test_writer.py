"""Objects become records; what cannot is told with the path that leads to it."""

from __future__ import annotations

import io
import pickle
import pickletools
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transaction
from hypothesis import given, settings
from hypothesis import strategies as st

import objdb
from objdb.errors import UnpicklableError
from objdb.records.references import record_class_name
from tests.conftest import Databases
from tests.models import Counter, Custom, Person, Plain, Point
from tests.records.handmade import persistent_ids


class Locked:
    """A plain object that holds a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Exploding:
    """Cannot be pickled, nor shown."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no way")

    def __repr__(self) -> str:
        return "<exploding>"


class Loud(objdb.Persistent):
    """Has an unpicklable argument for `__new__`."""

    def __new__(cls, argument: Any = None) -> Loud:
        loud = objdb.Persistent.__new__(cls)
        loud.__dict__["_v_argument"] = argument
        return loud

    def __getnewargs__(self) -> Any:
        return (self.__dict__["_v_argument"],)


class Refusing(objdb.Persistent):
    """Has no state to give."""

    def __getstate__(self) -> Any:
        raise LookupError("no state today")


def local_instance() -> Any:
    class Local:
        pass

    local = Local()
    local.name = "has attributes that can be stored"
    return local


def commit(databases: Databases, obj: Any) -> UnpicklableError:
    """Commit *obj*, and return the error that it gave; nothing was stored."""
    db = databases.open(None)
    with db.open() as connection:
        connection.root()["p"] = obj
        with pytest.raises(UnpicklableError) as caught:
            transaction.commit()
        transaction.abort()
        assert len(db.storage) == 1
        assert list(connection.root()) == []
    assert obj._p_oid is None
    return caught.value


def looped() -> Any:
    parent = Plain()
    parent.child = Plain(parent=parent)
    parent.lock = threading.Lock()
    return parent


def endless() -> Any:
    around: list[Any] = []
    around += [around, threading.Lock()]
    return around


UNPICKLABLE = {
    "lock": (lambda: threading.Lock(), "Person.data"),
    "in a dict and a list": (lambda: {"x": [1, 2, 3, threading.Lock()]}, "Person.data['x'][3]"),
    "in a tuple": (lambda: (1, (2, threading.Lock())), "Person.data[1][1]"),
    "lambda": (lambda: {"f": lambda: None}, "Person.data['f']"),
    "of a local class": (lambda: [local_instance()], "Person.data[0]"),
    "local class": (lambda: {"cls": type(local_instance())}, "Person.data['cls']"),
    "plain object": (lambda: [Plain(a=1, b={"y": Locked()})], "Person.data[0].b['y'].lock"),
    "dict key": (lambda: {"a": 1, threading.Lock: 2, (1, print): 3, id: 4, len: 5}, None),
    "key": (lambda: {"a": 1, Exploding(): 2}, "Person.data.keys()[1]"),
    "nested key": (lambda: {"a": {(1, Exploding()): 2}}, "Person.data['a'].keys()[0][1]"),
    "set": (
        lambda: {"a", Exploding()},
        "Person.data{<tests.records.test_writer.Exploding object>}",
    ),
    "frozenset": (
        lambda: [frozenset([Exploding()])],
        "Person.data[0]{<tests.records.test_writer.Exploding object>}",
    ),
    "in a set": (
        lambda: {(1, Exploding())},
        "Person.data{(1, <tests.records.test_writer.Exploding object>)}[1]",
    ),
    "generator": (lambda: ["a", (letter for letter in "a")], "Person.data[1]"),
    "memoryview": (lambda: {1: memoryview(b"x")}, "Person.data[1]"),
    "parent of its parent": (looped, "Person.data.lock"),
    "in a list in itself": (endless, "Person.data[1]"),
}


@pytest.mark.parametrize("kind", [kind for kind in UNPICKLABLE if UNPICKLABLE[kind][1]])
def test_path_to_what_cannot_be_stored(databases: Databases, kind: str) -> None:
    """The error names class, attribute path and value, and what to do."""
    make, path = UNPICKLABLE[kind]
    error = commit(databases, Person("p", good=[1], data=make()))
    assert error.attribute_path == path
    assert str(error).startswith(f"{path}: ")
    assert error.class_name == "tests.models.Person"
    assert "_v_" in str(error)
    assert isinstance(error, TypeError)


def test_what_can_be_stored_is_not_blamed(databases: Databases) -> None:
    """Functions and classes that can be imported are stored by name, as keys and values."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["p"] = Person("p", data=UNPICKLABLE["dict key"][0]())
    connection = db.open(temporary=True)
    assert connection.root()["p"].data == UNPICKLABLE["dict key"][0]()
    connection.close()


def test_open_files_cannot_be_stored(databases: Databases, tmp_path: Path) -> None:
    """An open file in the state is told with its path."""
    with open(tmp_path / "file.txt", "w", encoding="utf-8") as file:
        error = commit(databases, Person("p", log={"to": file}))
    assert error.attribute_path == "Person.log['to']"


def test_paths_begin_at_the_object_that_holds_it(databases: Databases) -> None:
    """What cannot be stored is told by the persistent object whose state it is in, whatever
    object that was reached from."""
    inner = Person("inner", bad=lambda: None)
    error = commit(databases, Counter_with(value=Person("outer", inner=[inner])))
    assert error.attribute_path == "Person.bad"
    assert error.oid is not None
    error = commit(databases, Custom([1, {"x": threading.Lock()}]))
    assert error.attribute_path == "Custom[1]['x']"
    error = commit(databases, objdb.PersistentMapping(a=[print, Exploding()]))
    assert error.attribute_path == "PersistentMapping.data['a'][1]"


def Counter_with(**attributes: Any) -> Counter:
    counter = Counter()
    counter.__dict__.update(attributes)
    return counter


def test_local_persistent_classes(databases: Databases) -> None:
    """An object of a persistent class inside a function is refused with advice."""

    class Local(objdb.Persistent):
        pass

    error = commit(databases, Local())
    assert "top level" in str(error)
    assert "Local" in str(error)


def test_shadowed_class(databases: Databases) -> None:
    """An object whose class is not the one found under its name is refused: it would come back
    as an object of the other."""
    imposter = type("Person", (objdb.Persistent,), {"__module__": "tests.models"})
    error = commit(databases, imposter())
    assert "tests.models.Person" in str(error)


def test_unpicklable_arguments_for_new(databases: Databases) -> None:
    """What cannot be stored among the arguments for `__new__` is told like that in the state."""
    error = commit(databases, Loud(threading.Lock()))
    assert error.class_name.endswith("Loud")


def test_errors_of_getstate_come_through(databases: Databases) -> None:
    """An error in `__getstate__` is raised as it is, and nothing is stored."""
    db = databases.open(None)
    with pytest.raises(LookupError, match="today"), db.transaction() as connection:
        connection.root()["r"] = Refusing()
    assert len(db.storage) == 1


def test_the_record(databases: Databases) -> None:
    """A record is the class by name, nothing in its memo, and the state, in protocol 3."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["p"] = person = Person("p", to=Person("other"))
        connection.root()["q"] = point = Point(1, 2)
    content = db.storage.load(person._p_oid)[0]
    assert content.startswith(b"\x80\x03ctests.models\nPerson\n.\x80\x03")
    assert record_class_name(content) == "tests.models.Person"
    file = io.BytesIO(db.storage.load(point._p_oid)[0])
    assert pickle.load(file) == (Point, (1, 2))
    assert pickle.load(file) == {"made_with": (1, 2)}
    assert file.read() == b""
    for opcode, argument, _ in pickletools.genops(content[content.index(b".\x80") + 1 :]):
        assert opcode.proto <= 3
        assert opcode.name != "PROTO" or argument == 3


def test_one_state_does_not_lean_on_another(databases: Databases) -> None:
    """Objects shared between the states of one commit are stored in each of them."""
    db = databases.open(None)
    shared = ["shared", "x" * 50]
    with db.transaction() as connection:
        root = connection.root()
        other = Person("other")
        root["people"] = people = [Person("p", a=shared, to=other, b=shared) for _ in range(3)]
    for person in people:
        content = db.storage.load(person._p_oid)[0]
        assert persistent_ids(content) == [(other._p_oid, Person)]
        assert content.count(b"x" * 50) == 1
    connection = db.open(temporary=True)
    for person in connection.root()["people"]:
        assert person.a == shared and person.a is person.b
    connection.close()


def test_after_an_error_the_writer_goes_on(databases: Databases) -> None:
    """A connection whose commit failed on an unpicklable attribute stores the next one right."""
    db = databases.open(None)
    with db.open() as connection:
        friend = Person("friend")
        connection.root()["p"] = person = Person("p", to=friend, bad=[friend, threading.Lock()])
        with pytest.raises(UnpicklableError):
            transaction.commit()
        transaction.abort()
        person.bad = [friend]
        connection.root()["p"] = person
        transaction.commit()
        assert persistent_ids(db.storage.load(person._p_oid)[0]) == [(friend._p_oid, Person)] * 2


def test_weak_reference_stores_what_it_refers_to(databases: Databases) -> None:
    """A new object that only a weak reference leads to is stored."""
    db = databases.open(None)
    with db.transaction() as connection:
        connection.root()["w"] = objdb.WeakRef(person := Person("weakly held"))
    connection = db.open(temporary=True)
    assert connection.root()["w"]().name == "weakly held"
    connection.close()
    assert person._p_oid is not None


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    | st.tuples(inner, inner)
    | st.builds(lambda x: Plain(x=x), inner)
    | st.frozensets(st.integers() | st.text(), max_size=4),
    max_leaves=12,
)
names = st.text(
    st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=6
).filter(lambda name: name not in ("name", "me"))


@settings(max_examples=60, deadline=None)
@given(states=st.lists(st.dictionaries(names, plain_values, max_size=5), min_size=1, max_size=5))
def test_any_state_comes_back(states: list[dict[str, Any]]) -> None:
    """Any state of built-in values and plain objects is the same after loading, types
    included."""
    with objdb.DB(None) as db:
        with db.transaction() as connection:
            people = [Person("p", me=i, **state) for i, state in enumerate(states)]
            for person, following in pairwise(people):
                person.following = following
            connection.root()["people"] = people
        connection = db.open(temporary=True)
        for i, person in enumerate(connection.root()["people"]):
            expected = {"name": "p", "me": i, **states[i]}
            found = {key: value for key, value in person.__getstate__().items()
                     if key != "following" or i == len(states) - 1}
            assert found == expected
            assert repr(typed(found)) == repr(typed(expected))
        connection.close()


def typed(value: Any) -> Any:
    """The types in a value, which equality does not compare: True is 1 is 1.0."""
    if isinstance(value, dict):
        return [(type(key), typed(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(part) for part in value]
    return type(value)
