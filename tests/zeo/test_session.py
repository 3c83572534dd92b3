"""The server's side of a connection, by itself: what breaks the protocol, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from objdb.ids import NO_TID, ROOT_OID, oid_from_int
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit
from objdb_zeo.limits import Limits
from objdb_zeo.messages import MSGPACK, Frames, Message, Msgpack, frame
from objdb_zeo.protocol.driver import InThread
from objdb_zeo.protocol.served import Served
from objdb_zeo.protocol.session import Session

CODEC = Msgpack()


class Driver:
    """Does at once what may block, and keeps what is sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self.timers: list[Callable[[], object]] = []

    def send(self, data: bytes) -> None:
        self.sent += data

    send_now = send

    def takes_more(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True

    def run(self, step: InThread, done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            result, error = step.function(), None
        except BaseException as failure:
            result, error = None, failure
        done(result, error)

    def soon(self, function: Callable[[], object]) -> None:
        function()

    def rest(self) -> None:
        raise AssertionError("nothing is announced that is not visible")

    def later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        self.timers.append(function)
        return lambda: self.timers.remove(function) if function in self.timers else None


class Client:
    """What a client would send, and what it gets."""

    def __init__(self, served: dict[str, Served], limit: int = 10_000, **limits: int) -> None:
        self.driver = Driver()
        self.session = Session(
            served, self.driver, "a test", Limits(frame_bytes=limit, **limits)
        )
        self._frames = Frames()
        self._last_id = 0

    def bodies(self) -> list[bytes]:
        data = bytes(self.driver.sent)
        self.driver.sent.clear()
        return list(self._frames.feed(data))

    def messages(self) -> list[Message]:
        return [CODEC.decode(body) for body in self.bodies() if body != MSGPACK]

    def send(self, *arguments: Any, flag: int = 1, id: Any = 0, name: str) -> None:
        self.session.data_received(frame(CODEC.encode(Message(id, flag, name, arguments))))

    def call(self, name: str, *arguments: Any) -> Any:
        self._last_id += 1
        self.send(*arguments, flag=0, id=self._last_id, name=name)
        [reply] = [m for m in self.messages() if m.name == ".reply"]
        assert reply.id == self._last_id
        return reply.arguments if reply.flag == 0 else ("error", *reply.arguments)

    def register(self, **options: Any) -> Client:
        self.session.data_received(frame(MSGPACK))
        self.call("register", "1", options.get("read_only", False))
        return self


@pytest.fixture
def served() -> Iterator[dict[str, Served]]:
    storage = MappingStorage()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    served = Served("1", storage)
    yield {"1": served}
    for session in list(served.sessions):
        session.closed()
    storage.close()


def stage(client: Client, id: Any, oid: bytes, serial: bytes, record: bytes = b"new") -> None:
    """Begin a transaction, and stage a record."""
    client.send(id, b"", b"", {}, None, " ", name="tpc_begin")
    client.send(oid, serial, record, id, name="storea")


@pytest.mark.parametrize("data", [
    frame(b"M4"), frame(b"Z5"), frame(b"GET / HTTP/1.1"), bytes(4), b"\x7f\xff\xff\xff",
    frame(MSGPACK) + frame(b"\xc1"),
    frame(MSGPACK) + frame(CODEC.encode(Message(1, 0, "ping", ()))),
    frame(MSGPACK) + frame(CODEC.encode(Message(1, 0, "tpc_begin", ()))),
])
def test_cut_off_before_register(served: dict[str, Served], data: bytes) -> None:
    """Who does not greet and register as the protocol says is cut off, and registered nowhere."""
    client = Client(served)
    client.session.data_received(data)
    assert client.driver.is_closed and not served["1"].sessions


@pytest.mark.parametrize(("name", "flag", "arguments"), [
    ("nothing", 0, ()), ("__init__", 0, ()), ("closed", 0, ()), ("objdb.nothing", 0, ()),
    ("register", 0, ("1", False)), ("getAuthProtocol", 0, ()), ("ping", 1, ()),
    ("storea", 0, (ROOT_OID, NO_TID, b"x", 1)), ("storea", 1, (ROOT_OID, NO_TID, b"x", 1)),
    ("storea", 1, (1, 2)), (".reply", 0, None), ("tpc_begin", 1, (1,)),
])
def test_cut_off(served: dict[str, Served], name: str, flag: int, arguments: Any) -> None:
    """Unknown calls, one-way calls that fail, and replies to nothing cut a client off."""
    client = Client(served).register()
    message = Message(7 if flag == 0 else 0, flag, name, arguments)
    client.session.data_received(frame(CODEC.encode(message)))
    assert client.driver.is_closed
    client.session.closed()
    assert not served["1"].sessions


def test_status_for_anybody(served: dict[str, Served]) -> None:
    """The frame `ruok` is answered with the status of all storages."""
    client = Client(served)
    client.session.data_received(frame(b"ruok"))
    greeting, status = client.bodies()
    assert greeting == MSGPACK and client.driver.is_closed
    assert json.loads(status)["1"]["connections"] == 0


def test_a_commit_is_told(served: dict[str, Served]) -> None:
    """The committing client gets info and the tid, the others the invalidation, in their order."""
    one, other = Client(served).register(), Client(served).register()
    oid = one.call("new_oids", 1)[0]
    stage(one, "t", oid, NO_TID)
    assert one.call("vote", "t") == ()
    tid = one.call("tpc_finish", "t")
    assert other.messages() == [Message(0, 1, "invalidateTransaction", (tid, (oid,)))]
    assert other.call("loadBefore", oid, b"\x7f" * 8) == (b"new", tid, None)
    assert other.call("getInvalidations", NO_TID) is None
    assert other.call("lastTransaction") == tid


def test_deletions_are_told(served: dict[str, Served]) -> None:
    """Deleted and restored objects are among the invalidated ones, which ZEO's server forgets."""
    one, other = Client(served).register(), Client(served).register()
    serial = one.call("loadBefore", ROOT_OID, b"\x7f" * 8)[1]
    stage(one, 1, oid_from_int(7), NO_TID)
    one.send(ROOT_OID, serial, 1, name="deleteObject")
    one.call("vote", 1)
    one.call("tpc_finish", 1)
    [told] = other.messages()
    assert told.arguments[1] == (ROOT_OID, oid_from_int(7))


def test_conflicts_are_the_clients(served: dict[str, Served]) -> None:
    """Conflicts come as maps; what was staged is kept, and the next one can vote meanwhile."""
    one, other = Client(served).register(), Client(served).register()
    serial = one.call("loadBefore", ROOT_OID, b"\x7f" * 8)[1]
    for client in (one, other):
        stage(client, 1, ROOT_OID, serial)
    one.call("vote", 1)
    tid = one.call("tpc_finish", 1)
    other.messages()
    [conflict] = other.call("vote", 1)
    assert conflict == {"oid": ROOT_OID, "serials": (tid, serial), "data": b"new"}
    stage(one, 2, ROOT_OID, tid, b"newer")
    assert one.call("vote", 2) == ()
    one.call("tpc_abort", 2)
    other.send(ROOT_OID, tid, b"merged", 1, name="storea")
    assert other.call("vote", 1) == ()
    other.call("tpc_finish", 1)
    assert one.call("loadBefore", ROOT_OID, b"\x7f" * 8)[0] == b"merged"


def test_one_votes_at_a_time(served: dict[str, Served]) -> None:
    """A vote waits for the end of the one before; who is gone does not keep the others."""
    clients = [Client(served).register() for _ in range(3)]
    for number, client in enumerate(clients):
        stage(client, 1, oid_from_int(10 + number), NO_TID)
        client.send(1, flag=0, id=9, name="vote")
    assert [len(client.messages()) for client in clients] == [1, 0, 0]
    clients[1].session.closed()
    clients[0].session.closed()
    assert len(clients[2].messages()) == 1
    assert served["1"].storage.lastTransaction() == served["1"].announced
    clients[2].call("tpc_finish", 1)


def test_a_vote_that_is_never_finished(served: dict[str, Served]) -> None:
    """Who votes and falls silent is cut off after the time-out, and the next one votes."""
    silent, other = Client(served).register(), Client(served).register()
    for client in (silent, other):
        stage(client, 1, ROOT_OID, served["1"].storage.lastTransaction())
        client.send(1, flag=0, id=9, name="vote")
    assert not other.messages()
    [time_out] = silent.driver.timers
    time_out()
    assert silent.driver.is_closed
    assert other.messages()[0].name == ".reply"


def test_finished_in_time(served: dict[str, Served]) -> None:
    """A timer ends with its transaction."""
    client = Client(served).register()
    for number, end in enumerate(("tpc_finish", "tpc_abort")):
        stage(client, 1, oid_from_int(9 + number), NO_TID)
        client.call("vote", 1)
        assert len(client.driver.timers) == 1
        client.call(end, 1)
        assert not client.driver.timers


@pytest.mark.parametrize(("name", "arguments", "words"), [
    ("tpc_finish", ("unknown",), "there is no transaction"),
    ("vote", ("unknown",), "there is no transaction"),
    ("loadBefore", (b"\0" * 7 + b"\xbb", b"\x7f" * 8), "POSKeyError"),
    ("loadBefore", (), "TypeError"), ("iterator_next", (77,), "KeyError"),
    ("sendBlob", (ROOT_OID, NO_TID), "has no blobs"), ("undoLog", ("x", 3), "neither a position"),
])
def test_refused(
    served: dict[str, Served], name: str, arguments: tuple[Any, ...], words: str
) -> None:
    """What cannot be done is told as an error; the connection goes on."""
    client = Client(served).register()
    told = client.call(name, *arguments)
    assert told[0] == "error" and words in str(told)
    assert client.call("ping") is None


def test_a_store_after_the_vote(served: dict[str, Served]) -> None:
    """A store after the vote is not left out silently: it cuts the client off."""
    client = Client(served).register()
    stage(client, 1, oid_from_int(9), NO_TID)
    client.call("vote", 1)
    client.send(oid_from_int(10), NO_TID, b"late", 1, name="storea")
    assert client.driver.is_closed


def test_read_only(served: dict[str, Served]) -> None:
    """A client that registered for reading cannot write; a storage that is served for reading
    takes only such clients."""
    client = Client(served).register(read_only=True)
    assert "ReadOnlyError" in str(client.call("new_oids", 1))
    assert client.call("loadBefore", ROOT_OID, b"\x7f" * 8)[0] == b"root"
    closed = {"1": Served("1", served["1"].storage, read_only=True)}
    other = Client(closed)
    other.session.data_received(frame(MSGPACK))
    assert "ReadOnlyError" in str(other.call("register", "1", False))
    assert other.call("register", "1", True) == served["1"].storage.lastTransaction()


def test_unknown_storages(served: dict[str, Served]) -> None:
    """A storage that is not served is told with those that are."""
    client = Client(served)
    client.session.data_received(frame(MSGPACK))
    assert "there are '1'" in str(client.call("register", "main", False))
    assert client.call("register", b"1", 0) == served["1"].announced


def test_iteration(served: dict[str, Served]) -> None:
    """Transactions and records are listed one by one, and forgotten at their end."""
    client = Client(served).register()
    number = client.call("iterator_start", None, None)
    tid, status, _, _, extension = client.call("iterator_next", number)
    assert (status, extension) == (" ", {})
    records = client.call("iterator_record_start", number, tid)
    assert client.call("iterator_record_next", records) == (ROOT_OID, tid, b"root", None)
    assert client.call("iterator_record_next", records) is None
    assert client.call("iterator_next", number) is None
    assert "KeyError" in str(client.call("iterator_next", number))
    client.send((number, 99), name="iterator_gc")
    assert client.call("ping") is None


def test_answers_that_cannot_be_carried(served: dict[str, Served]) -> None:
    """Values of an extension that messages cannot carry come as text, and an answer that cannot be
    sent is an error: neither costs the client its connection."""
    storage = served["1"].storage
    metadata = TransactionMetaData("me", "\u00fc", {
        "when": datetime(2026, 11, 30), "large": 1 << 70, 5: {"bad": "\udc80", "set": {1}},
        "list": [1, (2,)],
    })
    serial = storage.load(ROOT_OID)[1]
    storage.tpc_begin(metadata)
    storage.store(ROOT_OID, serial, b"new", "", metadata)
    storage.tpc_vote(metadata)
    storage.tpc_finish(metadata)
    client = Client(served).register()
    expected = {
        "when": "2026-11-30 00:00:00", "large": str(1 << 70), "list": (1, (2,)),
        "5": {"bad": "\\udc80", "set": "{1}"},
    }
    number = client.call("iterator_start", storage.lastTransaction(), None)
    assert client.call("iterator_next", number)[4] == expected
    for [entry] in (client.call("history", ROOT_OID, 1), client.call("undoLog", 0, 1)):
        assert {name: entry[name] for name in expected} == expected
        assert (entry["user_name"], entry["description"]) == (b"me", "\u00fc".encode())
    client.session.calls.call_getTid = lambda oid: object()  # type: ignore[method-assign]
    assert "cannot be sent" in str(client.call("getTid", ROOT_OID))
    assert client.call("ping") is None


def test_large_frames_before_register(served: dict[str, Served]) -> None:
    """Who has not registered cannot make the server keep a large frame."""
    client = Client(served, limit=1 << 20)
    client.session.data_received(frame(MSGPACK))
    client.session.data_received(b"\x00\x00\x80\x00")
    assert client.driver.is_closed
    client = Client(served, limit=1 << 20).register()
    stage(client, 1, oid_from_int(9), NO_TID, b"x" * 100_000)
    assert client.call("vote", 1) == ()


def test_what_becomes_visible_while_a_load_is_answered(served: dict[str, Served]) -> None:
    """A load that began before a transaction is visible is not answered behind its invalidation,
    whenever it becomes visible."""
    one, other = Client(served).register(), Client(served).register()
    storage, order = served["1"].storage, served["1"].order
    serial = storage.load(ROOT_OID)[1]
    stage(one, "t", ROOT_OID, serial)
    assert one.call("vote", "t") == ()
    show, tids = storage.engine.visibility.show, []

    def publish(token: Any) -> None:
        """Become visible at the first chance that another thread has while a load is answered."""
        tids.append(token.transaction.tid)
        other.driver.rest = lambda: show(tids[0])  # type: ignore[method-assign]
        served["1"].order = Order()  # type: ignore[assignment]
        other.send(ROOT_OID, b"\x7f" * 8, flag=0, id=7, name="loadBefore")

    class Order:
        def __enter__(self) -> None:
            order.acquire()
            show(tids[0])

        def __exit__(self, *exception: object) -> None:
            order.release()

    storage.engine.publish = publish
    tid = one.call("tpc_finish", "t")
    assert other.messages() == [
        Message(0, 1, "invalidateTransaction", (tid, (ROOT_OID,))),
        Message(7, 0, ".reply", (b"new", tid, None)),
    ]


def test_a_commit_whose_client_is_gone_is_told(served: dict[str, Served]) -> None:
    """A client that is gone while its transaction is finished, and was not told of what others
    committed since, keeps nobody from being told of its own."""
    one, other = (Client(served).register() for _ in range(2))
    serial = one.call("getTid", ROOT_OID)
    stage(one, 1, ROOT_OID, serial)
    one.call("vote", 1)
    finishing: list[Callable[[], Any]] = []
    one.driver.run = (  # type: ignore[method-assign]
        lambda step, done: finishing.append(lambda: Driver.run(one.driver, step, done))
    )
    one.send(1, flag=0, id=99, name="tpc_finish")
    one.session.closed()
    told = served["1"]
    told.announce(told.announced, [b"another"], None)
    assert not told.log
    other.messages()
    finishing[0]()
    [message] = other.messages()
    assert message.arguments[1] == (ROOT_OID,)
