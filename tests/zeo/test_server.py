"""A server with sockets and threads: who waits for whom, and how it stops."""

from __future__ import annotations

import asyncio
import base64
import stat
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.ids import NO_TID, ROOT_OID, Tid
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit
from objdb.testing.relay import Relay
from objdb_zeo import ClientStorage
from objdb_zeo.limits import Limits
from objdb_zeo.messages import FrameTooLargeError
from objdb_zeo.protocol.questions import AskedInVain, resolver
from objdb_zeo.server import THREADS, Server
from objdb_zeo.transport import Channel, Pending
from tests.zeo.serving import Serving


def connect(serving: Serving) -> Channel:
    channel = Channel(serving.address, lambda method, arguments: None, seconds=30)
    channel.call("register", "1", False)
    channel.send([("objdb.hello", (), None)])
    return channel


def test_commits_go_on_while_others_fall_silent(tmp_path: Path) -> None:
    """Clients that do not answer what they are asked keep nobody from committing."""
    storage = objdb.FileStorage(tmp_path / "data.fs")
    serial: Tid = NO_TID
    tids = []
    for record in (b"one", b"two", b"three"):
        serial = commit(storage, {ROOT_OID: (serial, record)})
        tids.append(serial)
    with Serving({"1": storage}) as serving:
        silent = [connect(serving) for _ in range(2 * THREADS)]
        calls = [Pending() for _ in silent]
        for channel, pending in zip(silent, calls, strict=True):
            undo = "objdb.try_undo", ((base64.b64encode(tids[1]),), ()), pending
            channel.send([undo])
        while not any(pending.questions for pending in calls):  # the others wait for that one
            for channel in silent:
                channel.take_in()
        with ClientStorage(serving.address, call_seconds=20) as client:
            assert commit(client, {ROOT_OID: (serial, b"four")}) > serial
        for channel in silent:
            channel.close()


def test_a_vote_asks_for_so_long_altogether() -> None:
    """The time in which a client answers is that of the vote, not of each question."""
    left = []

    def asks(kind: str, *arguments: Any, seconds: float) -> Any:
        left.append(seconds)
        raise AskedInVain("gone")

    resolve = resolver(asks, 0.0)
    assert resolve is not None
    for _ in range(3):
        with pytest.raises(objdb.errors.ConflictError):
            resolve(ROOT_OID, None, b"one", b"two", (NO_TID, NO_TID))
    assert left == [0.0] * 3


def test_a_finish_under_way_is_answered(tmp_path: Path) -> None:
    """A server that stops lets a finish end, and its client know."""
    storage = MappingStorage()
    finish, has_begun, go_on = storage.tpc_finish, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Tid:
        has_begun.set()
        assert go_on.wait(20)
        return finish(*arguments)

    storage.tpc_finish = slow  # type: ignore[assignment, method-assign]
    serving = Serving({"1": storage}).__enter__()
    found: list[Any] = []

    def work() -> None:
        with ClientStorage(serving.address, wait_seconds=0.1) as client:
            found.append(commit(client, {ROOT_OID: (NO_TID, b"one")}))

    worker = threading.Thread(target=work)
    worker.start()
    assert has_begun.wait(20)
    stopping = threading.Thread(target=serving.__exit__)
    stopping.start()
    server = serving.server
    assert server is not None
    while server._listening[0].is_serving():
        stopping.join(0.01)
    go_on.set()
    worker.join(20)
    stopping.join(20)
    assert len(found) == 1 and found[0] > NO_TID


def test_a_unix_socket_is_its_users(tmp_path: Path) -> None:
    """Nobody else can connect to a Unix socket: there is no authentication."""
    path = tmp_path / "socket"

    async def serve() -> int:
        async with Server({"1": MappingStorage()}, [str(path)]):
            return stat.S_IMODE(path.stat().st_mode)

    assert asyncio.run(serve()) == 0o600
    assert not path.exists()


@pytest.mark.parametrize("server_sync", [False, True])
def test_what_was_acknowledged_is_seen(server_sync: bool) -> None:
    """`sync()`, and each transaction with `server_sync`, sees what was acknowledged to anybody
    before, however late the server's messages are."""
    with (
        Serving({"1": MappingStorage()}) as serving, Relay(serving.address) as relay,
        objdb.DB(ClientStorage(serving.address)) as db,
        objdb.DB(ClientStorage(relay.address, server_sync=server_sync)) as late,
    ):
        connection = late.open()
        relay.delay_seconds = 0.05
        for number in range(3):
            with db.transaction() as writer:
                writer.root()["n"] = number
            if server_sync:
                transaction.begin()
            else:
                connection.sync()
            assert connection.root()["n"] == number
        connection.close()


def test_many_clients_are_told() -> None:
    """Clients that ask nothing are told, however many there are, of all transactions in order; and
    what was announced is forgotten then."""
    with (
        Serving({"1": MappingStorage()}) as serving,
        objdb.DB(ClientStorage(serving.address)) as db, ExitStack() as opened,
    ):
        told: list[list[Tid]] = [[] for _ in range(50)]
        channels = []
        for each in told:
            def note(method: str, arguments: Any, each: list[Tid] = each) -> None:
                if method == "invalidateTransaction":
                    each.append(arguments[0])

            channel = Channel(serving.address, note, seconds=30)
            opened.callback(channel.close)
            channel.call("register", "1", False)
            channels.append(channel)
        tids = []
        for number in range(10):
            with db.transaction() as connection:
                connection.root()["n"] = number
            tids.append(db.lastTransaction())
        for channel, each in zip(channels, told, strict=True):
            while len(each) < len(tids):
                channel.take_in()
        assert all(each == tids for each in told)
        assert serving.server is not None
        served = serving.server.served["1"]
        while served.log:
            channels[0].call("ping")


def test_a_message_that_is_too_large() -> None:
    """What is larger than the server's messages is refused here, with both sizes, and the
    connection goes on; many small objects are sent in several messages."""
    limits = Limits(frame_bytes=20_000)
    with (
        Serving({"1": MappingStorage()}, limits=limits) as serving,
        objdb.DB(ClientStorage(serving.address)) as db,
    ):
        with db.transaction() as connection:
            for number in range(300):
                connection.root()[f"small {number}"] = objdb.PersistentMapping(text="x" * 200)
        channel = db.storage._link.channel()
        with (
            pytest.raises(FrameTooLargeError, match="20,000 bytes at most") as raised,
            db.transaction() as connection,
        ):
            connection.root()["large"] = objdb.PersistentMapping(text="x" * 30_000)
        assert raised.value.limit == 20_000 and raised.value.size > 30_000
        with db.transaction() as connection:
            assert len(connection.root()) == 300
            connection.root()["after"] = 1
        assert db.storage._link.channel() is channel


def test_a_client_that_does_not_resolve_is_cut_off() -> None:
    """A client that is asked about a conflict, and falls silent, is cut off; others commit."""
    storage = MappingStorage()
    old = commit(storage, {ROOT_OID: (NO_TID, b"one")})
    new = commit(storage, {ROOT_OID: (old, b"two")})
    with Serving({"1": storage}, limits=Limits(vote_seconds=0.2)) as serving:
        silent = connect(serving)
        pending = Pending()
        begin = b"", b"", b"", None, " "
        silent.send([("objdb.commit", (1, begin, [(ROOT_OID, old, b"three")]), pending)])
        while silent.failure is None:
            silent.take_in()
        assert pending.questions
        with ClientStorage(serving.address) as client:
            assert commit(client, {ROOT_OID: (new, b"four")}) > new
        silent.close()
