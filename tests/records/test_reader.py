"""Records become objects: classes in every form, memos shared or not, whatever was read before."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import objdb
from objdb.errors import DeserializationError, POSKeyError, PythonTwoRecordError
from tests.models import HashingByName, Person, Plain, Point
from tests.records.handmade import (
    GONE,
    Ref,
    application,
    loaded,
    oid,
    prefix,
    record,
    state_pickle,
    storage_with,
)

TARGET = record(Person, {"name": "target"})


class q(objdb.Persistent):
    """Its name looks like an opcode where the class pickle ends."""


@pytest.mark.parametrize("zodb", [False, True], ids=["apart", "shared memo"])
@pytest.mark.parametrize(
    ("metadata", "state", "expected"),
    [
        (Person, {"name": "x"}, {"name": "x"}),
        (("tests.models", "Person"), {"name": "x"}, None),
        ((Person, None), {"name": "x"}, {"name": "x"}),
        ((Point, (1, 2)), {"made_with": (1, 2), "y": 3}, {"made_with": (1, 2), "y": 3}),
        ((("tests.models", "Person"), None), {"name": "x"}, {"name": "x"}),
        ((("tests.models", "Point"), (3, 4)), {"y": 5}, {"y": 5}),
        ((("tests.models", "Person"), ()), {"name": "x"}, {"name": "x"}),
        (q, {"name": "x"}, {"name": "x"}),
    ],
)
def test_class_metadata(metadata: Any, state: dict, expected: dict | None, zodb: bool) -> None:
    """Every form of class metadata is read, by whoever it was written; (module, name) without
    arguments is none, and refused."""
    with loaded_or_refused(record(metadata, state, zodb=zodb), expected) as person:
        if expected is not None:
            person._p_activate()
            assert vars(person) == expected
            named = metadata[0] if isinstance(metadata, tuple) else metadata
            name = named[1] if isinstance(named, tuple) else named.__name__
            assert type(person).__name__ == name


class loaded_or_refused:
    def __init__(self, content: bytes, expected: Any) -> None:
        self.db = objdb.DB(storage_with(content))
        self.expected = expected

    def __enter__(self) -> Any:
        self.connection = self.db.open()
        if self.expected is not None:
            return self.connection.get(oid(1))
        with pytest.raises(DeserializationError):
            self.connection.get(oid(1))
        return None

    def __exit__(self, *exception: object) -> None:
        self.connection.close()
        self.db.close()


def shared(number: int) -> bytes:
    """As ZODB writes it: the state refers to the class as entry 0 of the memo."""
    twice = [number, number]
    state = {"n": number, "cls": Person, "to": Ref((oid(1), Person)), "twice": [twice, twice]}
    content = record(Person, state, zodb=True)
    assert b"h\x00" in content and b"q\x00." in content
    return content


def apart(number: int) -> bytes:
    """A class pickle like ZODB's, before a state with a memo of its own, which begins at 0."""
    twice = [number, number]
    state = {"n": number, "cls": Person, "to": Ref((oid(1), Person)), "twice": [twice, twice]}
    content = record(Person, state)
    assert content.startswith(b"\x80\x03ctests.models\nPerson\nq\x00.\x80\x03}q\x00")
    return content


def ours(number: int) -> bytes:
    """As objdb writes it."""
    return prefix("tests.models", "Person") + apart(number)[len("  ctests.models\nPerson\nq0.") :]


def plain(number: int) -> bytes:
    """No reference at all, and the class as entry 0."""
    twice = [number, number]
    state = {"n": number, "cls": Person, "to": None, "twice": [twice, twice]}
    return record(Person, state, zodb=True)


def large(number: int) -> bytes:
    """Large, with the class as entry 0."""
    twice = [number, number]
    state = {
        "n": number, "cls": Person, "to": Ref((oid(1), Person)), "twice": [twice, twice],
        "data": b"x" * 100_000,
    }
    return record(Person, state, zodb=True)


KINDS = (shared, apart, ours, plain, large)


@pytest.mark.parametrize("order", list(itertools.permutations(KINDS, 3)))
def test_memos_do_not_mix(order: tuple[Any, ...]) -> None:
    """States that share the memo of their class pickle and states that do not are read in any
    order, each right."""
    contents = [TARGET, *(kind(i) for i, kind in enumerate((*order, *order)))]
    with loaded(*contents) as (target, *people):
        for i, person in enumerate(people):
            assert (person.n, person.cls) == (i, Person)
            assert person.to is (None if (order * 2)[i] is plain else target)
            assert person.twice == [[i, i], [i, i]]
            assert person.twice[0] is person.twice[1]


@pytest.mark.parametrize("protocol", [1, 2, 4, 5])
@pytest.mark.parametrize("zodb", [False, True], ids=["apart", "shared memo"])
def test_other_protocols(protocol: int, zodb: bool) -> None:
    """States pickled with another protocol, by other tools, are read right after one another and
    after states of protocol 3."""
    contents = [TARGET]
    for i in range(4):
        twice = [i, f"text {i}"]
        state = {"to": Ref((oid(1), Person)), "a": twice, "b": twice, "n": f"n {i}"}
        # From protocol 4 on the memo is numbered by itself, so it has to be shared.
        for number in (protocol if i % 2 else 3, protocol):
            contents.append(record(Person, state, zodb=zodb or number > 3, protocol=number))
        contents.append(prefix("tests.models", "Person") + state_pickle(state, protocol))
    with loaded(*contents) as (target, *people):
        for i, person in enumerate(people):
            assert person.n == f"n {i // 3}"
            assert person.a is person.b
            assert person.a == [i // 3, f"text {i // 3}"]
            assert person.to is target


LAST = b"X\x04\x00\x00\x00last"
BROKEN_OFF = {
    "cut off": lambda content: content[:-12],
    "missing object": lambda content: content.replace(oid(1), oid(77)),
    "no opcode": lambda content: content.replace(LAST, b"\xff" + LAST),
    "Python 2": lambda content: content.replace(LAST, b"U\x07\x00\x00\x00last"),
    "stack": lambda content: content.replace(LAST, b"0" * 9),
}


@pytest.mark.parametrize("kind", [shared, ours])
@pytest.mark.parametrize("damage", BROKEN_OFF)
def test_reading_goes_on_after_an_error(damage: str, kind: Any) -> None:
    """After a record that cannot be read, others of the same class are read right."""
    state = {"first": Ref(oid(1)), "last": "last", "more": [1, 2, {"x": "y"}]}
    content = record(Person, state, zodb=True)
    if kind is ours:
        length = len(b"\x80\x03ctests.models\nPerson\nq\x00.")
        content = prefix("tests.models", "Person") + content[length:]
    bad = BROKEN_OFF[damage](content)
    assert bad != content
    with loaded(TARGET, kind(2), bad, kind(4), kind(5), bad, kind(7)) as people:
        assert people[1].n == 2
        for place in (2, 5):
            with pytest.raises((DeserializationError, POSKeyError)):
                _ = people[place].last
        for place, number in ((3, 4), (4, 5), (6, 7)):
            assert people[place].n == number
            assert people[place].to is people[0]


@pytest.mark.parametrize("kind", [shared, ours, plain])
def test_bytes_behind_a_state(kind: Any) -> None:
    """What stands behind the end of a state belongs to no other object."""
    evil = record(Person, {"n": "evil", "to": Ref((oid(1), Person))})[-50:]
    with loaded(TARGET, kind(2), kind(3) + evil, kind(4), kind(5)) as people:
        assert [person.n for person in people[1:]] == [2, 3, 4, 5]


def test_shared_parts_are_shared() -> None:
    """One object twice in a state is one object after loading, recursive ones included."""
    ring: list[Any] = [Ref((oid(1), Person))]
    ring.append(ring)
    with loaded(TARGET, record(Person, {"a": ring, "b": ring}, zodb=True)) as (target, person):
        assert person.a is person.b is person.a[1]
        assert person.a[0] is target


def test_loading_within_loading() -> None:
    """A key whose hash loads an object of the same class, which does so in turn, can be read."""

    def key(to: int | None, name: str) -> bytes:
        inner = {} if to is None else {Ref((oid(to), HashingByName)): name}
        return record(HashingByName, {"name": name, "inner": inner}, zodb=True)

    with loaded(key(2, "a"), key(3, "b"), key(None, "c")) as keys:
        assert keys[0].inner[HashingByName("b")] == "a"
        assert keys[1].inner[HashingByName("c")] == "b"
        assert [k.name for k in keys] == ["a", "b", "c"]


def test_a_class_that_is_persistent_no_more() -> None:
    """A record of a class that does not derive from Persistent says so."""
    with (
        objdb.DB(storage_with(record(Plain, {"x": 1}))) as db,
        db.open() as connection,
        pytest.raises(DeserializationError, match=r"tests\.models\.Plain does not derive"),
    ):
        connection.get(oid(1))


def test_a_class_that_comes_back() -> None:
    """A class that was missing is used as soon as it can be imported, in new connections."""
    with application() as module:
        content = record(module.Thing, {"x": [Ref((oid(1), module.Thing))]}, zodb=True)
    with objdb.DB(storage_with(content)) as db:
        with db.transaction() as connection:
            assert type(connection.get(oid(1))).__module__ == GONE
            with pytest.raises(objdb.BrokenObjectError):
                connection.get(oid(1)).x = 1
        with application() as module:
            connection = db.open(temporary=True)
            thing = connection.get(oid(1))
            assert type(thing) is module.Thing
            assert thing.x[0] is thing
            connection.close()


OLD = {
    "SHORT_BINSTRING": b"\x80\x02}U\x04nameU\x05valueQs.",
    "value only": b"\x80\x02}X\x04\x00\x00\x00nameU\x05values.",
    "BINSTRING": b"\x80\x02}X\x04\x00\x00\x00nameT\x05\x00\x00\x00values.",
    "STRING": b"}X\x04\x00\x00\x00nameS'value'\ns.",
    "oid": b"\x80\x02}X\x04\x00\x00\x00nameU\x08\0\0\0\0\0\0\0\x01Qs.",
    "oid and class": b"\x80\x02}X\x04\x00\x00\x00name(U\x08\0\0\0\0\0\0\0\x01"
    b"ctests.models\nPerson\ntQs.",
    "text oid": b"\x80\x02}X\x04\x00\x00\x00nameX\x08\x00\x00\x00\0\0\0\0\0\0\0\x01Qs.",
    "weak": b"\x80\x02}X\x04\x00\x00\x00name](U\x01w(U\x08\0\0\0\0\0\0\0\x01tleQs.",
}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("memo", [b"", b"q\x00"], ids=["apart", "shared memo"])
def test_records_of_python_two(old: str, memo: bytes) -> None:
    """A record with strings of Python 2 names its class and the tool, and is never guessed at."""
    content = b"\x80\x02ctests.models\nPerson\n" + memo + b"." + OLD[old]
    same_class = content.replace(b"\x80\x02c", b"\x80\x03c", 1)
    with loaded(TARGET, content, same_class, shared(3)) as people:
        for person in people[1:3]:
            with pytest.raises(PythonTwoRecordError) as caught:
                person._p_activate()
            assert caught.value.oid == person._p_oid
            if old != "text oid":
                assert "zodbupdate" in str(caught.value)
                assert caught.value.class_name == "tests.models.Person"
        assert people[3].n == 3


def test_class_metadata_of_python_two() -> None:
    """Class metadata with strings of Python 2 is told as such."""
    content = b"\x80\x02(U\x0ctests.modelsU\x06PersontN\x86.\x80\x02}."
    with (
        objdb.DB(storage_with(content)) as db, db.open() as connection,
        pytest.raises(PythonTwoRecordError),
    ):
        connection.get(oid(1))


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.sampled_from(KINDS), min_size=2, max_size=8), data=st.data())
def test_any_order_of_touching(order: list[Any], data: st.DataObject) -> None:
    """However kinds are mixed, and in whatever order objects are touched, dropped and touched
    again, each has its own state."""
    contents = [TARGET, *(kind(i) for i, kind in enumerate(order))]
    with loaded(*contents) as (_, *people):
        places = st.lists(st.integers(0, len(order) - 1), min_size=1, max_size=12)
        for place in data.draw(places):
            assert people[place].n == place
            assert people[place].twice == [[place, place]] * 2
            people[place]._p_deactivate()
