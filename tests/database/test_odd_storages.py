"""Databases that are opened the wrong way, or whose numbers are at their end: errors with names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import objdb
from objdb.check import check
from objdb.ids import LAST_TID, MAX_TID, NO_TID, ROOT_OID
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit
from objdb.tools.main import main
from tests.storages import KEY, STORAGES


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda base: objdb.EncryptedStorage(base, KEY), "encrypted"),
        (lambda base: objdb.CompressedStorage(base), "compressed"),
    ],
    ids=["encrypted", "compressed"],
)
@pytest.mark.parametrize("below", ["file", "sqlite"])
def test_without_its_layer(make, kind: str, below: str, tmp_path: Path) -> None:
    """A database opened without the layer that wrote it says which one that was."""
    with objdb.DB(make(STORAGES[below](tmp_path))) as db, db.transaction() as connection:
        connection.root()["x"] = objdb.PersistentMapping(text="x" * 5000)
    with (
        pytest.raises(objdb.DeserializationError, match=rf"{kind} one.*opened without it"),
        objdb.DB(STORAGES[below](tmp_path)) as db,
        db.transaction() as connection,
    ):
        dict(connection.root()["x"])


# SQLite hands out oids from a counter of its own, and demo its own too.
COUNTING = [name for name in STORAGES if name not in ("demo", "sqlite", "encrypted")]


@pytest.mark.parametrize("kind", COUNTING)
def test_the_last_oid(kind: str, tmp_path: Path) -> None:
    """Where there is an object with the last oid, a new one is refused with an error that says
    so; the rest goes on."""
    with STORAGES[kind](tmp_path) as storage:
        commit(storage, {b"\xff" * 8: (NO_TID, b"the last")})
        with pytest.raises(objdb.StorageError, match="no oids left"):
            storage.new_oid()
        assert storage.load(b"\xff" * 8)[0] == b"the last"


@pytest.mark.parametrize("kind", list(STORAGES))
def test_the_last_tid(kind: str, tmp_path: Path) -> None:
    """Behind the last tid there is, nothing can be committed: an error that says so, and the rest
    goes on. Beyond the range nothing can be restored."""
    with STORAGES[kind](tmp_path) as storage:
        for tid, is_taken in ((b"\xff" * 8, False), (MAX_TID, False), (LAST_TID, True)):
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction, tid)
            storage.restore(ROOT_OID, tid, b"restored", "", None, transaction)
            if is_taken:
                storage.tpc_vote(transaction)
                storage.tpc_finish(transaction)
                break
            with pytest.raises(objdb.StorageError, match="end of the range of tids"):
                storage.tpc_vote(transaction)
            storage.tpc_abort(transaction)
        with pytest.raises(objdb.StorageError, match="end of the range of tids"):
            commit(storage, {ROOT_OID: (LAST_TID, b"another")})
        assert storage.load(ROOT_OID) == (b"restored", LAST_TID)
    if kind != "memory":
        with STORAGES[kind](tmp_path) as storage:
            assert storage.load(ROOT_OID) == (b"restored", LAST_TID)
            assert "ahead of the clock" in check(storage).note


@pytest.mark.parametrize("kind", [name for name in STORAGES if name != "memory"])
def test_ahead_of_the_clock(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A last transaction that is years ahead is told when the database is opened."""
    now = time.time
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        monkeypatch.setattr(time, "time", lambda: now() + 10 * 365 * 86_400)
        with db.transaction() as connection:
            connection.root()["x"] = 1
    monkeypatch.setattr(time, "time", now)
    caplog.clear()
    objdb.DB(STORAGES[kind](tmp_path)).close()
    assert "days ahead of the clock" in caplog.text
    if kind == "file":
        result = CliRunner().invoke(main, ["info", str(tmp_path / "data.fs")])
        assert "careful: " in result.output
        assert result.exit_code == 0
