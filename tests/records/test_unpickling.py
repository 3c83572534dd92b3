"""States are unpickled as pickle does it, whichever way they go."""

from __future__ import annotations

import datetime
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import objdb
from objdb.records.reader import ObjectReader
from tests.models import Person, Plain
from tests.records.handmade import prefix

PREFIX = prefix("tests.models", "Person")
FAILED = object()

built_in = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(),
    st.text(max_size=40), st.binary(max_size=300),
)
made = st.one_of(
    st.dates(), st.datetimes(), st.decimals(allow_nan=False),
    st.frozensets(st.integers(), max_size=3),
)


def nested(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values built of *parts*, and states of objects that have them as attributes."""
    values = st.recursive(
        parts,
        lambda inner: st.one_of(
            st.lists(inner, max_size=5), st.tuples(inner, inner), st.tuples(inner),
            st.dictionaries(st.text(max_size=5), inner, max_size=5),
        ),
        max_leaves=30,
    )
    return st.one_of(st.dictionaries(st.text(max_size=40), values, max_size=6), values)


@pytest.fixture(scope="module")
def reader() -> Iterator[ObjectReader]:
    with objdb.DB(None) as db, db.open() as connection:
        yield connection.reader


def outcome(function: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception:
        return FAILED


def shape(value: Any, depth: int = 0) -> Any:
    """A value with all its types, NaNs alike, as text that can be compared."""
    if depth > 50:
        return "deeper"
    if isinstance(value, dict):
        return "dict", [(shape(k, depth + 1), shape(v, depth + 1)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [shape(part, depth + 1) for part in value]
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(repr(part) for part in value)
    if isinstance(value, float) and math.isnan(value):
        return "float", "nan"
    if isinstance(value, Plain):
        return "Plain", shape(vars(value), depth + 1)
    return type(value).__name__, "" if type(value) is object else repr(value)


def same(reader: ObjectReader, pickled: bytes) -> None:
    expected = outcome(pickle.loads, pickled, encoding="undefined")
    for _ in range(2):
        found = outcome(reader.state, Person, PREFIX + pickled)
        assert shape(found) == shape(expected), pickled


@settings(max_examples=300, deadline=None)
@given(state=nested(built_in | made), protocol=st.sampled_from([3, 4]))
def test_any_value(reader: ObjectReader, state: Any, protocol: int) -> None:
    """Values of all built-in types, in pickles of the protocol we write, and of a later one."""
    same(reader, pickle.dumps(state, protocol))


@settings(max_examples=300, deadline=None)
@given(
    state=nested(built_in),
    changes=st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=3
    ),
)
def test_damaged_pickles(reader: ObjectReader, state: Any, changes: list[tuple[int, int]]) -> None:
    """What pickle refuses is refused; what it makes of other bytes is made of them here."""
    pickled = bytearray(pickle.dumps(state, 3))
    for position, value in changes:
        pickled[2 + position % (len(pickled) - 2)] = value
    # With that opcode, LONG_BINPUT, pickle allocates a memo as large as a damaged number says.
    assume(b"r" not in pickled)
    same(reader, bytes(pickled))


def shared() -> Any:
    inner: list[Any] = [1]
    return {"a": inner, "b": inner, "c": (inner, "text", "text")}


def cyclic() -> Any:
    outer: dict[str, Any] = {}
    outer["self"] = [outer]
    return outer


@pytest.mark.parametrize(
    "state",
    [
        shared(), cyclic(), list(range(3000)), {str(i): i for i in range(3000)},
        {"k" * length: length for length in range(40)}, {"é": 1, "\ud800": 2},
        [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
        {"when": datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone.utc)},
        {"plain": Plain(a=1, b=[Plain()])}, 2**63, -(2**63), 2**64, -1, 255, 256, 65535, 65536,
        b"x" * 255, b"x" * 256, (), [], {}, None,
    ],
    ids=lambda state: type(state).__name__,
)
def test_particular_states(reader: ObjectReader, state: Any) -> None:
    """Shared and cyclic parts, long ones, deep ones, and those at the limits of an opcode."""
    for protocol in (3, 4):
        same(reader, pickle.dumps(state, protocol))
    pickled = pickle.dumps(shared(), 3)
    found = reader.state(Person, PREFIX + pickled)
    assert found["a"] is found["b"] is found["c"][0]


def test_interrupts_are_passed_on(reader: ObjectReader) -> None:
    """Ctrl-C in the middle of unpickling is not taken for a damaged record."""
    with pytest.raises(KeyboardInterrupt):
        reader.state(Person, PREFIX + pickle.dumps({"a": Interrupting()}, 3))


def interrupt() -> None:
    raise KeyboardInterrupt


class Interrupting:
    """Pickles as a call of `interrupt`."""

    def __reduce__(self) -> Any:
        return interrupt, ()
