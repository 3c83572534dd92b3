"""Paths of storages on disk: relative ones, strange ones, and those of nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import UsageError
from tests.database.staging import in_thread

URIS = [
    "file:data", "sqlite:data", "berkeley:data", "pickle:data", "pickle:data?every_seconds=1000",
]


def store(db: objdb.DB, value: int) -> None:
    """Commit *value*, and an object that nothing leads to afterwards."""
    with db.transaction() as connection:
        connection.root()["value"] = value
        connection.root()["other"] = objdb.PersistentMapping()


@pytest.mark.parametrize("uri", URIS)
def test_a_process_that_changes_its_directory(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that was opened by a relative path stays where it is, for commits, other threads
    and packs, and nothing is made elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with objdb.DB(uri) as db:
        store(db, 1)
        monkeypatch.chdir(tmp_path / "elsewhere")
        in_thread(lambda: store(db, 2))
        db.pack()
        store(db, 3)
        assert check(db.storage).problems == []
    assert os.listdir() == []
    monkeypatch.chdir(tmp_path / "here")
    with objdb.DB(uri) as db, db.transaction() as connection:
        assert connection.root()["value"] == 3


def test_a_fork_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in SQLite that was opened by a relative path goes on, in parent and child."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with objdb.DB("sqlite:data") as db:
        monkeypatch.chdir(tmp_path / "elsewhere")
        child = os.fork()
        if not child:
            code = 1
            try:
                store(db, 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with db.transaction() as connection:
            assert connection.root()["value"] == 1
            connection.root()["value"] = 2
    assert os.listdir() == []


KINDS = [objdb.FileStorage, objdb.SQLiteStorage, objdb.BerkeleyStorage, objdb.PickledMappingStorage]


@pytest.mark.parametrize("kind", KINDS)
def test_paths_of_nothing(kind: Any, tmp_path: Path) -> None:
    """What no file can have as its name is refused, and so is a folder that is not there."""
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(UsageError, match="is not a path"):
            kind(f"{tmp_path}/{name}")
    with pytest.raises(UsageError, match="is empty"):
        kind("")
    with pytest.raises(FileNotFoundError, match="the folder of the database does not exist"):
        kind(tmp_path / "nosuch" / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [objdb.SQLiteStorage, objdb.BerkeleyStorage])
def test_backups_to_nowhere(kind: Any, tmp_path: Path) -> None:
    """A backup that has no place is told by that, and not as a fault of the database."""
    with kind(tmp_path / "data") as storage:
        with pytest.raises(FileNotFoundError, match="the folder of the backup does not exist"):
            storage.backup(tmp_path / "nosuch" / "copy")
        with pytest.raises(UsageError, match="is empty"):
            storage.backup("")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [b"\xff", "ü % ? # + :".encode(), b"plain"], ids=str)
def test_paths_as_bytes(kind: Any, name: bytes, tmp_path: Path) -> None:
    """Whatever the system takes as a name is one, also where it is no text."""
    path = os.fsencode(tmp_path) + b"/" + name
    for where in (path, os.fsdecode(path)):
        with objdb.DB(kind(where)) as db:
            store(db, 1)
        assert os.path.exists(path)


def test_a_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute paths are good in a process whose current directory is gone."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for kind in ("file", "sqlite", "berkeley", "pickle"):
        with objdb.DB(f"{kind}:{tmp_path}/{kind}") as db:
            store(db, 1)
            db.pack()
            assert check(db.storage).problems == []
    monkeypatch.chdir(tmp_path)
