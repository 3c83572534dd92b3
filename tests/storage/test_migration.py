"""Copying every kind of storage to every other: the same transactions, versions and undo."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

import objdb
from objdb.check import check
from objdb.errors import UndoError
from objdb.testing.helpers import contents
from objdb.tools.main import main
from tests.storages import STORAGES


def fill(db: objdb.DB) -> None:
    """Make a history with undone transactions, versions, and objects that are gone."""
    chance = random.Random(7)
    with db.transaction("the first") as connection:
        for key in range(10):
            connection.root()[key] = objdb.PersistentMapping(n=0)
    for number in range(80):
        version = chance.choice(["", "", "", "plan", "other"])
        try:
            with db.transaction(f"number {number}", version) as connection:
                key = chance.randrange(10)
                if key in connection.root():
                    connection.root()[key]["n"] = number
                if not version and chance.random() < 0.1:
                    connection.root()[key] = objdb.PersistentMapping(n=-number)
        except objdb.VersionLockError:
            continue
        if chance.random() < 0.15:
            entry = db.undoLog()[0]
            if not db.undo_preview(entry["id"]).obstacles:
                db.undo(entry["id"])
                objdb.get_transaction().commit()
        if chance.random() < 0.1:
            db.commitVersion("other", chance.choice(["", "plan"]))
            objdb.get_transaction().commit()


@pytest.mark.parametrize("source", STORAGES)
def test_every_pair(tmp_path: Path, source: str) -> None:
    """A copy lists what its source lists, has its versions, checks clean, and undoes the same
    transactions with the same result; and so does the copy of the copy."""
    (tmp_path / "source").mkdir()
    with objdb.DB(STORAGES[source](tmp_path / "source")) as db:
        fill(db)
        expected, versions = contents(db.storage), db.versions()
        assert versions and len(expected) > 50
        undoable = [
            entry["id"] for entry in db.undoLog(0, 1000)
            if not db.undo_preview(entry["id"]).obstacles
        ]
        for kind, make in STORAGES.items():
            folder = tmp_path / kind
            folder.mkdir()
            with make(folder) as copy:
                copy.copyTransactionsFrom(db.storage)
                assert contents(copy) == expected, kind
                assert copy.versions() == versions
                assert check(copy).problems == []
                with objdb.MappingStorage() as back:
                    back.copyTransactionsFrom(copy)
                    assert contents(back) == expected, kind
                with objdb.DB(copy) as other:
                    for transaction_id in undoable:
                        assert not other.undo_preview(transaction_id).obstacles
                    other.undo(undoable[0])
                    objdb.get_transaction().commit()
                    with pytest.raises(UndoError):
                        other.undo(b"\0" * 8)
                        objdb.get_transaction().commit()
                    objdb.get_transaction().abort()


def test_the_command_between_uris(tmp_path: Path) -> None:
    """`objdb migrate` goes from any URI to any other, and back."""
    where = [
        f"file:{tmp_path}/a.fs", f"sqlite:{tmp_path}/a.sqlite", f"pickle:{tmp_path}/a.pickle",
        f"berkeley:{tmp_path}/b", f"compressed+file:{tmp_path}/b.fs?method=zstd",
        f"{tmp_path}/c.fs",
    ]
    with objdb.DB(where[0]) as db:
        fill(db)
        expected = contents(db.storage)
    for pair in pairwise(where):
        result = CliRunner().invoke(main, ["migrate", *pair])
        assert result.exit_code == 0, result.output
    with objdb.DB(where[-1]) as db:
        assert contents(db.storage) == expected
