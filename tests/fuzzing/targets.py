"""What is fuzzed: functions of bytes that must raise nothing that is not expected.

    messages   frames and both codecs: a `ProtocolError`, or a message
    server     a session on a storage: it answers, or cuts the client off; it raises nothing
    client     a client whose server says anything: an error of objdb, or a result

Nothing of it may run code: an audit hook raises where a global is looked up, or something is
imported, compiled, run or written.
"""

from __future__ import annotations

import encodings.raw_unicode_escape  # noqa: F401  pickles of text import it, once
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from objdb.errors import ObjdbError
from objdb.ids import MAX_TID, NO_TID, ROOT_OID
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit
from objdb_zeo.client import ClientStorage
from objdb_zeo.errors import to_wire
from objdb_zeo.limits import Limits
from objdb_zeo.messages import (
    CALL,
    ERROR,
    MSGPACK,
    ONE_WAY,
    PICKLE,
    REPLY,
    Frames,
    Message,
    Msgpack,
    Pickle,
    ProtocolError,
    frame,
)
from objdb_zeo.protocol.calls import Calls
from objdb_zeo.protocol.driver import InThread
from objdb_zeo.protocol.extension import Extension
from objdb_zeo.protocol.served import Served
from objdb_zeo.protocol.session import Session

LIMIT = 1 << 16
_CODEC = Msgpack()
_FORBIDDEN = {
    "pickle.find_class", "import", "exec", "compile", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "os.remove", "os.rename", "shutil.rmtree", "socket.connect",
}
METHODS = sorted(
    [name.removeprefix("call_") for name in dir(Calls) if name.startswith("call_")]
    + [f"objdb.{n.removeprefix('call_')}" for n in dir(Extension) if n.startswith("call_")]
    + ["register", "set_client_label", "storeBlobStart", "sendBlob", "nothing"]
)


class CodeRunError(BaseException):
    """Bytes ran code."""


class Audit:
    """While `is_on`, raises `CodeRunError` where code would be run or a file written."""

    def __init__(self) -> None:
        self.is_on = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        is_writing = event == "open" and isinstance(arguments[1], str) and arguments[1] != "r"
        if event in _FORBIDDEN or is_writing:
            self.is_on = False
            raise CodeRunError(f"{event} {arguments!r}")


class Choices:
    """Numbers, bytes and values made of the bytes of an input."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def number(self, below: int) -> int:
        self._at += 1
        return self._data[self._at - 1] % below if self._at <= len(self._data) else 0

    def bytes(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def value(self, depth: int = 3) -> Any:
        """Return something that messages can carry, often of the kind that calls take."""
        kind = self.number(16)
        if kind < 4:
            return (ROOT_OID, NO_TID, MAX_TID, bytes(7) + bytes([self.number(4)]))[kind]
        if kind < 8:
            return (None, True, "1", b"")[kind - 4]
        if kind == 8:
            return self.number(4)
        if kind == 9:
            return int.from_bytes(self.bytes(8), "big", signed=True)
        if kind == 10:
            return self.bytes(self.number(40))
        if kind == 11:
            return self.bytes(self.number(40)).decode("utf-8", "replace")
        if kind == 12:
            return self.number(256) / 7
        if not depth:
            return None
        parts = [self.value(depth - 1) for _ in range(self.number(5))]
        if kind == 13:
            return {str(number): part for number, part in enumerate(parts)}
        return tuple(parts)


# -- messages


def messages(data: bytes) -> None:
    """Take bytes apart as a peer does, in pieces."""
    pieces = Choices(data)
    codec: Any = Pickle() if pieces.number(2) else Msgpack()
    frames = Frames(LIMIT)
    with suppress(ProtocolError):
        while not pieces.is_over:
            for body in frames.feed(pieces.bytes(1 + pieces.number(64))):
                message = codec.decode(body)
                with suppress(TypeError, ValueError, OverflowError, RecursionError):
                    frame(codec.encode(message))


# -- the server


class Driver:
    """Does at once what may block; forgets what is sent."""

    def send(self, data: bytes) -> None:
        """See `Driver`."""

    send_now = send

    def takes_more(self) -> bool:
        return True

    def close(self) -> None:
        """See `Driver`."""

    def run(self, step: InThread, done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            result, error = step.function(), None
        except Exception as failure:
            result, error = None, failure
        done(result, error)

    def soon(self, function: Callable[[], object]) -> None:
        function()

    def rest(self) -> None:
        """See `Driver`."""

    def later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        return lambda: None


class Server:
    """A storage, and sessions of it, one after the other."""

    def __init__(self) -> None:
        self.storage = MappingStorage()
        commit(self.storage, {ROOT_OID: (NO_TID, b"\x80\x03}.")})
        self.served = Served("1", self.storage, vote_seconds=0.0)
        self.choices = {"1": self.served}

    def __call__(self, data: bytes) -> None:
        """Let a session take in raw bytes, or calls made of them."""
        made = Choices(data)
        driver = Driver()
        session = Session(self.choices, driver, "a client", Limits(frame_bytes=LIMIT))
        if made.number(4):
            session.data_received(frame(MSGPACK))
            session.data_received(_call(1, "register", "1", made.number(8) == 0))
            self._calls(session, made)
        else:
            while not made.is_over:
                session.data_received(made.bytes(1 + made.number(64)))
        session.closed()
        if self.served.sessions or self.served._holder is not None or self.served._waiting:
            raise AssertionError("a client that is gone is still there")

    def _calls(self, session: Session, made: Choices) -> None:
        number = 1
        while not made.is_over and not session.is_closed:
            name = METHODS[made.number(len(METHODS))]
            if name in ("pack", "objdb.pack"):  # would take the storage away from the others
                continue
            arguments = tuple(made.value() for _ in range(made.number(7)))
            is_one_way = made.number(3) == 0 or name in _ONE_WAY
            number += 1
            try:
                body = _CODEC.encode(Message(
                    0 if is_one_way else number, ONE_WAY if is_one_way else CALL, name, arguments
                ))
            except (TypeError, ValueError, OverflowError):
                continue
            if len(body) < LIMIT:
                session.data_received(frame(body))


_ONE_WAY = {"tpc_begin", "storea", "restorea", "deleteObject", "undoa", "objdb.hello"}


def _call(number: int, name: str, *arguments: Any) -> bytes:
    return frame(_CODEC.encode(Message(number, CALL, name, arguments)))


# -- the client


class Wire:
    """A connection to a server that says what it was made with, and then closes it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = deque(pieces)

    def recv(self, size: int) -> bytes:
        return self._pieces.popleft() if self._pieces else b""

    def sendall(self, data: Any) -> None:
        """See `Wire`."""

    def poll(self, milliseconds: float) -> bool:
        return True

    def shut_down(self) -> None:
        """See `Wire`."""

    close = shut_down


class Wires:
    """A network with one connection, and a clock that stands."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise ConnectionRefusedError("there is no time")

    def random(self, size: int) -> bytes:
        return bytes(size)

    def connect(self, address: Any, seconds: float) -> Wire:
        pieces, self._pieces = self._pieces, []
        if not pieces:
            raise ConnectionRefusedError("there is no server")
        return Wire(pieces)


INFO = {
    "length": 1, "size": 100, "name": "data.fs", "supportsUndo": True,
    "supports_record_iternext": True, "interfaces": (("ZODB.interfaces", "IStorageIteration"),),
}
OFFER = {"version": 1, "interfaces": ("IStorageIteration", "IStorageUndoable"), "instance": b"i"}
TOLD = ("invalidateTransaction", "info", "objdb.packed", "objdb.voted", "objdb.ask", "serverStatus")


def client(data: bytes) -> None:
    """Let a client use a server that answers with raw bytes, or with messages made of them."""
    made = Choices(data)
    info = {**INFO, **({"objdb": OFFER} if made.number(2) else {})}
    pieces = [frame(PICKLE if made.number(8) == 7 else MSGPACK)]
    if made.number(8):
        pieces += [reply(1, made.bytes(8).rjust(8, b"\0")), reply(2, info)]
    number = 2
    while not made.is_over:
        if made.number(6) == 0:
            pieces.append(made.bytes(1 + made.number(64)))
            continue
        try:
            if made.number(3) == 0:
                name = TOLD[made.number(len(TOLD))]
                arguments = tuple(made.value() for _ in range(made.number(4)))
                pieces.append(frame(_CODEC.encode(Message(0, ONE_WAY, name, arguments))))
            else:
                number += 1
                pieces.append(reply(number, made.value(), is_error=made.number(4) == 0))
        except (TypeError, ValueError, OverflowError):
            continue
    with suppress(ObjdbError, KeyError, ConnectionRefusedError):
        _use(Wires(pieces))


def reply(number: int, result: Any, *, is_error: bool = False) -> bytes:
    if is_error and not isinstance(result, tuple):
        result = to_wire(KeyError(result))
    return frame(_CODEC.encode(Message(number, ERROR if is_error else CALL, REPLY, result)))


def _use(wires: Wires) -> None:
    storage = ClientStorage(("fuzz", 1), wires=wires, wait_seconds=0)
    uses: list[Callable[[], object]] = [
        storage.poll, lambda: storage.load(ROOT_OID),
        lambda: storage.loadSerial(ROOT_OID, NO_TID), lambda: storage.history(ROOT_OID, 3),
        lambda: storage.undoLog(0, 5), storage.new_oid,
        lambda: [list(each) for each in storage.iterator()],
        lambda: commit(storage, {ROOT_OID: (NO_TID, b"record")}), storage.sync,
        lambda: storage.prefetch([ROOT_OID, MAX_TID], MAX_TID), storage.getSize,
    ]
    for use in uses:
        with suppress(ObjdbError, KeyError):
            use()
    storage.close()


def corpus() -> list[bytes]:
    """Return inputs to begin with: messages of a client and a server, as they are on the wire."""
    tid = bytes(7) + b"\1"
    calls = [
        Message(1, CALL, "register", ("1", False)),
        Message(2, CALL, "get_info", ()),
        Message(3, CALL, "loadBefore", (ROOT_OID, MAX_TID)),
        Message(0, ONE_WAY, "tpc_begin", (1, b"", b"", {}, None, " ")),
        Message(0, ONE_WAY, "storea", (ROOT_OID, tid, b"record", 1)),
        Message(4, CALL, "vote", (1,)),
        Message(5, CALL, "tpc_finish", (1,)),
        Message(6, CALL, "objdb.commit", (2, (b"", b"", b"", None, " "), ((ROOT_OID, tid, b"r"),))),
        Message(0, ONE_WAY, "invalidateTransaction", (tid, (ROOT_OID,))),
        Message(3, CALL, REPLY, (b"record", tid, None)),
        Message(4, ERROR, REPLY, to_wire(KeyError("missing"))),
    ]
    found = [b"\0" + frame(codec.encode(call)) for call in calls for codec in (Msgpack(), Pickle())]
    return [*found, b"\0" + frame(MSGPACK) + b"".join(frame(_CODEC.encode(c)) for c in calls)]
