"""Databases that objdb 0.1.0 made are read and written as they are; see `make_0_1_0`."""

from __future__ import annotations

import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import transaction

import objdb
from objdb.check import check
from objdb.database.opening import open_storage
from objdb.storage.copying import copy_transactions
from tests.interop.make_0_1_0 import URIS

DATA = Path(__file__).parent / "data" / "made_by_0_1_0.zip"
WITH_CHECKSUMS = ("old.fs", "compressed+file:old-compressed.fs")


@pytest.fixture(params=URIS)
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with zipfile.ZipFile(DATA) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    name: str = request.param
    return name.partition("?")[0]  # how it was made is in it


def numbers(db: objdb.DB, version: str = "") -> list[int]:
    connection = db.open(version, transaction_manager=transaction.TransactionManager())
    found = [entry["n"] for entry in connection.root()["tree"].values()]
    connection.close()
    return found


def test_read_and_written(uri: str) -> None:
    """Everything is there; commits, undo, packs, versions and checks go on, and it stays in the
    format that the older release knows."""
    want = list(range(60))
    want[7] = -7
    with objdb.DB(uri) as db:
        report = check(db.storage)
        assert report.problems == []
        if uri in WITH_CHECKSUMS:
            assert report.unverified == 0
        elif "pickle" not in uri:
            assert report.unverified == report.transactions
        assert numbers(db) == want
        with db.transaction("of now") as connection:
            connection.root()["tree"]["key 001"]["n"] = want[1] = 100
        if "plain" in uri:
            assert "gone" in db.open().root()
        else:
            assert "gone" not in db.open().root()
            assert [each["description"] for each in db.undoLog()][:3] == ["of now", "", "undone"]
            assert db.versions() == ["draft"] and numbers(db, "draft")[9] == 900
            db.undo(db.undoLog()[0]["id"])
            transaction.commit()
            want[1] = 1
        db.pack()
        assert check(db.storage).problems == []
        with db.transaction() as connection:
            connection.root()["tree"]["key 002"]["n"] = want[2] = 200
    with objdb.DB(uri) as db:
        assert numbers(db) == want and check(db.storage).problems == []


def test_the_format_stays(uri: str) -> None:
    """An older release that has the database open, or opens it again, finds what it knows."""
    path = Path(uri.rpartition(":")[2])
    with objdb.DB(uri) as db, db.transaction() as connection:
        connection.root()["new"] = "value"
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as tables:
            assert tables.execute("PRAGMA user_version").fetchone() == (1,)
    elif path.suffix == ".bdb":
        assert '"format": 1' in (path / "objdb.json").read_text()


def test_copied_to_a_new_one(uri: str, tmp_path: Path) -> None:
    """A copy has checksums."""
    with open_storage(uri)[0] as storage, objdb.SQLiteStorage("new.sqlite") as new:
        copy_transactions(storage, new)
        assert check(new).unverified == 0 and check(new).problems == []
