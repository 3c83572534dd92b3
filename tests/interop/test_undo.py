"""ZODB and objdb undo what the other, or they themselves, wrote, in one file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
import ZODB.POSException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ZODB.FileStorage import FileStorage as ZODBFileStorage

import objdb
from objdb.check import check
from objdb.errors import UndoError
from tests.campaign.graphs import in_objdb, in_zodb
from tests.models import Counter, Person

pytestmark = pytest.mark.peer


@contextmanager
def opened(side: str, path: Path) -> Iterator[Any]:
    """A database of either side; ours is checked at the end."""
    db = ZODB.DB(ZODBFileStorage(str(path))) if side == "zodb" else objdb.DB(path)
    try:
        yield db
        if side == "objdb":
            check(db.storage).raise_if_damaged()
    finally:
        transaction.abort()
        db.close()


def undo(side: str, path: Path, *numbers: int) -> bool:
    """Undo transactions by their numbers in the log, newest 0; return whether that went well."""
    with opened(side, path) as db:
        entries = db.undoLog(0, 1000)
        try:
            db.undoMultiple([entries[number]["id"] for number in numbers])
            transaction.commit()
        except (UndoError, ZODB.POSException.UndoError):
            return False
        return True


def state(side: str, path: Path) -> dict[str, Any]:
    """What is in the root, by one side."""
    with (in_zodb if side == "zodb" else in_objdb)(path) as connection:
        return {
            name: (person.name, person.__dict__.get("age"))
            for name, person in connection.root().items()
        }


@pytest.mark.parametrize("first", ["zodb", "objdb"])
def test_alternately(tmp_path: Path, first: str) -> None:
    """Changes, undos and redos by one are undone by the other, un-creations as well."""
    path, sides = tmp_path / "data.fs", ["zodb", "objdb"]
    if first == "objdb":
        sides.reverse()
    for name in ("ann", "ben"):
        with (in_zodb if first == "zodb" else in_objdb)(path) as connection:
            connection.root()[name] = Person(name)
    with (in_objdb if first == "zodb" else in_zodb)(path) as connection:
        connection.root()["ann"].age = 7
    both, aged = {"ann": ("ann", None), "ben": ("ben", None)}, ("ann", 7)
    for i in range(6):  # undo, redo, undo … of the change
        assert undo(sides[i % 2], path, 0)
        expected = both if i % 2 == 0 else {**both, "ann": aged}
        assert [state(side, path) for side in sides] == [expected] * 2
    assert undo(sides[0], path, 7)  # of ben's creation
    for i in range(5):
        expected = {"ann": aged} if i % 2 == 0 else {**both, "ann": aged}
        assert [state(side, path) for side in sides] == [expected] * 2
        assert undo(sides[i % 2], path, 0)


@pytest.mark.parametrize("side", ["zodb", "objdb"])
def test_several_at_once(tmp_path: Path, side: str) -> None:
    """Several undone in one transaction by one, whose undo by the other brings all back."""
    path, other = tmp_path / "data.fs", "objdb" if side == "zodb" else "zodb"
    with in_zodb(path) as connection:
        connection.root()["ann"] = Person("ann")
    for age in range(4):
        with (in_objdb if age % 2 else in_zodb)(path) as connection:
            connection.root()["ann"].age = age
    assert undo(side, path, 0, 1, 2)
    assert state("zodb", path) == state("objdb", path) == {"ann": ("ann", 0)}
    assert undo(other, path, 0)
    assert state("zodb", path) == state("objdb", path) == {"ann": ("ann", 3)}
    assert undo(side, path, 0)
    assert state("zodb", path) == state("objdb", path) == {"ann": ("ann", 0)}
    with objdb.FileStorage(path) as storage:
        found = len(storage)
    for suffix in (".oidx", ".index"):  # the index can be built again from it
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with objdb.FileStorage(path) as storage:
        assert len(storage) == found
        assert check(storage).problems == []


def test_merged(tmp_path: Path) -> None:
    """Both merge an undo with what was changed since."""
    path = tmp_path / "data.fs"
    with in_zodb(path) as connection:
        connection.root()["counter"] = Counter()
    for i in range(4):
        with (in_objdb if i % 2 else in_zodb)(path) as connection:
            connection.root()["counter"].add(10**i)
    # +1 is taken back, then +10; then the first undo itself.
    for side, number, expected in (("objdb", 3, 1110), ("zodb", 3, 1100), ("objdb", 1, 1101)):
        assert undo(side, path, number)
        with in_zodb(path) as connection:
            assert connection.root()["counter"].value == expected
        with in_objdb(path) as connection:
            assert connection.root()["counter"].value == expected


def test_logs_agree(tmp_path: Path) -> None:
    """Both list the same transactions, with the same texts and times."""
    path = tmp_path / "data.fs"
    for i in range(4):
        manager = transaction.TransactionManager()
        with opened("objdb" if i % 2 else "zodb", path) as db:
            connection = db.open(manager)
            manager.get().note(f"number {i}")
            manager.get().setUser("ännä")
            manager.get().setExtendedInfo("number", i)
            connection.root()[i] = i
            manager.commit()
            connection.close()
    logs = []
    for side in ("zodb", "objdb"):
        with opened(side, path) as db:
            logs.append(db.undoLog(0, 100))
    for theirs, ours in zip(*logs, strict=True):
        assert theirs["time"] == pytest.approx(ours["time"], abs=1e-5)
        for key in ("description", "user_name", "number"):
            assert theirs.get(key) == ours.get(key)


def test_packed_by_zodb(tmp_path: Path) -> None:
    """Transactions that ZODB has packed are not listed and cannot be undone; later ones can."""
    path = tmp_path / "data.fs"
    for age in range(3):
        with in_objdb(path) as connection:
            connection.root().setdefault("ann", Person("ann")).age = age
    with opened("objdb", path) as db:
        packed = db.undoLog()[0]["id"]
    with opened("zodb", path) as db:
        db.pack()
    for age in (10, 11):
        with in_objdb(path) as connection:
            connection.root()["ann"].age = age
    with opened("objdb", path) as db:
        assert len(db.undoLog()) == 2
        db.undo(packed)
        with pytest.raises(UndoError, match="packed"):
            transaction.commit()
    assert undo("objdb", path, 0, 1)
    assert state("zodb", path) == state("objdb", path) == {"ann": ("ann", 2)}


steps = st.lists(
    st.tuples(st.sampled_from(["zodb", "objdb"]), st.integers(0, 10**6)), min_size=4, max_size=14
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_any_order(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Changes and undos by both, in any order: both show the same afterwards, each time."""
    path = tmp_path_factory.mktemp("undo") / "data.fs"
    for side, seed in [("zodb", 0), *steps]:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            with (in_zodb if side == "zodb" else in_objdb)(path) as connection:
                root = connection.root()
                for name in chance.sample("abcd", 2):
                    if name not in root or chance.random() < 0.2:
                        root[name] = Person(name)
                    elif chance.random() < 0.2:
                        del root[name]
                    else:
                        root[name].age = chance.randrange(3)
        else:
            with opened(side, path) as db:
                count = len(db.undoLog(0, 1000)) - 1
            if count:
                undo(side, path, chance.randrange(count))
        assert state("zodb", path) == state("objdb", path)
