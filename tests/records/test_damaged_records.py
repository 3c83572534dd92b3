"""Damaged records give an error with a name, or a value; nothing else, and never a hang."""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import objdb
from objdb.check import check
from objdb.errors import CorruptedDataError, DeserializationError, ObjdbError
from objdb.records.references import all_references, record_class_name, references
from tests.models import Custom, Person, Plain, Point
from tests.records.handmade import (
    MadeBy,
    Ref,
    application,
    loaded,
    oid,
    prefix,
    record,
    storage_with,
)

FRIEND = record(Person, {"name": "friend"})


@pytest.fixture(autouse=True, scope="module")
def little_memory() -> Iterator[None]:
    """A length in a damaged record can ask for any amount of memory: let it be refused soon."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@functools.cache
def samples() -> list[bytes]:
    """Valid records of every kind, referring to oid 1."""
    state = {
        "name": "x", "to": Ref((oid(1), Person)), "weak": Ref(["w", (oid(1),)]),
        "by oid": Ref(oid(1)), "plain": Plain(a=[1, 2.5, None], b=(True, b"bytes")),
        "numbers": [10**30, -1, 70000], "set": {1, 2}, "made": MadeBy(1),
    }
    with application() as module:
        inline = module.Inline()
        inline.x = [Ref((oid(1), module.Thing))]
        contents = [
            record(Person, state), record(Person, state, zodb=True),
            prefix("tests.models", "Person") + record(None, state)[4:],
            record(Person, {"name": "no references", "list": [[]] * 3}),
            record((Point, (1, 2)), {"made_with": (1, 2), "to": Ref(oid(1))}, zodb=True),
            record((("tests.models", "Person"), None), {"name": "by name"}),
            record(Custom, (1, "x", Ref((oid(1), Person)))),
            record(module.Thing, {"inline": inline}, zodb=True),
            record(Person, {"inline": [inline, module.WithNew(1)]}, protocol=2),
        ]
    return contents


def read(content: bytes) -> Any:
    """Everything that meets a record, each giving a value or a named error; return the state of
    the object, or the error."""
    outcomes: list[Any] = []
    for look in (references, all_references):
        try:
            look(content)
        except CorruptedDataError:
            pass
    assert isinstance(record_class_name(content), str)
    with objdb.DB(storage_with(FRIEND, content, FRIEND)) as db, db.open() as connection:
        try:
            obj = connection.get(oid(2))
            obj._p_activate()
            outcomes.append(obj.__getstate__())
        except ObjdbError as error:
            # A damaged reference can lead nowhere, or to a database that is not there.
            nowhere = (objdb.POSKeyError, objdb.UsageError)
            assert isinstance(error, (DeserializationError, CorruptedDataError, *nowhere)), error
            outcomes.append(error)
        # The neighbours are as they were.
        friend = connection.get(oid(3))
        assert friend.name == "friend"
        assert connection.get(oid(1)).name == "friend"
        for problem in check(db.storage).problems:
            assert "0x2" in problem
    return outcomes[0]


@pytest.mark.parametrize("number", range(9))
def test_samples_are_valid(number: int) -> None:
    """The records that the other tests damage are sound."""
    assert not isinstance(read(samples()[number]), Exception)


@pytest.mark.parametrize("number", range(9))
def test_cut_off_anywhere(number: int) -> None:
    """A record cut off at any byte is an error with a name, at every length."""
    content = samples()[number]
    for length in range(1, len(content)):
        cut = content[:length]
        with (
            objdb.DB(storage_with(FRIEND, cut)) as db, db.open() as connection,
            pytest.raises(DeserializationError),
        ):
            connection.get(oid(2))._p_activate()
        if b"Q" in cut:
            with pytest.raises(CorruptedDataError):
                references(cut)
        assert isinstance(record_class_name(cut), str)


def flipped(content: bytes, position: int, value: int) -> bytes:
    position %= len(content)
    return content[:position] + bytes([value]) + content[position + 1 :]


changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(number=st.integers(0, 8), changes=changes)
@example(number=0, changes=[(5, 0xFF)])
@example(number=0, changes=[(12, 0)])
@example(number=0, changes=[(0, ord("c"))])
@example(number=7, changes=[(3, 0xFF)])
def test_bytes_changed(number: int, changes: list[tuple[int, int]]) -> None:
    """A record with a few wrong bytes gives a value or an error with a name."""
    content = samples()[number]
    for position, value in changes:
        content = flipped(content, position, value)
    read(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.binary(min_size=1, max_size=60), headed=st.booleans())
@example(content=b"\x80\x03N.", headed=True)
@example(content=b"\x80\x03K\x05.", headed=True)
@example(content=b"\x80\x03]q\x00h\x00a.", headed=True)
def test_garbage(content: bytes, headed: bool) -> None:
    """Any bytes, behind a sound class pickle or alone, give a value or an error with a name."""
    read(prefix("tests.models", "Person") + content if headed else content)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(number=st.integers(0, 8), data=st.data())
def test_parts_removed_or_doubled(number: int, data: st.DataObject) -> None:
    """A record with a stretch missing, or there twice, gives a value or an error with a name."""
    content = samples()[number]
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    if data.draw(st.booleans()):
        assume(end - start < len(content))
        read(content[:start] + content[end:])
    else:
        read(content[:end] + content[start:])


def test_a_state_of_the_wrong_kind() -> None:
    """A state that the class does not take names class and oid."""
    for state in (5, "text", ["a"], (1, 2)):
        with loaded(record(Person, state)) as (person,):
            with pytest.raises(DeserializationError, match=r"Person") as caught:
                person._p_activate()
            assert caught.value.oid == oid(1)
            assert caught.value.class_name == "tests.models.Person"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x03c\xff\xfe\nPerson\n.\x80\x03}.",
        b"\x80\x03c\nPerson\n.\x80\x03}.",
        b"\x80\x03ctests.models\n\n.\x80\x03}.",
        b"\x80\x03ctests.models\x00\nPerson\n.\x80\x03}.",
        b"\x80\x03c.tests\nPerson\n.\x80\x03}.",
        b"\x80\x03N.\x80\x03}.",
        b"\x80\x03K\x07.\x80\x03}.",
        b"\x80\x03cbuiltins\nprint\n.\x80\x03}.",
        b"\x80\x03(ctests.models\nPerson\nK\x01K\x02t.\x80\x03}.",
        b"\x80\x03ctests.models\nPoint\n.\x80\x03}.",
    ],
)
def test_impossible_classes(content: bytes) -> None:
    """Class metadata that is no class, or cannot make an object, is an error with a name that
    tells the oid."""
    with objdb.DB(storage_with(content)) as db, db.open() as connection:
        with pytest.raises((DeserializationError, objdb.BrokenObjectError)) as caught:
            obj = connection.get(oid(1))
            obj.attribute = 1  # what is taken for a missing class cannot be changed
        if not isinstance(caught.value, objdb.BrokenObjectError):
            assert caught.value.oid == oid(1)
