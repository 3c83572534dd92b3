"""`objdb serve`, and the other commands on a server, in processes of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import objdb
from objdb_zeo.addresses import addresses, format_address, parse_address
from objdb_zeo.messages import ProtocolError
from objdb_zeo.transport import DisconnectedError
from tests.zeo.serving import Serving

OBJDB = [sys.executable, "-m", "objdb"]


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[list[str]]:
    """Run `objdb serve`; yield the lines of its ready file; end it by SIGTERM."""
    ready = folder / "ready"
    process = subprocess.Popen(
        [*OBJDB, "serve", *arguments, "--ready-file", str(ready)], cwd=folder,
        stderr=subprocess.PIPE, text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lines = ready.read_text().splitlines()
        assert int(lines[-1]) == process.pid
        yield lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not ready.exists()
        assert process.stderr is not None and process.stderr.read().endswith("stopped\n")
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [*OBJDB, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_several_storages_and_addresses(tmp_path: Path) -> None:
    """Several storages are served at several addresses, and every command takes them."""
    with served(
        tmp_path, "one.fs", "--name", "main=sqlite:two.sqlite", "--address", "127.0.0.1:0",
        "--address", f"unix:{tmp_path}/sock",
    ) as (tcp, unix, _):
        assert unix == f"unix:{tmp_path}/sock"
        with objdb.DB(f"zeo://{tcp}") as db, db.transaction(note="in one") as connection:
            connection.root()["name"] = "one"
        with objdb.DB(f"zeo://{tmp_path}/sock?storage=main") as db, db.transaction() as connection:
            connection.root()["name"] = "two"
        told = run("undolog", f"zeo://{tcp}", folder=tmp_path)
        assert told.returncode == 0 and "in one" in told.stdout
        for command in ("check", "info"):
            told = run(command, f"zeo://{tmp_path}/sock?storage=main", folder=tmp_path)
            assert told.returncode == 0, told.stderr
        told = run("migrate", f"zeo://{tcp}", "copy.fs", folder=tmp_path)
        assert told.returncode == 0, told.stderr
        told = run("pack", f"zeo://{tcp}", "--now", folder=tmp_path)
        assert told.returncode == 0, told.stderr
    with objdb.DB(tmp_path / "copy.fs") as db:
        assert db.open().root()["name"] == "one"


def test_without_a_storage(tmp_path: Path) -> None:
    """Without a storage, a temporary one is served."""
    with served(tmp_path, "--address", "127.0.0.1:0") as (address, _):
        with objdb.DB(f"zeo://{address}") as db, db.transaction() as connection:
            connection.root()["x"] = 1
        assert run("info", f"zeo://{address}", folder=tmp_path).returncode == 0


def test_read_only(tmp_path: Path) -> None:
    """A storage that is served for reading can be read."""
    with objdb.DB(tmp_path / "data.fs") as db, db.transaction() as connection:
        connection.root()["x"] = 1
    with served(tmp_path, "data.fs", "--read-only", "--address", "127.0.0.1:0") as (address, _):
        with objdb.DB(f"zeo://{address}?read_only=yes") as db:
            assert db.open().root()["x"] == 1
        told = run("pack", f"zeo://{address}", folder=tmp_path)
        assert told.returncode == 1 and "read" in told.stderr


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["data.fs", "--address", "nowhere"], 1, "HOST:PORT or unix:PATH"),
    (["data.fs", "--name", "main"], 2, "NAME=URI"),
    (["data.fs", "--name", "1=other.fs"], 2, "two storages"),
    (["tape:data"], 1, "there is no storage 'tape'"),
    (["data.fs", "--vote-seconds", "0"], 2, "vote-seconds"),
])
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """What cannot be served is told in a sentence."""
    told = run("serve", *arguments, folder=tmp_path)
    assert told.returncode == code and words in told.stderr
    assert "Traceback" not in told.stderr


def test_an_address_in_use(tmp_path: Path) -> None:
    """An address in use is told, and what is there is not disturbed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = run("serve", "data.fs", "--address", f"127.0.0.1:{port}", folder=tmp_path)
    assert told.returncode == 1 and "in use" in told.stderr
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        told = run("serve", "data.fs", "--address", f"unix:{tmp_path}/sock", folder=tmp_path)
        assert told.returncode == 1 and "in use" in told.stderr
    with served(tmp_path, "data.fs", "--address", f"unix:{tmp_path}/sock"):  # nobody listens now
        objdb.DB(f"zeo://{tmp_path}/sock").close()


def test_wrong_servers(tmp_path: Path) -> None:
    """No server, one of another kind, and one without the storage are told apart."""
    with pytest.raises(DisconnectedError, match="objdb serve"):
        objdb.DB("zeo://127.0.0.1:1?wait_seconds=0")
    with Serving({"main": objdb.MappingStorage()}) as serving:
        uri = f"zeo://{format_address(serving.address)}"
        with pytest.raises(ValueError, match="there are 'main'"):
            objdb.DB(uri)
        objdb.DB(f"{uri}?storage=main").close()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = format_address(other.getsockname()[:2])

        import threading

        def answer() -> None:
            connection, _ = other.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="not a ZEO server"):
            objdb.DB(f"zeo://{address}?wait_seconds=0")
        thread.join()
    for wrong in ("zeo:", "zeo://host", "zeo://127.0.0.1:99999", "zeo://h:1?cache_bytes=-1"):
        with pytest.raises(objdb.errors.UsageError):
            objdb.DB(wrong)


def test_addresses() -> None:
    """Addresses are read as they are written."""
    assert parse_address("[::1]:80") == ("::1", 80)
    for text in ("127.0.0.1:80", "[::1]:80", "unix:/run/x"):
        assert format_address(parse_address(text)) == text
    assert parse_address("80") == ("127.0.0.1", 80) and parse_address("/run/x") == "/run/x"
    assert addresses([("h", 1), "unix:/x"]) == [("h", 1), "/x"]
    for wrong in (None, [], 7, ("h",), "h:x"):
        with pytest.raises(objdb.errors.UsageError):
            addresses(wrong)


FORKS = """
import os, sys, objdb
with objdb.DB(sys.argv[1]) as db:
    with db.transaction() as connection:
        connection.root()["n"] = 1
    child = os.fork()
    if not child:
        with db.transaction() as connection:
            connection.root()["n"] += 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with db.transaction() as connection:
        print(connection.root()["n"])
"""


def test_forks(tmp_path: Path) -> None:
    """A forked child connects by itself, and does not disturb its parent."""
    with Serving({"1": objdb.FileStorage(tmp_path / "data.fs")}) as serving:
        uri = f"zeo://{format_address(serving.address)}"
        done = subprocess.run(
            [sys.executable, "-c", FORKS, uri], capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
