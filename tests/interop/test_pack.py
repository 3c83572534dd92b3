"""A file is packed by ZODB and by objdb in turns, and both read it after each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage as ZODBFileStorage
from ZODB.serialize import referencesf

import objdb
from objdb.check import check
from objdb.errors import ObjdbError
from objdb.records.references import ReferenceScanner, references
from tests.models import Person

pytestmark = pytest.mark.peer


def opened(side: str, path: Path) -> Any:
    return ZODB.DB(ZODBFileStorage(str(path))) if side == "zodb" else objdb.DB(path)


def work(db: Any, chance: random.Random) -> None:
    """Link, change, unlink and undo at random, in transactions with all kinds of metadata."""
    for number in range(12):
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        root = connection.root()
        txn = manager.begin()
        txn.note(f"note {number}")
        if chance.random() < 0.5:
            txn.setUser("me")
            txn.setExtendedInfo("number", number)
        name = chance.choice("abcdef")
        kind = chance.random()
        if kind < 0.2:
            root.pop(name, None)
        elif kind < 0.35:
            # ZODB would un-create the root.
            entries = [e for e in db.undoLog(0, 5) if "initial" not in str(e["description"])]
            if entries:
                db.undo(chance.choice(entries)["id"], txn)
        elif kind < 0.7 and name in root:
            root[name].age = number
        else:
            root[name] = Person(name * 50, other=root.get(chance.choice("abcdef")))
        try:
            manager.commit()
        except (ObjdbError, ZODB.POSException.POSError):
            manager.abort()
        connection.close()


def state(db: Any) -> Any:
    """What is in the root, and in objects that are reached from it."""
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    try:
        found = {}
        for name, person in connection.root().items():
            chain = []
            while person is not None and len(chain) < 50:
                chain.append((person.name, person.__dict__.get("age"), person._p_oid))
                person = person.other
            found[name] = chain
        return found
    finally:
        connection.close()


@pytest.mark.parametrize("seed", range(6))
def test_in_turns(tmp_path: Path, seed: int) -> None:
    """Packed here, there, and here again, with undo records, to moments in between: nothing that
    can be reached changes."""
    chance = random.Random(seed)
    path = tmp_path / "data.fs"
    expected: Any = {}
    for turn in range(8):
        side = chance.choice(["zodb", "objdb"])
        db = opened(side, path)
        try:
            assert state(db) == expected
            work(db, chance)
            expected = state(db)
            if side == "objdb":
                tids = [t.tid for t in db.storage.iterator()]
                db.pack(chance.choice(tids[-12:]), gc=chance.random() < 0.8)
            else:
                db.pack()
            assert state(db) == expected
            work(db, chance)
            expected = state(db)
            if side == "objdb":
                check(db.storage).raise_if_damaged()
        finally:
            db.close()
        for suffix in (".old",) if turn % 2 else ():
            Path(str(path) + suffix).unlink(missing_ok=True)


def test_the_same_stays(tmp_path: Path) -> None:
    """Both sides make the same transactions of a file that is packed to now."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db:
        work(db, random.Random(1))
    copy = tmp_path / "copy.fs"
    copy.write_bytes(path.read_bytes())
    kept = []
    for side, where in (("objdb", path), ("zodb", copy)):
        db = opened(side, where)
        db.pack()
        kept.append([
            (t.tid, t.status, t.user, t.description, [(r.oid, r.data) for r in t])
            for t in db.storage.iterator()
        ])
        db.close()
    assert [entry for entry in kept[0] if entry[4]] == kept[1]


def test_zodb_loses_what_is_linked_again(tmp_path: Path) -> None:
    """What this storage keeps, an object unlinked before the moment of the pack and linked again
    after it, ZODB loses."""
    lost = {}
    for side in ("zodb", "objdb"):
        db = opened(side, tmp_path / f"{side}.fs")
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        root = connection.root()
        root["a"] = person = Person("a")
        manager.commit()
        del root["a"]
        manager.commit()
        tid = db.storage.lastTransaction()
        root["again"] = person
        manager.commit()
        oid = person._p_oid
        connection.close()
        if side == "zodb":
            from persistent.timestamp import TimeStamp

            db.pack(TimeStamp(tid).timeTime() + 1e-5)
        else:
            db.pack(tid)
        try:
            db.storage.load(oid, "")
            lost[side] = False
        except KeyError:
            lost[side] = True
        db.close()
    assert lost["objdb"] is False
    assert lost["zodb"] is True  # when this fails, ZODB has learned it


def test_references_of_zodb_records(tmp_path: Path) -> None:
    """The scanner that packs finds in ZODB's records and ours what ZODB finds, given a list or
    not."""
    scanner = ReferenceScanner()
    for side in ("zodb", "objdb"):
        path = tmp_path / f"{side}.fs"
        db = opened(side, path)
        work(db, random.Random(3))
        db.close()
        with objdb.DB(path) as ours:
            records = [r.data for t in ours.storage.iterator() for r in t if r.data]
        for record in records:
            found: list[bytes] = [b"first"]
            assert scanner(record, found) is found
            assert found[1:] == scanner(record) == references(record) == referencesf(record)
