"""The conformance suite over a client of a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.interfaces import IStorageVersions
from objdb.storage.layers.compressed import CompressedStorage
from objdb.testing.conformance import SCRIPTS, CoreConformance
from objdb.testing.copying import CopyConformance
from objdb.testing.helpers import Make
from objdb.testing.history import HistoryConformance
from objdb.testing.packing import PackConformance
from objdb.testing.packing_model import refer
from objdb.testing.script import Run, Script
from objdb.testing.undoing import UndoConformance
from objdb.testing.undolog import UndoLogConformance
from objdb_zeo import ClientStorage
from tests.storages import STORAGES
from tests.zeo.serving import Serving


class Served:
    """Opens the storage of a kind in a folder, serves it, and returns a client; once the client is
    closed, all of that again."""

    def __init__(self, kind: str, folder: Path, **options: Any) -> None:
        self._kind, self._folder, self._options = kind, folder, options
        self._open = ExitStack()

    def __call__(self) -> ClientStorage:
        self.close()
        storage = STORAGES[self._kind](self._folder)
        serving = Serving({"1": storage}, references=refer, **self._options)
        self._open.enter_context(serving)
        client = ClientStorage(serving.address)
        self._open.callback(client.close)
        return client

    def close(self) -> None:
        """Close client, server and storage."""
        self._open.close()


class ServedConformance(
    CoreConformance, HistoryConformance, UndoConformance, UndoLogConformance, CopyConformance,
    PackConformance,
):
    """The suite but for versions, which are not served."""

    @pytest.mark.parametrize("script", [
        each for each in SCRIPTS if IStorageVersions not in each.values[0].needs
    ])
    def test_script(self, storage: Any, make_storage: Make, script: Script) -> None:
        """The storage does what the script says."""
        Run(script, storage).all(make_storage)


class TestFile(ServedConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        served = Served("file", tmp_path)
        yield served
        served.close()


class TestCompressedOverTheWire(ServedConformance):
    """A layer over a client, in pickles."""

    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Iterator[Callable[[], Any]]:
        served = Served("pickle", tmp_path, pickles=True)
        yield lambda: CompressedStorage(served())
        served.close()


def test_what_other_processes_commit(tmp_path: Path) -> None:
    """What others commit to a SQLite file that is served is told to clients."""
    uri = f"sqlite:{tmp_path}/data.sqlite"
    with (
        Serving({"1": objdb.SQLiteStorage(tmp_path / "data.sqlite")}) as serving,
        objdb.DB(ClientStorage(serving.address)) as db,
        objdb.DB(ClientStorage(serving.address)) as other,
    ):
        with db.transaction() as connection:
            connection.root()["n"] = 1
        elsewhere = f"""
import objdb
with objdb.DB({uri!r}) as db, db.transaction() as connection:
    connection.root()["n"] += 1
"""
        subprocess.run([sys.executable, "-c", elsewhere], check=True, timeout=60)
        other.storage.getSize()
        other.storage.loadSerial(b"\0" * 8, other.storage.lastTransaction())  # it asks something
        for client in (other, db):
            with client.transaction() as connection:
                assert connection.root()["n"] == 2
        db.pack()
        assert len([*other.storage.iterator()]) == 1
