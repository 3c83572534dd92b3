"""The accelerator beside the Python it stands in for: every other test runs with both (see
`./dev test`); here is what only C can get wrong."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.connection import loadpath
from objdb.records import pickling, unpickling
from objdb.storage.file import lookup, scan
from objdb.storage.iteration import RevisionRecord
from tests.models import Fussy, Person

IS_PURE = bool(os.environ.get("OBJDB_PURE_PYTHON"))
NAMES = {
    lookup: ["PageTable", "RecordReader"],
    scan: ["plain_positions", "plain_revisions"],
    unpickling: ["plain_reader", "reference_loader"],
    pickling: ["serializer", "reference_maker"],
    loadpath: ["LoadPath"],
}
JUNK = [None, 0, -1, 2**70, "", "text", b"", b"1234567", b"12345678", b"123456789", (), (1, 2),
        (b"12345678", Person), (b"12345678", 1), [1], {}, object, Person, 1.5]


def test_it_is_used() -> None:
    """Where it was built, it is used; where the environment says not to, it is not."""
    where = Path(objdb.__file__).parent
    is_built = any(where.glob("_accelerator.*.so"))
    for module, names in NAMES.items():
        for name in names:
            found = getattr(module, name)
            is_c = getattr(found, "__module__", None) == "objdb._accelerator" or (
                type(found).__name__ == "builtin_function_or_method"
            )
            assert is_c == (is_built and not IS_PURE), name


def test_pure_python_is_asked_for_in_the_environment() -> None:
    """OBJDB_PURE_PYTHON=1 leaves the accelerator out."""
    program = "from objdb.storage.file.lookup import PageTable; print(PageTable.__module__)"
    environment = {**os.environ, "OBJDB_PURE_PYTHON": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True,
        check=True, timeout=60,
    )
    assert done.stdout == "objdb.storage.file.lookup\n"


@pytest.mark.parametrize("name", ["PURE_PYTHON", "OBJDB_PURE_PYTHON"])
def test_python_alone(name: str) -> None:
    """Without the C of `persistent`, or without ours, everything can be imported and used."""
    program = "import objdb; db = objdb.DB(); db.open().root()['n'] = 1; db.close()"
    environment = {**os.environ, name: "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def outcome(function: Any, *arguments: Any) -> None:
    """Call it; whatever it says, it must say it with a Python exception."""
    try:
        function(*arguments)
    except Exception as error:
        assert str(error) or type(error)


def test_junk_is_refused_not_followed() -> None:
    """Nonsense given to any of its functions ends in an exception or in nothing, not in a
    crash."""
    table = lookup.PageTable()
    table.pages[b"1234567"] = 2**40
    table.map = b"short"
    reader = lookup.RecordReader(table.get, lambda size, position: "no bytes")
    reader.end = 10_000
    wild = lookup.RecordReader(lambda oid: (5, b"12345678"), lambda size, position: b"x" * 100)
    state = unpickling.plain_reader(
        {Person: (b"prefix", None), object: (b"", Person)}, outcome, {}, outcome, outcome, outcome
    )
    load = unpickling.reference_loader({}.get, print, {Person, object}, lambda r: r)
    serialize = pickling.serializer({Person: b"prefix", int: b"int"}, outcome, outcome)
    found: list[Any] = []
    refer = pickling.reference_maker(None, dict, found, {Person: b"", int: b""}, outcome)
    for first, second in itertools.product(JUNK, JUNK):
        for function in (reader.load, wild.load, state, lookup.RecordReader,
                         unpickling.reference_loader):
            outcome(function, first, second)
        outcome(table.set_many, first, second)
        outcome(table.set_many, {first if isinstance(first, bytes) else b"": second}, b"12345678")
        for plain in (scan.plain_positions,
                      lambda *arguments: scan.plain_revisions(*arguments, RevisionRecord)):
            outcome(plain, first, 0, 0, 9, b"12345678", second)
            outcome(plain, b"x" * 99, 0, first, second, b"12345678", 1)
            outcome(plain, b"x" * 99, first, 0, second, b"12345678", 1)
            outcome(plain, b"x" * 99, 0, 0, 99, first, second)
        outcome(unpickling.plain_reader, {}, first, {}, second, print, print)
        outcome(pickling.serializer, {}, first, second)
        outcome(pickling.reference_maker, first, second, [], {}, print)
    for value in JUNK:
        for function in (
            table.get, load, serialize, refer,
        ):
            outcome(function, value)
            outcome(function, Person())
        outcome(loadpath.LoadPath().setstate, value)


def test_nothing_leaks(databases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and pickling over and over, also what cannot be loaded, leaves no memory behind."""
    db = databases.open("data.fs", cache_size_bytes=10_000_000)
    with db.transaction() as connection:
        people = [Person(str(i), data=i) for i in range(50)]
        connection.root()["people"] = [*people, Fussy()]
    monkeypatch.setattr(Fussy, "refuse", True)
    connection = db.open()

    def use() -> None:
        connection.cacheMinimize()
        for person in connection.root()["people"]:
            if type(person) is Fussy:
                with pytest.raises(objdb.DeserializationError):
                    assert person.name
            else:
                assert person.name
        connection.root()["new"] = [Person("new", friend=Person("of a new one")), people[0]]
        transaction.savepoint()
        transaction.abort()
        with pytest.raises(objdb.POSKeyError):
            connection.get(b"nowhere!")

    counts = []
    for _ in range(8):
        for _ in range(20):
            use()
        gc.collect()
        counts.append(sys.getallocatedblocks())
    # 160 rounds of 50 objects: a reference lost once in each would be 1,000 blocks a step.
    assert counts[-1] - counts[3] < 500, counts
    connection.close()
