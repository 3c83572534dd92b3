"""A client whose server answers with something else: a named error, and nothing is taken in."""

from __future__ import annotations

from typing import Any

import pytest

import objdb
from objdb.ids import MAX_TID, NO_TID, ROOT_OID
from objdb.testing.helpers import commit
from objdb_zeo import ClientStorage
from objdb_zeo.messages import MSGPACK, ONE_WAY, Message, Msgpack, ProtocolError, frame
from objdb_zeo.protocol import extension
from tests.fuzzing.targets import INFO, OFFER, Wires, reply
from tests.zeo.serving import Serving

TID = bytes(7) + b"\1"


def client(*answers: Any, info: Any = INFO, register: Any = TID) -> ClientStorage:
    """Return a client of a server that answers so, whatever it is asked."""
    pieces = [frame(MSGPACK), reply(1, register), reply(2, info)]
    pieces += [
        answer if isinstance(answer, bytes) else reply(number, answer[0])
        for number, answer in enumerate(answers, 3)
    ]
    return ClientStorage(("server", 1), wires=Wires(pieces), wait_seconds=0)


@pytest.mark.parametrize("register", [None, b"short", b"\xff" * 8, ("1",), 7])
def test_register(register: Any) -> None:
    """An answer to the first call that is no tid is that of no ZEO server."""
    with pytest.raises(ProtocolError, match=r"server:1 is no ZEO server.*register"):
        client(register=register)


@pytest.mark.parametrize("info", [None, (), {"length": "many"}, {"objdb": 7}, {"interfaces": (1,)}])
def test_info(info: Any) -> None:
    """So is one that says in other words what it can do."""
    with pytest.raises(ProtocolError, match="get_info"):
        client(info=info)


@pytest.mark.parametrize(
    "found", [7, b"record", (b"record",), (b"record", TID, 7), ("x", TID, None)]
)
def test_loads(found: Any) -> None:
    """A load that is answered with something else raises what it was, and leaves nothing cached."""
    storage = client((found,))
    with pytest.raises(ProtocolError, match="loadBefore"):
        storage.load(ROOT_OID)
    assert storage._link.cache.load(ROOT_OID, MAX_TID) is None


@pytest.mark.parametrize(("name", "arguments"), [
    ("invalidateTransaction", ()), ("invalidateTransaction", (TID, 7)),
    ("invalidateTransaction", (TID, (b"oid",))), ("info", ({},)), ("objdb.ask", (1,)),
    ("objdb.voted", ({}, TID)),
])
def test_what_it_says_by_itself(name: str, arguments: Any) -> None:
    """What it says by itself is looked at in the same way."""
    storage = client(frame(Msgpack().encode(Message(0, ONE_WAY, name, arguments))))
    with pytest.raises(objdb.errors.StorageError) as raised:
        storage.load(ROOT_OID)
    assert name in str(raised.value)
    assert storage.lastTransaction() == TID


def test_a_question() -> None:
    """So is what it asks."""
    question = Message(0, ONE_WAY, "objdb.ask", (3, 1, "resolve", (b"oid",)))
    storage = client(frame(Msgpack().encode(question)))
    with pytest.raises(objdb.errors.StorageError, match="for resolve"):
        storage.load(ROOT_OID)


def test_an_iteration_that_does_not_end() -> None:
    """A server that lists the same transactions again and again is noticed."""
    again = (((), TID),)
    storage = client(again, again, again, info={**INFO, "objdb": OFFER})
    with pytest.raises(ProtocolError, match="lists transactions again"):
        list(storage.iterator())


def test_a_later_extension(monkeypatch: pytest.MonkeyPatch, sent: list[str]) -> None:
    """With a server of a later version of the extension, the client uses ZEO's calls."""
    monkeypatch.setattr(extension, "VERSION", 2)
    with (
        Serving({"1": objdb.MappingStorage()}) as serving,
        ClientStorage(serving.address) as storage,
    ):
        tid = commit(storage, {ROOT_OID: (NO_TID, b"record")})
        assert storage.load(ROOT_OID) == (b"record", tid)
        assert not [name for name in sent if name.startswith("objdb.")]
