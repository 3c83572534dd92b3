"""Databases from a settings file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.database.settings import open_databases
from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    StorageClosedError,
    StorageError,
    UsageError,
)
from tests.models import Person

TWO = """
[main]
storage = "sqlite:main.sqlite"
pool_size = 3
isolation = "serializable"

[archive]
storage = "file:archive.fs?cache_size=17"
cache_size = 50
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "objdb.toml"
    path.write_text(text)
    return path


def test_two_databases(tmp_path: Path) -> None:
    """Each has its name and its options; paths are beside the file; they refer to each other."""
    path = write(tmp_path, TWO)
    with open_databases(path) as databases:
        main, archive = databases["main"], databases["archive"]
        assert (main.getPoolSize(), main.isolation) == (3, "serializable")
        assert archive.getCacheSize() == 17  # what the URI says wins
        with main.transaction() as connection:
            other = connection.get_connection("archive")
            other.root()["ann"] = ann = Person("ann")
            other.add(ann)
            connection.root()["ann"] = ann
        assert list(databases) == ["main", "archive"] and len(databases) == 2
        assert "main" in databases and "other" not in databases
    assert {"main.sqlite", "archive.fs"} <= set(os.listdir(tmp_path))
    with open_databases(path) as databases, databases["main"].transaction() as connection:
        assert connection.root()["ann"].name == "ann"
    assert len(databases) == 0


def test_keys_and_logs_beside_the_settings(tmp_path: Path) -> None:
    """The paths of keys and of logs are relative to the settings, too."""
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "logs").mkdir()
    path = write(tmp_path, """
[letters]
storage = "encrypted+berkeley:letters?key=file:key&log_directory=logs"

[tries]
storage = "demo:(encrypted+file:tries.fs?key=file:key)"
""")
    with open_databases(path) as databases, databases["letters"].transaction() as connection:
        connection.root()["ann"] = 1
    assert list((tmp_path / "logs").glob("log.*"))


def test_one_that_cannot_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When closing one fails, the others are closed all the same."""
    path = write(tmp_path, TWO)
    databases = open_databases(path)
    main, archive = databases["main"], databases["archive"]
    for database in (main, archive):
        storage, close = database.storage, database.storage.close

        def fail(close: Any = close) -> None:
            close()
            raise StorageError("for now")

        monkeypatch.setattr(storage, "close", fail)
    with pytest.raises(StorageError, match="for now"):
        databases.close()
    for database in (main, archive):
        with pytest.raises(StorageClosedError):
            database.open()
    open_databases(path).close()


def test_the_usual_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument it is objdb.toml in the working directory."""
    write(tmp_path, TWO)
    monkeypatch.chdir(tmp_path)
    with objdb.open_databases() as databases:
        assert len(databases) == 2


WRONG = {
    "not TOML": ("[main", "is not valid TOML"),
    "empty": ("", "no databases"),
    "outside": ('storage = "a.fs"', "outside of a table"),
    "no storage": ("[main]\npool_size = 3", r"\[main\] needs storage"),
    "a number": ("[main]\nstorage = 3", r"\[main\] needs storage"),
    "unknown": ('[main]\nstorage = "a.fs"\npool_sise = 3', "pool_sise.*pool_size"),
    "value": ('[main]\nstorage = "a.fs"\npool_size = "many"', "pool_size is 'many'"),
    "scheme": ('[main]\nstorage = "nosuch:a.fs"', "no storage 'nosuch'.*file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_makes_no_sense(tmp_path: Path, kind: str) -> None:
    """It is told with what there is, and nothing stays open."""
    text, told = WRONG[kind]
    with pytest.raises(UsageError, match=told):
        open_databases(write(tmp_path, text))


def test_one_that_cannot_be_opened(tmp_path: Path) -> None:
    """The error of the storage comes through, and the others are closed again."""
    path = write(tmp_path, TWO)
    (tmp_path / "archive.fs").write_bytes(b"something else")
    with pytest.raises((FileFormatError, CorruptedDataError)):
        open_databases(path)
    (tmp_path / "archive.fs").unlink()
    open_databases(path).close()
    with open_databases(path) as databases, pytest.raises(UsageError, match="main, archive"):
        databases["nosuch"]
    with pytest.raises(FileNotFoundError):
        open_databases(tmp_path / "nosuch.toml")
