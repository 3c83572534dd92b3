"""Servers and their clients: what `--sharing` compares.

`open` connects with the server of a folder if there is one, and starts one if there is not, which
then ends when the store is closed. So several processes can work on one server: the first one holds
it with `serving`. All commits are durable when they return, except those of Durus, which does not
sync, as it is shipped.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.systems.base import MANY_OBJECTS, System
from benchmarks.systems.durus_store import DurusStore
from benchmarks.systems.persistent_store import THREADS, Objdb, PersistentStore, Zodb

START_SECONDS = 30
OF_ALL = {
    "bulk-commit", "batch-commit", "small-commit", "threads-commit", "load-at-random",
    "clients-commit", "clients-contended", "clients-load", "load-beside-commits", "idle-clients",
    "iteration",
}

Address = tuple[str, int]


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Served(System):
    """A system with a server; a mixin beside what it is a database of."""

    @abstractmethod
    def command(self, path: Path, port: int) -> list[str]:
        """Return the command that serves the database in a folder on loopback."""

    @abstractmethod
    def connect(self, address: Address) -> Any:
        """Return a storage that is a client; raise if there is no server yet."""

    @contextmanager
    def serving(self, path: Path) -> Iterator[int]:
        """Serve the database in *path* while the block runs; give the server's process number."""
        process = self._start(path)
        try:
            yield process.pid
        finally:
            (path / "port").unlink()
            _stop(process)

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        port = free_port()
        process = subprocess.Popen(
            self.command(path, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server of {self.title} does not listen")
                time.sleep(0.05)
            (path / "port").write_text(str(port))
        except BaseException:
            _stop(process)
            raise
        return process

    def client(self, path: Path) -> tuple[Any, Callable[[], object]]:
        """Return a client of the server in *path*, and what to call behind its end; the server is
        started if there is none."""
        process = None if (path / "port").exists() else self._start(path)

        def end() -> None:
            if process is not None:
                (path / "port").unlink()
                _stop(process)

        try:
            return self.connect(("127.0.0.1", int((path / "port").read_text()))), end
        except BaseException:
            end()
            raise


class ServedStore(PersistentStore):
    """A database on a client; *end* is called when it is closed."""

    def __init__(self, database: Any, end: Callable[[], object]) -> None:
        super().__init__(database)
        self._end = end

    def close(self) -> None:
        super().close()
        self._end()


class ObjdbServer(Served, Objdb):
    name: ClassVar[str] = "objdb-zeo"
    title: ClassVar[str] = "objdb's client and server"
    takes_part_in = frozenset(OF_ALL | {"reconnection", "load-above-round-trip"})

    def command(self, path: Path, port: int) -> list[str]:
        file = str(path / "data.fs")
        return [
            sys.executable, "-m", "objdb", "serve", file, "--address", f"127.0.0.1:{port}",
            "--clients", "2000", "--clients-per-address", "2000",
        ]

    def connect(self, address: Address) -> Any:
        from objdb_zeo import ClientStorage

        return ClientStorage(address)

    def open(self, path: Path) -> PersistentStore:
        import objdb

        storage, end = self.client(path)
        return ServedStore(objdb.DB(storage, cache_size=MANY_OBJECTS, pool_size=THREADS), end)


CONF = """
<zeo>
  address 127.0.0.1:{port}
  msgpack true
</zeo>
<filestorage 1>
  path {path}
</filestorage>
"""


class ZeoServer(Served, Zodb):
    name: ClassVar[str] = "zeo"
    title: ClassVar[str] = "ZEO"
    module: ClassVar[str] = "ZEO"
    package: ClassVar[str | None] = "ZEO"
    takes_part_in = frozenset(OF_ALL)

    def command(self, path: Path, port: int) -> list[str]:
        conf = path / "zeo.conf"
        conf.write_text(CONF.format(port=port, path=path / "data.fs"))
        return [sys.executable, "-m", "ZEO.runzeo", "-C", str(conf)]

    def connect(self, address: Address) -> Any:
        import ZEO

        return ZEO.client(address, wait_timeout=START_SECONDS)

    def open(self, path: Path) -> PersistentStore:
        from ZODB.DB import DB

        storage, end = self.client(path)
        return ServedStore(DB(storage, cache_size=MANY_OBJECTS, pool_size=THREADS), end)


class ObjdbOnZeo(ZeoServer):
    name: ClassVar[str] = "objdb-on-zeo"
    title: ClassVar[str] = "objdb's client on ZEO's server"
    takes_part_in = frozenset({"load-at-random", "small-commit", "clients-load"})

    connect = ObjdbServer.connect
    open = ObjdbServer.open
    retrying = Objdb.retrying


class _DurusClientStore(DurusStore):
    def __init__(self, storage: Any, end: Callable[[], object]) -> None:
        from durus.connection import Connection

        from benchmarks import durus_model

        self.model = durus_model
        self.storage = storage
        self.connection = Connection(storage, cache_size=MANY_OBJECTS)
        self._end = end

    def commit(self) -> None:
        self.connection.commit()

    def close(self) -> None:
        self.connection.abort()
        self.storage.s.close()
        self._end()


class DurusServer(Served):
    name: ClassVar[str] = "durus-server"
    title: ClassVar[str] = "Durus's server"
    module: ClassVar[str] = "durus"
    package: ClassVar[str | None] = "Durus"
    abilities = frozenset({"items", "save", "objects"})
    takes_part_in = frozenset({"load-at-random", "small-commit", "clients-commit", "clients-load"})

    def command(self, path: Path, port: int) -> list[str]:
        script = os.path.join(os.path.dirname(sys.executable), "durus")
        return [
            sys.executable, script, "-s", "--file", str(path / "data.durus"), "--port", str(port)
        ]

    def connect(self, address: Address) -> Any:
        from durus.client_storage import ClientStorage

        return ClientStorage(*address)

    def create(self, path: Path) -> _DurusClientStore:
        store = self.open(path)
        store.create_container()
        return store

    def open(self, path: Path) -> _DurusClientStore:
        return _DurusClientStore(*self.client(path))
