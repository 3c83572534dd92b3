"""What becomes of commits when connections are cut, and servers and clients killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.errors import StorageError, StorageForkedError
from objdb.ids import NO_TID, ROOT_OID
from objdb.testing.helpers import commit
from objdb.testing.relay import Direction, Relay
from objdb_zeo import ClientStorage
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.transport import Channel, DisconnectedError, Pending
from tests.zeo.serving import Serving

SERVE = [sys.executable, "-m", "objdb", "serve"]


class ServerProcess:
    """`objdb serve` in a process of its own, on a file, always at the same port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*SERVE, str(self.folder / "data.fs"), "--address", f"127.0.0.1:{self.port}",
             "--ready-file", str(ready), *self._options],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        self.port = int(ready.read_text().split()[0].rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process that runs."""
    server = ServerProcess(tmp_path)
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def make_counter(db: objdb.DB) -> None:
    with db.transaction() as connection:
        connection.root()["counter"] = objdb.PersistentMapping(value=0)


def add_one(connection: objdb.connection.connection.Connection) -> None:
    connection.root()["counter"]["value"] += 1


def value_of(db: objdb.DB) -> int:
    with db.transaction() as connection:
        value: int = connection.root()["counter"]["value"]
        return value


@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_at_every_byte_of_a_commit(tmp_path: Path, direction: Direction) -> None:
    """A connection that is cut anywhere in a commit, or in its answers, neither loses nor doubles
    what was acknowledged."""
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving,
        Relay(serving.address) as relay,
        objdb.DB(ClientStorage(relay.address, wait_seconds=60)) as db,
        objdb.DB(ClientStorage(serving.address)) as direct,
    ):
        make_counter(db)
        done = value_of(direct)
        step = 1 if direction == "down" else 3
        for count in range(0, 420 if direction == "up" else 120, step):
            relay.cut_after(direction, count)
            db.run(add_one, tries=10)
            done += 1
            assert value_of(direct) == done, f"cut after {count} bytes {direction}"
        assert relay.cuts > 30


def test_several_clients_over_a_bad_link(tmp_path: Path) -> None:
    """Each acknowledged increment of several clients is there once, while connections are cut."""
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving,
        Relay(serving.address) as relay,
    ):
        with objdb.DB(ClientStorage(serving.address)) as direct:
            make_counter(direct)
        acknowledged, is_over = [0] * 4, threading.Event()
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                address = serving.address if number else relay.address
                with objdb.DB(ClientStorage(address, wait_seconds=60)) as db:
                    while not is_over.is_set():
                        db.run(add_one, tries=1000)
                        acknowledged[number] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            time.sleep(0.05)
            relay.cut()
        is_over.set()
        for thread in threads:
            thread.join(60)
        assert not failures
        with objdb.DB(ClientStorage(serving.address)) as direct:
            assert value_of(direct) == sum(acknowledged) and acknowledged[0] > 0


def test_a_server_that_is_killed(server: ServerProcess) -> None:
    """A server that is killed in the middle of commits, and started again, has each acknowledged
    one once; clients go on by themselves."""
    with objdb.DB(ClientStorage(server.address, wait_seconds=60)) as db:
        make_counter(db)
        acknowledged, is_over = 0, threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            nonlocal acknowledged
            try:
                while not is_over.is_set():
                    db.run(add_one, tries=1000)
                    acknowledged += 1
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(5):
            time.sleep(0.3)
            server.stop(signal.SIGKILL)
            server.start()
        time.sleep(0.3)
        is_over.set()
        thread.join(60)
        assert not failures
        assert acknowledged > 20 and value_of(db) == acknowledged


WRITER = """
import sys, objdb
with objdb.DB(sys.argv[1]) as db:
    def add_one(connection):
        connection.root()["counter"]["value"] += 1
    while True:
        db.run(add_one, tries=1000)
        print("done", flush=True)
"""


def test_clients_that_are_killed(server: ServerProcess) -> None:
    """A client that is killed in the middle of a commit leaves it whole or not at all, and nobody
    waits for it."""
    with objdb.DB(ClientStorage(server.address)) as db:
        make_counter(db)
        for _ in range(4):
            before = value_of(db)
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, f"zeo://127.0.0.1:{server.port}"],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(5)]
            time.sleep(0.05)
            process.kill()
            said += process.stdout.readlines()
            process.wait()
            process.stdout.close()
            told = said.count(b"done\n")
            for _ in range(100):  # what it had sent is still carried out
                after = value_of(db) - before
                if after >= told:
                    break
                time.sleep(0.02)
            assert told <= after <= told + 1
            db.run(add_one)


def test_reads_are_asked_again(tmp_path: Path) -> None:
    """A connection that is lost while something is read is made anew, and it is asked again: a
    database opens, and a transaction reads on, while the cable is pulled now and then."""
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving,
        Relay(serving.address) as relay,
    ):
        with objdb.DB(ClientStorage(serving.address)) as direct:
            make_counter(direct)
        for count in range(0, 160, 3):
            storage = ClientStorage(relay.address, wait_seconds=20, cache_bytes=0)
            relay.cut_after("down", count)
            with objdb.DB(storage) as db:
                assert value_of(db) == 0
                assert storage.history(ROOT_OID) and list(storage.iterator())
        assert relay.cuts > 40


def test_a_raw_storage_in_a_fork(server: ServerProcess) -> None:
    """A storage that is used in a forked child, without a database that opens it anew, is refused
    there: the two would share a socket."""
    with ClientStorage(server.address) as storage:
        uses = [
            storage.poll, storage.new_oid, lambda: storage.load(ROOT_OID),
            lambda: storage.loadSerial(ROOT_OID, storage.lastTransaction()),
        ]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for use in uses:
                    with pytest.raises(StorageForkedError, match="Open the storage in the child"):
                        use()
                storage.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(storage.new_oid()) == 8


def test_in_doubt(tmp_path: Path) -> None:
    """A commit whose answer is lost, from a server that does not come back, is in doubt: no loop
    retries it, and afterwards it is there or not, as a whole."""
    doubts = 0
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving,
        objdb.DB(ClientStorage(serving.address)) as direct,
    ):
        make_counter(direct)
        for count in range(0, 120, 4):
            before, tries = value_of(direct), 0
            with Relay(serving.address) as relay:
                db = objdb.DB(ClientStorage(relay.address, call_seconds=1, wait_seconds=0))

                def once(connection: objdb.connection.connection.Connection) -> None:
                    nonlocal tries
                    tries += 1
                    add_one(connection)
                    relay.target = ("127.0.0.1", 1)
                    relay.cut_after("down", count)  # noqa: B023

                try:
                    db.run(once, tries=3)
                    expected = {before + 1}
                except CommitInDoubtError:
                    assert tries == 1
                    doubts += 1
                    expected = {before, before + 1}
                except DisconnectedError:
                    expected = {before}
                db.close()
            time.sleep(0.05)  # what was sent is still carried out
            assert value_of(direct) in expected, count
    assert doubts > 3


def test_a_server_that_comes_back(server: ServerProcess) -> None:
    """After a restart, what changed meanwhile is known, and what did not stays loaded."""
    with objdb.DB(ClientStorage(server.address)) as db:
        with db.transaction() as connection:
            root = connection.root()
            root["one"], root["two"] = objdb.PersistentMapping(n=1), objdb.PersistentMapping(n=1)
        reader = db.open()
        one, two = reader.root()["one"], reader.root()["two"]
        assert (one["n"], two["n"]) == (1, 1)
        server.stop()
        with objdb.DB(server.folder / "data.fs") as direct, direct.transaction() as connection:
            connection.root()["two"]["n"] = 2
        server.start()
        for _ in range(100):
            try:
                reader.sync()
                break
            except DisconnectedError:
                time.sleep(0.05)
        assert (one["n"], two["n"]) == (1, 2)
        reader.close()


def test_oids_after_a_restart(server: ServerProcess) -> None:
    """A server that was started again gives oids anew: nobody goes on with those from before."""
    with ClientStorage(server.address) as one:
        one.new_oid()
        server.stop()
        server.start()
        with ClientStorage(server.address) as other:
            oids = {other.new_oid() for _ in range(100)}
            one.poll()  # sees that the connection is lost
            assert not oids & {one.new_oid() for _ in range(150)}


def test_a_server_that_falls_silent(tmp_path: Path) -> None:
    """A server that does not answer for `call_seconds` is given up."""
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs")}) as serving,
        Relay(serving.address) as relay,
        objdb.DB(ClientStorage(relay.address, call_seconds=0.5)) as db,
    ):
        make_counter(db)
        relay.is_silent = True
        with pytest.raises(DisconnectedError):
            db.storage.loadSerial(b"\0" * 8, db.storage.lastTransaction())
        relay.is_silent = False
        relay.cut()
        assert value_of(db) == 0


def test_a_commit_whose_answer_is_lost_was_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction stored is not taken for current when its client learns late that it is
    committed, and another changed it since."""
    storage = objdb.MappingStorage()
    first = commit(storage, {ROOT_OID: (NO_TID, b"first")})
    call, others = Channel.call, []

    def lost(channel: Channel, name: str, *arguments: Any, **options: Any) -> Any:
        if name != "tpc_finish" or channel is not client._link.channel():
            return call(channel, name, *arguments, **options)
        tid = call(channel, name, *arguments)
        others.append(commit(other, {ROOT_OID: (tid, b"third")}))
        channel.fail(OSError("lost"))
        raise DisconnectedError("lost")

    with (
        Serving({"1": storage}) as serving,
        ClientStorage(serving.address) as client,
        ClientStorage(serving.address) as other,
    ):
        monkeypatch.setattr(Channel, "call", lost)
        commit(client, {ROOT_OID: (first, b"second")})
        assert client.load(ROOT_OID) == (b"third", others[0])


def test_a_backup_to_which_something_was_committed() -> None:
    """A client refuses a server that was restored from a backup, also when it has later
    transactions than the client has seen."""
    before, after = objdb.MappingStorage(), objdb.MappingStorage()
    first = commit(before, {ROOT_OID: (NO_TID, b"first")})
    after.copyTransactionsFrom(before)
    with Serving({"1": before}) as serving, Serving({"1": after}) as restored:
        client = ClientStorage(serving.address)
        commit(client, {ROOT_OID: (first, b"lost")})
        other = ClientStorage(serving.address)
        other._link._addresses = client._link._addresses = [restored.address]
        with ClientStorage(restored.address) as third:
            commit(third, {ROOT_OID: (first, b"second")})
            for each in (client, other):
                each._link.channel().fail(OSError("lost"))
                with pytest.raises(StorageError, match="restored from a backup"):
                    each.poll()
                each.close()


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_server_that_goes_as_a_transaction_ends(
    is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became of a commit is told also where the next view cannot begin, since the server is
    gone: success, or doubt, and no error that lets a loop try it again."""
    wait = Channel.wait

    def leaving(channel: Channel, pending: Pending) -> Any:
        is_commit = pending.taken is not None and "_commit" in pending.taken.__qualname__
        if is_commit and not is_answered:
            pending.taken = None  # the answer is lost
        found = wait(channel, pending)
        if is_commit:
            db.storage._link._addresses = [("127.0.0.1", 1)]
            channel.fail(OSError("lost"))
            if not is_answered:
                raise DisconnectedError("lost")
        return found

    with (
        Serving({"1": objdb.MappingStorage()}) as serving,
        objdb.DB(ClientStorage(serving.address, call_seconds=1, wait_seconds=0)) as db,
    ):
        manager = transaction.TransactionManager()
        root = db.open(transaction_manager=manager).root()
        root["n"] = 1
        monkeypatch.setattr(Channel, "wait", leaving)
        if is_answered:
            manager.commit()
        else:
            with pytest.raises(CommitInDoubtError):
                manager.commit()
            manager.abort()
        with pytest.raises(DisconnectedError):
            manager.begin()
        db.storage._link._addresses = [serving.address]
        manager.begin()
        assert root["n"] == 1
