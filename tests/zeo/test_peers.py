"""ZEO's client on this server, and this client on ZEO's server: real ones, in processes of their
own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import transaction

import objdb
from objdb.errors import ConflictError, POSKeyError, UndoError, UsageError
from objdb.storage.commit import TransactionMetaData
from objdb_zeo import ClientStorage
from tests.zeo.serving import Serving

pytestmark = pytest.mark.peer

ZEO_CLIENT = """
import sys, time
import transaction, ZEO, ZODB
from persistent.mapping import PersistentMapping
from BTrees.Length import Length
from ZODB.POSException import ConflictError, POSKeyError

host, port = sys.argv[1], int(sys.argv[2])
db = ZODB.DB(ZEO.client((host, port), wait_timeout=20))
one, other = (transaction.TransactionManager() for _ in range(2))
connection = db.open(one)
root = connection.root()
print("root", sorted(root))
root["theirs"] = PersistentMapping(number=1)
root["length"] = Length()
one.get().note("made by ZEO")
one.commit()

# what another client commits is seen after a ping
print("invalidated", root["ours"]["number"])
print("commit, please", flush=True)
assert sys.stdin.readline() == "done\\n"
one.begin()
db.storage.ping() if hasattr(db.storage, "ping") else None
connection.sync()
for _ in range(100):
    if root["ours"]["number"] == 2:
        break
    time.sleep(0.05)
    connection.sync()
print("invalidated", root["ours"]["number"])

# conflicts: one that the class resolves, and one that it does not
second = db.open(other)
second.root()["length"].change(10)
root["length"].change(1)
one.commit()
other.commit()
connection.sync()
print("resolved", root["length"]())
second.sync()
second.root()["theirs"]["number"] = 3
root["theirs"]["number"] = 2
one.commit()
try:
    other.commit()
except ConflictError as error:
    print("conflict", type(error).__name__, error.oid.hex())
    other.abort()

# undo, history, iteration, packing
print("log", [entry["description"] for entry in db.undoLog(0, 20)])
db.undo(db.undoLog(0, 1)[0]["id"], one.get())
one.commit()
print("undone", root["theirs"]["number"])
print("history", len(db.history(root["theirs"]._p_oid, 10)))
count = sum(1 for t in db.storage.iterator() for record in t)
print("records", count > 5)
try:
    db.storage.load(b"\\0\\0\\0\\0\\0\\xff\\xff\\xff")
except POSKeyError as error:
    print("missing", error.args[0].hex())
db.pack()
print("packed", sum(1 for t in db.storage.iterator() for record in t) < count)
db.close()
"""


@pytest.mark.parametrize("pickles", [False, True], ids=["msgpack", "pickle"])
def test_a_zeo_client_on_this_server(tmp_path: Path, pickles: bool) -> None:
    """ZEO's client commits, resolves, undoes, iterates and packs, and sees what ours commits."""
    storages = {"1": objdb.FileStorage(tmp_path / "data.fs")}
    with Serving(storages, pickles=pickles) as serving:
        host, port = serving.address
        with objdb.DB(ClientStorage(serving.address)) as db:
            with db.transaction() as connection:
                connection.root()["ours"] = objdb.PersistentMapping(number=1)
            program = subprocess.Popen(
                [sys.executable, "-c", ZEO_CLIENT, host, str(port)], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            assert program.stdin is not None and program.stdout is not None
            try:
                said = []
                while (line := program.stdout.readline()):
                    said.append(line.strip())
                    if line == "commit, please\n":
                        with db.transaction() as connection:
                            assert connection.root()["theirs"]["number"] == 1
                            connection.root()["ours"]["number"] = 2
                        program.stdin.write("done\n")
                        program.stdin.flush()
                _, errors = program.communicate(timeout=60)
            finally:
                program.kill()
                program.wait()
            with db.transaction() as connection:
                oid = connection.root()["theirs"]._p_oid
                assert connection.root()["theirs"]["number"] == 1
                assert connection.root()["length"]() == 11
    assert program.returncode == 0, errors
    assert said == [
        "root ['ours']", "invalidated 1", "commit, please", "invalidated 2", "resolved 11",
        f"conflict ConflictError {oid.hex()}",
        "log ['', '', '', '', 'made by ZEO', '', 'initial database creation']",
        "undone 1", "history 3", "records True", "missing 0000000000ffffff", "packed True",
    ]


ZEO_CONF = """
<zeo>
  address 127.0.0.1:0
  {msgpack}
</zeo>
<filestorage 1>
  path {path}
</filestorage>
"""


@pytest.fixture(params=["msgpack", "pickle"])
def zeo_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a ZEO server with a file."""
    port = _free_port()
    conf = tmp_path / "zeo.conf"
    text = ZEO_CONF.format(
        path=tmp_path / "theirs.fs",
        msgpack="msgpack true" if request.param == "msgpack" else "msgpack false",
    )
    conf.write_text(text.replace(":0", f":{port}"))
    process = subprocess.Popen(
        [sys.executable, "-m", "ZEO.runzeo", "-C", str(conf)], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                ClientStorage(("127.0.0.1", port)).close()
                break
            except objdb.errors.StorageError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        yield "127.0.0.1", port
    finally:
        process.kill()  # with uvloop it does not always end when it is asked to
        process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_this_client_on_a_zeo_server(zeo_server: tuple[str, int]) -> None:
    """This client commits, is told of others' commits, resolves, undoes and iterates."""
    with objdb.DB(ClientStorage(zeo_server)) as db, objdb.DB(ClientStorage(zeo_server)) as other:
        with db.transaction(note="made") as connection:
            connection.root()["m"] = objdb.PersistentMapping(number=1)
            connection.root()["length"] = objdb.btrees.Length()
        with db.transaction(note="changed") as connection:
            connection.root()["m"]["number"] = 2
        _wait_for(other, db)
        with other.transaction() as connection:
            assert connection.root()["m"]["number"] == 2
        first, second = (transaction.TransactionManager() for _ in range(2))
        a, b = db.open(transaction_manager=first), other.open(transaction_manager=second)
        a.root()["length"].change(1)
        b.root()["length"].change(10)
        first.commit()
        second.commit()
        _wait_for(db, other)
        first.begin()
        assert a.root()["length"]() == 11
        a.root()["m"]["number"] = 3
        oid = a.root()["m"]._p_oid
        second.begin()
        b.root()["m"]["number"] = 4
        first.commit()
        with pytest.raises(ConflictError) as caught:
            second.commit()
        assert caught.value.oid == oid
        second.abort()
        a.close()
        b.close()
        log = [entry["description"] for entry in db.undoLog(0, -2)]
        assert len(log) == 2
        db.undo(db.undoLog(0, -1)[0]["id"])
        transaction.commit()
        with db.transaction() as connection:
            assert connection.root()["m"]["number"] == 2
        names = [t.description for t in db.storage.iterator()]
        assert names[1:3] == [b"made", b"changed"]
        assert len(db.storage.history(oid, 9)) == 4
        _commit_extensions(db.storage)
        with pytest.raises(POSKeyError):
            db.storage.load(b"\0" * 5 + b"\xff" * 3)
        storage, metadata = db.storage, TransactionMetaData()
        storage.tpc_begin(metadata)
        storage.undo(bytes(7) + b"\1", metadata)
        with pytest.raises((UndoError, objdb.errors.StorageError)):
            storage.tpc_vote(metadata)
        storage.tpc_abort(metadata)


def _commit_extensions(storage: ClientStorage) -> None:
    """What a ZEO server takes in an extension is kept; the rest is refused when it is begun."""
    bad = TransactionMetaData(extension={"good": 1, "when": datetime(2026, 11, 30)})
    with pytest.raises(UsageError, match="'when'"):
        storage.tpc_begin(bad)
    storage.tpc_abort(bad)
    metadata = TransactionMetaData(extension={"good": 1})
    storage.tpc_begin(metadata)
    storage.store(storage.new_oid(), None, b"x", "", metadata)
    storage.tpc_vote(metadata)
    tid = storage.tpc_finish(metadata)
    [found] = storage.iterator(tid, tid)
    assert found.extension == {"good": 1}


def _wait_for(db: objdb.DB, other: objdb.DB) -> None:
    """Wait until *db* was told of the last transaction of *other*."""
    last, deadline = other.storage.lastTransaction(), time.monotonic() + 20
    while db.storage.lastTransaction() < last:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        db.storage.poll()
