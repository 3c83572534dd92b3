"""Commits in one message: when they are made, and what becomes of one whose answer is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.errors import ConflictError
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit
from objdb.testing.relay import Relay
from objdb_zeo import ClientStorage
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.protocol import outcomes
from objdb_zeo.protocol.outcomes import Outcomes
from objdb_zeo.transport import Channel, DisconnectedError
from tests.zeo.serving import Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A server of a file."""
    with Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving:
        yield serving


def test_one_message(serving: Serving, sent: list[str]) -> None:
    """A transaction in which nobody else takes part is committed by one message."""
    with objdb.DB(ClientStorage(serving.address)) as db, db.transaction() as connection:
        connection.root()["one"] = 1
        sent.clear()
    assert sent == ["objdb.commit"]


def test_two_participants(serving: Serving, sent: list[str]) -> None:
    """Where another data manager takes part, the vote commits nothing: its own may fail."""

    class Refusing:
        """A data manager that votes last, and against it."""

        transaction_manager = None
        abort = tpc_begin = commit = tpc_abort = tpc_finish = lambda self, txn: None

        def tpc_vote(self, txn: Any) -> None:
            raise RuntimeError("no")

        def sortKey(self) -> str:
            return "~"

    with objdb.DB(ClientStorage(serving.address)) as db:
        before = db.lastTransaction()
        connection = db.open()
        connection.root()["one"] = 1
        transaction.get().join(Refusing())
        sent.clear()
        with pytest.raises(RuntimeError):
            transaction.commit()
        transaction.abort()
        assert "objdb.vote" in sent and "objdb.commit" not in sent
        connection.close()
        assert db.storage.poll() is None and db.lastTransaction() == before


def test_two_connections_of_a_database(serving: Serving, sent: list[str]) -> None:
    """Two connections of one database are one participant; both see what they have committed."""
    with objdb.DB(ClientStorage(serving.address)) as db:
        with db.transaction() as connection:
            connection.root()["one"] = objdb.PersistentMapping(n=0)
            connection.root()["two"] = objdb.PersistentMapping(n=0)
        one, two = db.open(), db.open()
        one.root()["one"]["n"], two.root()["two"]["n"] = 1, 2
        sent.clear()
        transaction.commit()
        assert [name for name in sent if "commit" in name] == ["objdb.commit"]
        for connection in (one, two):
            root = connection.root()
            assert (root["one"]["n"], root["two"]["n"]) == (1, 2)
            connection.close()


def test_a_conflict_is_resolved(serving: Serving) -> None:
    """A conflict that the class resolves is resolved here, and committed by the next message; one
    that it does not is raised, and nothing is committed."""
    with objdb.DB(ClientStorage(serving.address)) as db:
        from BTrees.Length import Length

        with db.transaction() as connection:
            connection.root()["length"] = Length()
            connection.root()["plain"] = objdb.PersistentMapping(n=0)
        managers = [transaction.TransactionManager() for _ in range(2)]
        one, two = (db.open(transaction_manager=manager) for manager in managers)
        two.root()["length"].change(10)
        one.root()["length"].change(1)
        for manager in managers:
            manager.commit()
        two.sync()
        assert two.root()["length"]() == 11
        two.root()["plain"]["n"], one.root()["plain"]["n"] = 2, 1
        managers[0].commit()
        with pytest.raises(ConflictError):
            managers[1].commit()
        managers[1].abort()
        assert two.root()["plain"]["n"] == 1
        one.close()
        two.close()


def test_what_was_undone_is_seen(serving: Serving) -> None:
    """The oids that an undo changed are told to the connections, as with a vote of its own."""
    with objdb.DB(ClientStorage(serving.address)) as db:
        for number in range(2):
            with db.transaction() as connection:
                connection.root()["n"] = number
        reader = db.open(transaction_manager=transaction.TransactionManager())
        assert reader.root()["n"] == 1
        db.undo(db.undoLog(0, 1)[0]["id"])
        transaction.commit()
        reader.sync()
        assert reader.root()["n"] == 0
        reader.close()


def test_an_interrupted_commit(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that is interrupted behind its answer is made: the connection whose commit it was
    has nothing older, and goes on."""
    with objdb.DB(ClientStorage(serving.address)) as db:
        with db.transaction() as connection:
            connection.root()["n"] = 0
        connection = db.open()
        connection.root()["n"] = 1
        vote = ClientStorage.tpc_vote

        def interrupted(self: ClientStorage, txn: Any) -> Any:
            vote(self, txn)
            raise KeyboardInterrupt

        monkeypatch.setattr(ClientStorage, "tpc_vote", interrupted)
        with pytest.raises(KeyboardInterrupt):
            transaction.commit()
        monkeypatch.undo()
        transaction.abort()
        assert connection.root()["n"] == 1
        connection.root()["n"] = 2
        transaction.commit()
        connection.close()


def test_an_answer_that_comes_late(tmp_path: Path) -> None:
    """A commit whose caller was interrupted while it waited may still be made: when the answer
    comes, the connection whose commit it was is told, too."""
    storage = objdb.FileStorage(tmp_path / "data.fs", durability="os")
    with Serving({"1": storage}) as serving, objdb.DB(ClientStorage(serving.address)) as db:
        with db.transaction() as connection:
            connection.root()["n"] = 0
        finish, go_on = storage.tpc_finish, threading.Event()
        wait = Channel.wait

        def slow(metadata: Any, callback: Any) -> Tid:
            tid = finish(metadata, callback)
            metadata.later.append(lambda: go_on.wait(20))
            return tid

        def interrupted(self: Channel, pending: Any) -> Any:
            if pending.taken is not None and "_commit" in pending.taken.__qualname__:
                while not db.storage._link.voting[max(db.storage._link.voting)]:
                    self.take_in()  # until it has voted
                raise KeyboardInterrupt
            return wait(self, pending)

        connection = db.open()
        connection.root()["n"] = 1
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(storage, "tpc_finish", slow)
            patched.setattr(Channel, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                transaction.commit()
        transaction.abort()
        assert connection.root()["n"] == 0
        before = db.lastTransaction()
        go_on.set()
        while db.lastTransaction() == before:
            db.storage.poll()
        transaction.begin()
        assert connection.root()["n"] == 1
        connection.close()


class Participant:
    """What a database tells the storage of a commit."""

    def __init__(self, oid: Oid, serial: Tid, record: bytes) -> None:
        self.metadata = TransactionMetaData()
        self.metadata.committed = self.told
        self.tid: Tid | None = None
        self._stored = oid, serial, record

    def told(self, tid: Tid, made: list[Oid]) -> None:
        self.tid = tid

    def vote(self, storage: Any) -> None:
        storage.tpc_begin(self.metadata)
        oid, serial, record = self._stored
        storage.store(oid, serial, record, "", self.metadata)
        storage.tpc_vote(self.metadata)


def test_what_a_storage_is_told(serving: Serving) -> None:
    """The vote commits, and tells it; `tpc_finish` returns the tid, and tells nothing more."""
    with ClientStorage(serving.address) as storage:
        one = Participant(ROOT_OID, NO_TID, b"one")
        one.vote(storage)
        assert one.tid == storage.lastTransaction() == storage.getTid(ROOT_OID)

        def never(tid: Tid) -> None:
            raise AssertionError("it is told already")

        assert storage.tpc_finish(one.metadata, never) == one.tid


class Losing:
    """A commit through a relay of which the answer is lost: `then` happens between the message that
    tells its tid and the answer, which does not arrive."""

    def __init__(
        self, path: Path, *, knows_tid: bool, kind: Callable[[Path], Any] = objdb.FileStorage
    ) -> None:
        self.path = path
        self.storage = kind(path)
        self.serving = Serving({"1": self.storage}).__enter__()
        self.relay = Relay(self.serving.address).__enter__()
        with ClientStorage(self.serving.address) as direct:
            self.serial = commit(direct, {ROOT_OID: (NO_TID, b"root")})
        self.client = ClientStorage(self.relay.address, wait_seconds=20, call_seconds=20)
        self._knows_tid = knows_tid
        self._told = self.client._link._told
        assert self.client._link._open is not None
        self.client._link._open._told = self._lose
        self._finish, self._go_on = self.storage.tpc_finish, threading.Event()
        self.storage.tpc_finish = self._slow

    def _slow(self, metadata: Any, callback: Any) -> Tid:
        tid: Tid = self._finish(metadata, callback)
        metadata.later.append(lambda: self._go_on.wait(20))
        return tid

    def _lose(self, method: str, arguments: Any) -> None:
        if method != "objdb.voted" or self._knows_tid:
            self._told(method, arguments)
        if method == "objdb.voted":
            self.relay.is_silent = True
            self._go_on.set()
            self.serving.server.served["1"].wait_for_finishes()  # type: ignore[union-attr]
            self.then()
            self.relay.is_silent = False
            self.relay.cut()

    def then(self) -> None:
        """Do nothing."""

    def start_again(self) -> None:
        """Let another server take the place of this one."""
        self.serving.__exit__()
        self.serving = Serving({"1": objdb.FileStorage(self.path)}).__enter__()
        self.relay.target = self.serving.address

    def close(self) -> None:
        self.client.close()
        self.relay.__exit__()
        self.serving.__exit__()


@pytest.mark.parametrize("is_started_again", [False, True])
def test_an_answer_that_is_lost(tmp_path: Path, is_started_again: bool) -> None:
    """A commit whose answer is lost is found by its name at the same server, by its tid at one that
    was started again."""
    losing = Losing(tmp_path / "data.fs", knows_tid=is_started_again)
    if is_started_again:
        losing.then = losing.start_again  # type: ignore[method-assign]
    one = Participant(ROOT_OID, losing.serial, b"one")
    one.vote(losing.client)
    assert one.tid == losing.client.lastTransaction() > losing.serial
    with ClientStorage(losing.serving.address) as direct:
        assert direct.load(ROOT_OID) == (b"one", one.tid)
    losing.close()


def test_a_merged_record_is_known_again(tmp_path: Path) -> None:
    """A commit whose conflict was resolved meanwhile, and whose answer is lost with its server, is
    known by what came of the conflict."""

    class Database:
        """Merges, and is told."""

        invalidate = invalidateCache = lambda self, *arguments: None

        def resolve(self, oid: Oid, *arguments: Any) -> bytes:
            return b"merged"

    losing = Losing(tmp_path / "data.fs", knows_tid=True)
    losing.then = losing.start_again  # type: ignore[method-assign]
    losing._go_on.set()
    with ClientStorage(losing.serving.address) as direct:
        serial = commit(direct, {ROOT_OID: (losing.serial, b"other")})
    losing._go_on.clear()
    losing.client._link.db = Database()
    one = Participant(ROOT_OID, losing.serial, b"one")
    one.vote(losing.client)
    with ClientStorage(losing.serving.address) as direct:
        assert direct.load(ROOT_OID) == (b"merged", one.tid) and one.tid > serial
    losing.close()


def test_another_server_of_the_file(tmp_path: Path) -> None:
    """Another server that was there before does not know what this one has committed: it looks for
    the tid."""
    losing = Losing(tmp_path / "data.sqlite", knows_tid=True, kind=objdb.SQLiteStorage)
    with Serving({"1": objdb.SQLiteStorage(tmp_path / "data.sqlite")}) as other:
        losing.then = lambda: setattr(  # type: ignore[method-assign]
            losing.relay, "target", other.address
        )
        one = Participant(ROOT_OID, losing.serial, b"one")
        one.vote(losing.client)
        assert one.tid == losing.client.lastTransaction() > losing.serial
        losing.close()


def test_one_that_looks_the_same(tmp_path: Path) -> None:
    """Where neither name nor tid is known, what looks the same may be another client's: the commit
    is in doubt, and the error names it."""
    losing = Losing(tmp_path / "data.fs", knows_tid=False)
    losing.then = losing.start_again  # type: ignore[method-assign]
    one = Participant(ROOT_OID, losing.serial, b"one")
    with pytest.raises(CommitInDoubtError) as raised:
        one.vote(losing.client)
    with ClientStorage(losing.serving.address) as direct:
        assert direct.getTid(ROOT_OID).hex() in str(raised.value)
    losing.close()


def test_what_comes_late_is_not_carried_out(serving: Serving) -> None:
    """When a client has connected again, its old connection is cut off: what was on its way there
    is dropped, so that the outcome that it was told stays true."""

    def connect() -> Channel:
        channel = Channel(serving.address, lambda method, arguments: None, seconds=20)
        channel.call("register", "1", False)
        channel.send([("objdb.hello", (b"the client's key",), None)])
        channel.call("ping")
        return channel

    old = connect()
    new = connect()
    assert new.call("objdb.outcome", 7)[0] is None
    begin = b"", b"", b"", None, " "
    with pytest.raises(DisconnectedError):
        old.call("objdb.commit", 7, begin, [(ROOT_OID, NO_TID, b"late")])
    new.call("objdb.commit", 8, begin, [(ROOT_OID, NO_TID, b"root")])
    assert new.call("objdb.outcome", 8)[0] == new.call("getTid", ROOT_OID)
    assert new.call("objdb.outcome", 7)[0] is None
    for channel in (old, new):
        channel.close()


def test_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many commits the outcome is known; of those before, and once the storage has failed, of
    none."""
    monkeypatch.setattr(outcomes, "REMEMBERED", 3)
    found = Outcomes(NO_TID)
    tids = [bytes(7) + bytes([number]) for number in range(1, 6)]
    for name, tid in enumerate(tids):
        found.note(name, tid)
    assert found.find(4) == (tids[4], tids[1]) and found.find(1) == (None, tids[1])
    found.give_up()
    assert found.find("unknown")[1] > tids[4]
