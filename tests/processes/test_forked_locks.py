"""A process is killed whose forked child lives on."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import objdb

ROOT = Path(__file__).parents[2]

PARENT = """
import os, sys, time
import objdb
db = objdb.DB(sys.argv[1])
with db.transaction() as connection:
    connection.root()["n"] = 1
if not os.fork():
    print(os.getpid(), flush=True)
    os.close(1)
    sys.stdin.read()  # until the test closes it
    os._exit(0)
time.sleep(600)
"""


@pytest.mark.parametrize("uri", [
    "file:{}.fs", "sqlite:{}.sqlite", "pickle:{}.pickle", "berkeley:{}", "compressed+file:{}.fs",
])
def test_the_lock_of_a_killed_parent(tmp_path: Path, uri: str) -> None:
    """The child does not keep the database from being opened again."""
    uri = uri.format(tmp_path / "data")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, uri], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        refused: AbstractContextManager[Any] = pytest.raises(objdb.StorageLockedError)
        with nullcontext() if uri.startswith("sqlite") else refused:
            objdb.DB(uri).close()
        parent.kill()
        parent.wait(30)
        os.kill(child, 0)  # it is there
        with objdb.DB(uri) as db, db.transaction() as connection:
            assert connection.root()["n"] == 1
            connection.root()["n"] = 2
    finally:
        parent.kill()
        parent.wait(30)
        parent.stdin.close()
        parent.stdout.close()
