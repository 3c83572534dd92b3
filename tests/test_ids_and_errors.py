"""The leaves: ids, and the tree of errors."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import transaction
from hypothesis import given
from hypothesis import strategies as st
from persistent.timestamp import TimeStamp

import objdb
from objdb import errors, ids
from objdb.errors import ObjdbError, POSKeyError
from objdb.ids import MAX_TID, NO_TID, ROOT_OID

UTC = timezone.utc
# 1970 to 2100, in seconds
seconds = st.floats(0, 4_102_444_800, allow_nan=False)
tids = st.binary(min_size=8, max_size=8)


@given(number=st.integers(0, 2**64 - 1))
def test_oids_are_numbers(number: int) -> None:
    """An oid is 8 bytes, big-endian."""
    oid = ids.oid_from_int(number)
    assert len(oid) == 8
    assert ids.int_from_oid(oid) == number
    assert oid == bytes.fromhex(f"{number:016x}")


@given(one=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
def test_oids_are_in_order(one: int, other: int) -> None:
    """Comparing oids compares their numbers."""
    assert (ids.oid_from_int(one) < ids.oid_from_int(other)) == (one < other)


def test_impossible_oids() -> None:
    """A number that does not fit is an error."""
    for number in (-1, 2**64):
        with pytest.raises(OverflowError):
            ids.oid_from_int(number)


def test_constants() -> None:
    """The root is oid 0; no tid is before the first and after the last."""
    assert (bytes(8), bytes(8)) == (ROOT_OID, NO_TID)
    assert NO_TID < ids.tid_after(NO_TID) < MAX_TID


@given(now=seconds)
def test_tids_are_time_stamps(now: float) -> None:
    """A tid for a time is the TimeStamp of that time, as ZODB computes it."""
    tid = ids.tid_after(NO_TID, now)
    assert tid == TimeStamp(*time.gmtime(now)[:5], now % 60).raw()
    assert abs(TimeStamp(tid).timeTime() - now) < 1e-3
    assert abs(ids.time_from_tid(tid) - now) < 1e-5
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now)
    assert abs(ids.datetime_from_tid(tid) - expected) < timedelta(seconds=1e-4)


def test_a_tid_worked_out_by_hand() -> None:
    """The bytes of a tid are minutes, with months of 31 days, and fractions of a minute."""
    moment = datetime(2024, 2, 29, 23, 58, 30, tzinfo=UTC)
    minutes = ((((2024 - 1900) * 12 + 1) * 31 + 28) * 24 + 23) * 60 + 58
    tid = ids.tid_after(NO_TID, moment.timestamp())
    assert tid == minutes.to_bytes(4, "big") + (2**31).to_bytes(4, "big")
    assert ids.datetime_from_tid(tid) == moment


@given(times=st.lists(seconds, min_size=1, max_size=30))
def test_tids_only_grow(times: list[float]) -> None:
    """Whatever the clock does, each tid is after the last; while it goes backwards, just after."""
    last = NO_TID
    for now in times:
        tid = ids.tid_after(last, now)
        fresh = ids.tid_after(NO_TID, now)
        assert tid > last
        assert tid == (fresh if fresh > last else ids.next_tid(last))
        last = tid


def test_tids_of_one_moment() -> None:
    """While the clock stands still, tids are counted up."""
    now, last, seen = 1_700_000_000.0, NO_TID, []
    for _ in range(1000):
        last = ids.tid_after(last, now)
        seen.append(last)
    assert seen == sorted(set(seen))
    assert ids.time_from_tid(seen[-1]) - ids.time_from_tid(seen[0]) < 0.001


def test_tid_after_reads_the_clock() -> None:
    """Without a time the clock's is taken."""
    before = ids.tid_after(NO_TID, time.time() - 1)
    after = ids.tid_after(NO_TID, time.time() + 60)
    assert before < ids.tid_after(NO_TID) < after


@given(earlier=seconds, later=seconds)
def test_tids_are_in_order_of_time(earlier: float, later: float) -> None:
    """A later time has a later tid."""
    earlier, later = sorted((earlier, later))
    first, second = ids.tid_after(NO_TID, earlier), ids.tid_after(NO_TID, later)
    assert first <= second
    if later - earlier > 1e-3:
        assert first < second


@given(tid=tids)
def test_next_tid(tid: bytes) -> None:
    """Nothing is between a tid and the next one."""
    if tid == b"\xff" * 8:
        with pytest.raises(OverflowError):
            ids.next_tid(tid)
    else:
        following = ids.next_tid(tid)
        assert int.from_bytes(following, "big") == int.from_bytes(tid, "big") + 1
        assert following > tid


@given(tid=tids)
def test_every_tid_has_a_time(tid: bytes) -> None:
    """Any 8 bytes have a time that can be printed, the nearest one if they are no real time."""
    moment = ids.datetime_from_tid(tid)
    assert moment.tzinfo is not None
    assert str(moment.year) in ids.format_tid(tid) or tid == NO_TID


def test_times_that_do_not_exist() -> None:
    """The 31st of a month that has 30 days is its last day."""
    minutes = ((((2023 - 1900) * 12 + 1) * 31 + 30) * 24 + 5) * 60
    moment = ids.datetime_from_tid(minutes.to_bytes(4, "big") + bytes(4))
    assert (moment.year, moment.month, moment.day, moment.hour) == (2023, 2, 28, 5)


def test_printing() -> None:
    """Oids are printed as short hexadecimal numbers, tids in full with their time in UTC; what is
    neither prints as itself."""
    assert ids.format_oid(bytes(7) + b"\x2a") == "0x2a"
    assert ids.format_oid(None) == "None"
    assert ids.format_oid("text") == "'text'"
    tid = ids.tid_after(NO_TID, datetime(2024, 5, 17, 12, 30, 15, 500000, UTC).timestamp())
    assert re.fullmatch(r"0x[0-9a-f]{16} \(2024-05-17 12:30:15\.[45]\d{5}Z\)", ids.format_tid(tid))
    assert ids.format_tid(tid).startswith(f"0x{tid.hex()}")
    assert ids.format_tid(NO_TID) == "0x0"
    assert ids.format_tid(None) == "None"
    assert ids.format_tid(b"short") == "b'short'"


# -- errors

ALL = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, ObjdbError) and cls.__module__ == errors.__name__
]
EXAMPLES: dict[str, Any] = {
    "oid": bytes(7) + b"\x2a", "referrer": bytes(7) + b"\x2b", "database": "data.fs",
    "package": "berkeleydb", "extra": "objdb[berkeley]",
    "class_name": "app.Person", "attribute": "tags[2]",
    "serials": (b"\1" * 8, b"\2" * 8), "path": "data.fs",
    "record": b"r", "position": 4096, "what": "zeros",
    "pid": 42, "host": "machine", "size": 10, "limit": 5,
    "needed": 2000, "free": 1000,
    "attribute_path": "Person.x", "committed": ("a.fs",), "unknown": ("b.fs",),
    "not_committed": ("c.fs",), "holders": ("thread 'a' for 1.0 s",), "tid": b"\3" * 8,
    "version": "plan", "reason": "it is packed",
    "reasons": ((bytes(7) + b"\x2a", "it was changed"),),
}


def facts_of(cls: type[ObjdbError]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        facts |= base.__dict__.get("facts", {})
    return facts


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(cls: type[ObjdbError], protocol: int) -> None:
    """An error that was pickled is of the same class, and has the same message and facts."""
    facts = {name: EXAMPLES[name] for name in facts_of(cls)}
    if cls is POSKeyError:  # which takes an oid, or a message
        examples = [(facts.pop("oid"), facts), ("what happened", facts)]
    else:
        examples = [("what happened", facts), ("", facts)]
    for first, given_facts in [*examples, ("only this", {}), ("", {})]:
        error = cls(first, **given_facts)
        error.add_word = "an attribute of a user"
        for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
            assert type(again) is cls
            assert str(again) == str(error)
            assert vars(again) == vars(error)
            for name, value in given_facts.items():
                assert getattr(again, name) == value


@pytest.mark.parametrize("cls", ALL)
def test_facts_are_attributes(cls: type[ObjdbError]) -> None:
    """Every fact of a class is an attribute, with a default; a fact of no class is refused; a
    given message is the message."""
    error = cls("a message")
    for name, default in facts_of(cls).items():
        assert name in EXAMPLES
        assert getattr(error, name) == default or name == "oid"
    assert str(error) == "a message"
    with pytest.raises(TypeError, match="colour"):
        cls("a message", colour="red")


def test_the_tree_is_drawn_as_it_is() -> None:
    """The tree at the top of the module shows every class, below its base, with its other
    bases."""
    drawn: dict[str, tuple[str | None, str]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+)(?: \((\w+)\))?(?:  .*)?$", line)
        if match is None or match[2] not in vars(errors):
            continue
        depth = len(match[1])
        while above and above[-1][0] >= depth:
            above.pop()
        drawn[match[2]] = (above[-1][1] if above else None, match[3] or "")
        above.append((depth, match[2]))
    actual = {}
    for cls in ALL:
        ours = [base for base in cls.__bases__ if base in ALL]
        others = [base for base in cls.__bases__ if base not in (*ALL, Exception)]
        names = [base.__name__ for base in others if base.__module__ == "builtins"]
        actual[cls.__name__] = (ours[0].__name__ if ours else None, "".join(names))
    assert drawn == actual


def test_every_error_says_what_it_is_for() -> None:
    """Each class has a docstring, and is exported by the package."""
    for cls in ALL:
        assert (cls.__doc__ and cls.__doc__ is not ObjdbError.__doc__) or cls is ObjdbError
        assert getattr(objdb, cls.__name__) is cls
        assert cls.__name__ in objdb.__all__


def test_names_that_others_catch() -> None:
    """Errors can be caught by the names that the transaction package, and Python, give them."""
    for cls in (errors.ConflictError, errors.ReadConflictError, errors.UnresolvableConflictError):
        assert issubclass(cls, transaction.interfaces.TransientError)
    assert not issubclass(errors.StorageError, transaction.interfaces.TransientError)
    assert issubclass(errors.POSKeyError, KeyError)
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.UnpicklableError, TypeError)


def test_messages_made_from_facts() -> None:
    """A POSKeyError and a conflict say all they know without being given words."""
    oid, referrer = EXAMPLES["oid"], EXAMPLES["referrer"]
    text = str(POSKeyError(oid, referrer=referrer, database="data.fs"))
    assert "0x2a" in text and "0x2b" in text and "data.fs" in text
    assert "0x2b" not in str(POSKeyError(oid))
    later = POSKeyError(oid)
    later.referrer = referrer
    assert "0x2b" in str(later)
    assert str(POSKeyError("in words")) == "in words"
    conflict = errors.ConflictError(
        oid=oid, class_name="app.Person", serials=EXAMPLES["serials"]
    )
    for part in ("0x2a", "app.Person", "0x0101010101010101", "0x0202020202020202", "retry"):
        assert part in str(conflict)
    read = errors.ReadConflictError(oid=oid)
    assert "0x2a" in str(read) and "read" in str(read)
    merged = errors.UnresolvableConflictError(oid=oid)
    assert len({str(read), str(merged), str(errors.ConflictError(oid=oid))}) == 3
