"""Databases of another user, who lets others read them, or not even that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import objdb
from tests.database.test_forks import in_child

OTHER_USER = 65534
SCHEMES = {
    "file": "data.fs", "sqlite": "data.sqlite", "pickle": "data.pickle",
    "berkeley": "data",
}

@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach, and only its owner write to."""
    path = Path(tempfile.mkdtemp(prefix="objdb-permissions-"))
    path.chmod(0o755)
    yield path
    for found in path.rglob("*"):
        found.chmod(0o755)
    shutil.rmtree(path)


def as_other_user(uri: str) -> str:
    """Return what somebody who owns nothing here is told."""

    def look() -> str:
        if os.geteuid() == 0:
            os.setuid(OTHER_USER)
        try:
            with objdb.DB(uri) as db, db.transaction() as connection:
                connection.root()["number"] += 1
        except (objdb.ObjdbError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "no error"

    return in_child(look)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_database_that_cannot_be_written(folder: Path, scheme: str) -> None:
    """It is told with its path, and nothing changes; who may read it can, for reading only."""
    path = folder / SCHEMES[scheme]
    with objdb.DB(f"{scheme}:{path}") as db, db.transaction() as connection:
        connection.root()["number"] = 7
    modes = {found: found.stat().st_mode & 0o777 for found in folder.rglob("*")}
    folder.chmod(0o555)
    for found in modes:
        found.chmod(0o555 if found.is_dir() else 0o444)
    told = as_other_user(f"{scheme}:{path}")
    assert told.startswith(("PermissionError", "ReadOnlyError", "StorageError")), told
    assert str(path) in told
    for found in reversed(modes):
        found.chmod(0)
    for query in ("", "?read_only=yes") if scheme != "berkeley" else ("",):
        told = as_other_user(f"{scheme}:{path}{query}")
        assert told.startswith(("PermissionError", "StorageError")) and str(path) in told
    folder.chmod(0o755)
    for found, mode in modes.items():
        found.chmod(mode)
    with objdb.DB(f"{scheme}:{path}") as db, db.transaction() as connection:
        assert connection.root()["number"] == 7
