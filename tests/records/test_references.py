"""References in records: every form is read, the right one is written, and all are found without
importing a class."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import transaction
from persistent.wref import WeakRef

import objdb
from objdb.errors import CorruptedDataError
from objdb.records.references import (
    Reference,
    ReferenceScanner,
    all_references,
    parse_reference,
    record_class_name,
    references,
)
from objdb.storage.memory import MappingStorage
from tests.conftest import Databases
from tests.models import Person, Plain, Point
from tests.records.handmade import (
    GONE,
    Ref,
    application,
    loaded,
    oid,
    persistent_ids,
    prefix,
    put,
    record,
    state_pickle,
    storage_with,
)

STRONG = {
    "oid": oid(2),
    "oid and class": (oid(2), Person),
    "oid and class by name": (oid(2), ("tests.models", "Person")),
}
WEAK = {"weak": ["w", (oid(2),)], "old weak": [oid(2)]}
TARGET = record(Person, {"name": "target"})


@pytest.mark.parametrize("form", STRONG)
def test_strong_forms_are_read(form: str) -> None:
    """Every form of a strong reference leads to the one object with that oid."""
    owner = record(Person, {"to": Ref(STRONG[form]), "again": [Ref(oid(2))]})
    with loaded(owner, TARGET) as (person, target):
        assert person.to is target
        assert person.again[0] is target
        assert person.to.name == "target"
    assert references(owner) == [oid(2), oid(2)]


@pytest.mark.parametrize("form", STRONG)
def test_the_first_reference_makes_the_object(form: str) -> None:
    """A reference of any form is enough to make an object that nothing has met before."""
    storage = storage_with(record(Person, {"to": Ref(STRONG[form])}))
    put(storage, 2, TARGET)
    with objdb.DB(storage) as db, db.transaction() as connection:
        (person,) = connection.root()["all"]
        assert type(person.to) is Person
        assert (person.to._p_oid, person.to.name) == (oid(2), "target")


@pytest.mark.parametrize("form", WEAK)
def test_weak_forms_are_read(form: str) -> None:
    """Both forms of a weak reference become a WeakRef that finds its object."""
    owner = record(Person, {"to": Ref(WEAK[form])})
    with loaded(owner, TARGET) as (person, target):
        assert type(person.to) is WeakRef
        assert person.to() is target
    assert references(owner) == []
    assert all_references(owner) == [Reference(oid(2), True, None)]


def test_weak_reference_to_nothing() -> None:
    """A weak reference whose object does not exist gives None."""
    with loaded(record(Person, {"to": Ref(["w", (oid(99),)])})) as (person,):
        assert person.to() is None


@pytest.mark.parametrize(
    "form",
    [["n", ("two", oid(0))], ["m", ("two", oid(0), objdb.PersistentMapping)]],
    ids=["n", "m"],
)
def test_references_to_other_databases_are_read(databases: Databases, form: list) -> None:
    """Both forms of a reference to another database lead to its object."""
    group: dict[str, Any] = {}
    owner = record(Person, {"to": Ref(form), "weak": Ref(["w", (oid(0), "two")])})
    one = databases.open(storage_with(owner), databases=group, database_name="one")
    two = databases.open(None, databases=group, database_name="two")
    with one.transaction() as connection:
        (person,) = connection.root()["all"]
        assert person.to is connection.get_connection("two").root()
        assert person.to._p_jar.db() is two
        assert person.weak() is person.to
    assert references(owner) == []
    assert all_references(owner) == [
        Reference(oid(0), False, "two"), Reference(oid(0), True, "two"),
    ]


def test_a_database_that_is_not_open() -> None:
    """A reference to a database that is not in the group says which, and which there are."""
    with (
        loaded(record(Person, {"to": Ref(["n", ("two", oid(0))])})) as (person,),
        pytest.raises(objdb.ObjdbError, match=r"'two'.*'unnamed'"),
    ):
        _ = person.to


def test_written_forms(databases: Databases) -> None:
    """What is written is the form that spec and ZODB give each kind of reference."""
    group: dict[str, Any] = {}
    db = databases.open(None, databases=group, database_name="one")
    databases.open(None, databases=group, database_name="two")
    with db.transaction() as connection:
        other = connection.get_connection("two").root()
        other["point"], other["person"] = Point(1, 2), Person("there")
        for obj in other.values():
            connection.get_connection("two").add(obj)
        here = Person("here")
        connection.add(here)
        point = Point(1, 2)
        connection.add(point)
        connection.root()["p"] = person = Person("owner")
        person.all = [
            here, point, WeakRef(here), other["person"], other["point"], WeakRef(other["person"]),
        ]
        places = [here._p_oid, other["person"]._p_oid, other["point"]._p_oid, point._p_oid]
    ours, theirs, their_point, our_point = places
    assert persistent_ids(db.storage.load(person._p_oid)[0]) == [
        (ours, Person),
        our_point,
        ["w", (ours,)],
        ["m", ("two", theirs, Person)],
        ["n", ("two", their_point)],
        ["w", (theirs, "two")],
    ]


def test_references_need_no_classes() -> None:
    """References and class names are read from records whose classes cannot be imported, and
    nothing is imported for it."""
    with application() as module:
        nested = module.Inline()
        nested.inside = {"x": [Ref((oid(7), module.Other))], "called": module.Called(Ref(oid(8)))}
        items, pairs = module.Items([Ref(oid(9))]), module.Pairs(k=Ref(oid(10)))
        state = {"a": nested, "items": items, "pairs": pairs, "cls": module.Thing}
        plain = record(module.Thing, state)
        by_arguments = record((module.Made, (1, "x")), state, zodb=True)
        by_name = record(((GONE, "Thing"), None), state)
    for content in (plain, by_arguments, by_name):
        assert references(content) == [oid(7), oid(8), oid(9), oid(10)]
    assert record_class_name(plain) == record_class_name(by_name) == f"{GONE}.Thing"
    assert record_class_name(by_arguments) == f"{GONE}.Made"
    assert GONE not in sys.modules


def test_references_behind_keyword_arguments() -> None:
    """References are found in a state that holds an object made with keyword arguments."""
    with application() as module:
        keywords = module.Keywords(1, to=Ref(oid(5)))
        content = record(module.Thing, {"k": keywords, "to": Ref(oid(6))})
    assert references(content) == [oid(5), oid(6)]


def test_arguments_for_new_can_refer(databases: Databases) -> None:
    """A persistent object among the arguments for `__new__` is referred to, not copied into the
    record."""
    db = databases.open(None)
    with db.transaction() as connection:
        root = connection.root()
        root["p"], root["h"] = Person("p"), Holder(Person("inner"))
        connection.transaction_manager.savepoint()
        root["both"] = Holder(root["p"])
        place = root["both"]
    target = place.held._p_oid
    assert references(db.storage.load(place._p_oid)[0]) == [target]
    connection = db.open(temporary=True)
    assert connection.root()["both"].held is connection.root()["p"]
    assert connection.root()["h"].held._p_jar is connection
    assert connection.root()["h"].held.name == "inner"
    connection.close()


class Holder(objdb.Persistent):
    """Made with a persistent argument, and no other state."""

    def __new__(cls, held: Any) -> Holder:
        holder = objdb.Persistent.__new__(cls)
        holder.__dict__["_v_held"] = held
        return holder

    def __getnewargs__(self) -> Any:
        return (self.held,)

    def __getstate__(self) -> Any:
        return None

    def __setstate__(self, state: Any) -> None:
        pass

    @property
    def held(self) -> Any:
        return self.__dict__["_v_held"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(["x", ()], id="kind"), pytest.param(["w", ()], id="weak to nothing"),
        pytest.param([], id="empty"), pytest.param((oid(2)[1:], Person), id="seven bytes"),
        pytest.param(oid(2) + b"\0", id="nine bytes"), pytest.param(["w", ("text",)], id="weak"),
        pytest.param([7], id="old weak"), pytest.param(["n", ("two",)], id="no oid"),
        pytest.param(17, id="number"), pytest.param((), id="empty tuple"),
    ],
)
def test_impossible_references(form: Any) -> None:
    """What is no reference is refused with a named error when it is read, and when references
    are counted; an object is never made of it."""
    content = record(Person, {"to": Ref(form), "name": "owner"})
    with loaded(content, TARGET) as (person, _), pytest.raises(objdb.ObjdbError):
        _ = person.to
    with pytest.raises(CorruptedDataError):
        all_references(content)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (oid(1), Reference(oid(1), False, None)),
        ((oid(1), Person), Reference(oid(1), False, None)),
        ([oid(1)], Reference(oid(1), True, None)),
        (["w", (oid(1),)], Reference(oid(1), True, None)),
        (["w", (oid(1), "two")], Reference(oid(1), True, "two")),
        (["n", ("two", oid(1))], Reference(oid(1), False, "two")),
        (["m", ("two", oid(1), Person)], Reference(oid(1), False, "two")),
        ("\0\0\0\0\0\0\0\xff", Reference(oid(255), False, None)),
    ],
)
def test_meaning_of_each_form(form: Any, expected: Reference) -> None:
    """parse_reference tells oid, weakness and database of every form, Python 2's included."""
    assert parse_reference(form) == expected


def test_records_one_after_the_other() -> None:
    """Scanning many records finds in each what reading it alone finds, in whatever form."""
    others = ["n", ("two", oid(2))], ["w", (oid(2), "two")]
    scanner = ReferenceScanner()
    for form in (*STRONG.values(), *WEAK.values(), *others):
        for state in {"to": Ref(form)}, {"one": Ref((oid(3), Person)), "to": [Ref(form)]}:
            written = prefix("tests.models", "Person") + state_pickle(state)
            for content in written, record(Person, state):
                assert scanner(content) == references(content)


def test_records_without_references() -> None:
    """Bytes that only look like reference opcodes are none."""
    content = record(Person, {"Q": "PQPQ", "data": b"QQQ" + oid(1)})
    assert references(content) == []


def test_damaged_records_have_no_references() -> None:
    """A record that is cut off where references could be raises CorruptedDataError."""
    content = record(Person, {"to": Ref((oid(2), Person)), "tail": "x" * 20})
    with pytest.raises(CorruptedDataError):
        references(content[:-10])


@pytest.mark.parametrize("content", [b"", b"\x80\x03cQ", b"garbage", b"\x80\x03c\xff\xfe\n\xfd\n."])
def test_class_name_of_garbage(content: bytes) -> None:
    """The class of a record that says none is a question mark, or unreadable, never an error."""
    assert "?" in record_class_name(content) or "\ufffd" in record_class_name(content)


def test_references_in_old_pickles() -> None:
    """References are found in records of Python 2, protocol 1 and 2, whose oids are strings."""
    state = b"\x80\x02}U\x02to(U\x08\0\0\0\0\0\0\0\xe9ctests.models\nPerson\ntQs."
    assert references(b"\x80\x02ctests.models\nPerson\n." + state) == [oid(0xE9)]


def test_weak_reference_kept_when_rewritten() -> None:
    """A weak reference of the old form is written back in the present form, still weak."""
    with objdb.DB(storage_with(record(Person, {"to": Ref([oid(2)])}), TARGET)) as db:
        with db.transaction() as connection:
            connection.root()["all"][0].name = "rewritten"
        assert persistent_ids(db.storage.load(oid(1))[0]) == [["w", (oid(2),)]]


def test_references_inside_plain_objects(databases: Databases) -> None:
    """Objects inside plain objects, containers and keys are referred to like any other."""
    db = databases.open(MappingStorage())
    with db.open() as connection:
        key = Person("key")
        connection.root()["p"] = person = Person(
            "p", plain=Plain(a=[Person("1"), (Person("2"),)]), keys={key: Person("3")},
            some={Person("4")}, frozen=frozenset([Person("5")]),
        )
        transaction.commit()
        found = references(db.storage.load(person._p_oid)[0])
    assert len(found) == len(set(found)) == 6
    with db.transaction() as connection:
        person = connection.root()["p"]
        names = {p.name for p in (*person.some, *person.frozen, *person.keys, person.plain.a[0])}
        assert names == {"key", "1", "4", "5"}
