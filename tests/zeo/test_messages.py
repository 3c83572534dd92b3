"""Messages and their bytes: those of ZEO, and those that nobody should send."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import pytest

from objdb import errors
from objdb.errors import (
    ConflictError,
    MultipleUndoErrors,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageTransactionError,
    UndoError,
    UsageError,
)
from objdb_zeo.errors import ServerError, from_wire, to_wire
from objdb_zeo.messages import (
    Frames,
    FrameTooLargeError,
    Message,
    Msgpack,
    Pickle,
    ProtocolError,
    codec_for,
    frame,
    plain,
)

Z64, MAXTID = bytes(8), b"\x7f" + b"\xff" * 7
TID = bytes.fromhex("040d52eb2aa8d4aa")
# Bytes exchanged by ZEO's client and server (see docs/formats/zeo.md).
FRAMES: list[tuple[str, Message]] = [
    ("00000010 94 01 c2 a87265676973746572 92 a131 c2",
     Message(1, False, "register", ("1", False))),
    ("00000014 94 01 00 a62e7265706c79 c4080000000000000000", Message(1, 0, ".reply", Z64)),
    ("00000026 94 00 c3 a97470635f626567696e 96 cd3039 c4036a6f65 c40661206e6f7465 81a16ba176 c0 "
     "a120", Message(0, True, "tpc_begin", (12345, b"joe", b"a note", {"k": "v"}, None, " "))),
    ("0000002a 94 00 c3 a673746f726561 94 c4080000000000000000 c4080000000000000000 "
     "c406444154412d30 cd3039", Message(0, True, "storea", (Z64, Z64, b"DATA-0", 12345))),
    ("0000000c 94 08 c2 a4766f7465 91 cd3039", Message(8, False, "vote", (12345,))),
    ("0000000b 94 08 00 a62e7265706c79 90", Message(8, 0, ".reply", ())),
    ("00000012 94 09 c2 aa7470635f66696e697368 91 cd3039",
     Message(9, False, "tpc_finish", (12345,))),
    ("00000018 94 00 c3 a4696e666f 91 82 a66c656e677468 01 a473697a65 73",
     Message(0, True, "info", ({"length": 1, "size": 115},))),
    ("00000014 94 09 00 a62e7265706c79 c408040d52eb2aa8d4aa", Message(9, 0, ".reply", TID)),
    ("0000002f 94 00 c3 b5696e76616c69646174655472616e73616374696f6e 92 c408040d52eb2aa8d4aa 91 "
     "c4080000000000000000", Message(0, True, "invalidateTransaction", (TID, (Z64,)))),
    ("00000037 94 92c4080000000000000000c4087fffffffffffffff c2 aa6c6f61644265666f7265 92 "
     "c4080000000000000000 c4087fffffffffffffff",
     Message((Z64, MAXTID), False, "loadBefore", (Z64, MAXTID))),
    ("00000034 94 07 02 a62e7265706c79 92 "
     "bd5a4f44422e504f53457863657074696f6e2e504f534b65794572726f72 91 c4080000000000000063",
     Message(7, 2, ".reply", ("ZODB.POSException.POSKeyError", (b"\0" * 7 + b"c",)))),
    ("0000000b 94 ff 00 a62e7265706c79 c0", Message(-1, 0, ".reply", None)),
]
PICKLES: list[tuple[str, Message]] = [
    ("0000001e 80 03 28 4b01 89 58080000007265676973746572 5801000000 31 4b00 86 74 2e",
     Message(1, False, "register", ("1", 0))),
    ("0000001e 80 03 28 4b01 4b00 58060000002e7265706c79 43080000000000000000 74 2e",
     Message(1, 0, ".reply", Z64)),
]


def body_of(text: str) -> bytes:
    data = bytes.fromhex(text)
    [body] = Frames().feed(data)
    assert frame(body) == data
    return body


@pytest.mark.parametrize(("text", "message"), FRAMES, ids=lambda value: str(value)[:30])
def test_frames_of_zeo(text: str, message: Message) -> None:
    """Frames of ZEO are read, and made byte for byte."""
    codec = Msgpack()
    assert codec.decode(body_of(text)) == message
    assert codec.encode(message) == body_of(text)


@pytest.mark.parametrize(("text", "message"), PICKLES, ids=lambda value: str(value)[:30])
def test_pickles_of_zeo(text: str, message: Message) -> None:
    """Pickles of ZEO are read, and what is made is read again."""
    codec = Pickle()
    assert codec.decode(body_of(text)) == message
    assert codec.decode(codec.encode(message)) == message


def test_frames_in_pieces() -> None:
    """Frames come in any pieces, and several at once."""
    data = b"".join(bytes.fromhex(text) for text, _ in FRAMES)
    for size in (1, 3, 7, 100, len(data)):
        frames, codec, found = Frames(), Msgpack(), []
        for at in range(0, len(data), size):
            found += map(codec.decode, frames.feed(data[at : at + size]))
        assert found == [message for _, message in FRAMES] and len(frames) == 0


def test_a_frame_that_is_too_large() -> None:
    """A frame above the limit is refused by what it announces, before it comes."""
    frames = Frames(limit=1000)
    with pytest.raises(FrameTooLargeError) as caught:
        list(frames.feed((1001).to_bytes(4, "big")))
    assert (caught.value.size, caught.value.limit) == (1001, 1000)
    with pytest.raises(ProtocolError, match="empty"):
        list(Frames().feed(bytes(4)))


@pytest.mark.parametrize("greeting", [b"M4", b"M6", b"Z309", b"M5 ", b"", b"HTTP/1.1", b"\x16\x03"])
def test_other_greetings(greeting: bytes) -> None:
    """A greeting of another protocol is refused by name."""
    with pytest.raises(ProtocolError, match="not protocol 5 of ZEO"):
        codec_for(greeting)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


HOSTILE = [
    pickle.dumps(Evil(), 3), pickle.dumps((1, 0, "x", Evil()), 3),
    pickle.dumps((1, 0, "x", (set(),)), 3), b"cos\nsystem\n(S'false'\ntR.",
    b"\x80\x03cbuiltins\neval\n.", b"\x80\x04\x95", b"", b"\xc1", b"\x94", b"\x80\x03P1\n.",
    b"garbage" * 100, b"\xdd\xff\xff\xff\xff", b"\x80\x03N.", b"\x93\x01\x02\x03", b"\x81\x01\x02",
    pickle.dumps((1, 0, 1, ())), pickle.dumps((1.5, 0, "x", ())), pickle.dumps((None, 0, "x", ())),
    pickle.dumps((1, "0", "x", ())), pickle.dumps((1, 0, "x")),
]


@pytest.mark.parametrize("codec", [Msgpack(), Pickle()], ids=["msgpack", "pickle"])
@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:12]))
def test_hostile_bodies(codec: Msgpack | Pickle, body: bytes) -> None:
    """Bytes that are no message are an error, and run nothing."""
    events: list[str] = []
    is_watching = True

    def watch(event: str, _: Any) -> None:
        if is_watching and event in ("import", "exec", "compile", "os.system", "subprocess.Popen",
                                     "pickle.find_class"):
            events.append(event)

    sys.addaudithook(watch)
    try:
        with pytest.raises(ProtocolError):
            codec.decode(body)
    finally:
        is_watching = False
    assert set(events) <= {"pickle.find_class"}


@pytest.mark.parametrize("value", [Evil(), {1}, Evil, bytearray(b"x"), os.system])
@pytest.mark.parametrize("codec", [Msgpack(), Pickle()], ids=["msgpack", "pickle"])
def test_values_that_are_not_plain(codec: Msgpack | Pickle, value: Any) -> None:
    """What the other end would refuse is not sent; `plain` makes text of it."""
    if not (isinstance(codec, Msgpack) and isinstance(value, bytearray)):
        with pytest.raises(TypeError):
            codec.encode(Message(1, 0, "x", (value,)))
    message = Message(1, 0, "x", plain((value, {5: value}, [value, 1 << 64, -1 << 63, "\ud800"])))
    text = str(value)
    expected = (text, {"5": text}, [text, str(1 << 64), -1 << 63, "\\ud800"])
    assert message.arguments == expected
    assert str(codec.decode(codec.encode(message)).arguments) in (
        str(expected), str((*expected[:2], tuple(expected[2])))
    )


@pytest.mark.parametrize("entry", [
    b"r\xff\xff\xff\x7f", b"p2147483647\n", b"r\x00\x00\x00\x10"
])
def test_a_pickle_that_fills_memory(entry: bytes) -> None:
    """A few bytes cannot make the memo of an unpickler large."""
    with pytest.raises(ProtocolError, match="memo"):
        Pickle().decode(b"\x80\x03K\x01" + entry + b"K\x00X\x01\x00\x00\x00xNt.")


OID, SERIALS = b"\0" * 7 + b"\7", (TID, Z64)


@pytest.mark.parametrize("error", [
    ConflictError(oid=OID, serials=SERIALS, class_name="a.B"),
    ReadConflictError(oid=OID, serials=SERIALS),
    UndoError("it cannot be undone", oid=OID, tid=TID, reason="because"),
    MultipleUndoErrors("none of them", tid=TID, reasons=((OID, "one"), (Z64, "two"))),
    UsageError("that is no number"), errors.PackError("one at a time"),
    errors.RecordTooLargeError("too large", oid=OID, size=9, limit=8),
], ids=lambda error: type(error).__name__)
def test_errors_of_ours(error: ObjdbError) -> None:
    """Errors come out as they went in, with their facts; also through both codecs."""
    for codec in (Msgpack(), Pickle()):
        wire = codec.decode(codec.encode(Message(1, 2, ".reply", to_wire(error)))).arguments
        found = from_wire(wire, "the server")
        assert type(found) is type(error) and str(found) == str(error)
        facts = {name: value for name, value in vars(error).items() if value}
        assert {name: vars(found)[name] for name in facts} == facts


def test_errors_of_zeo() -> None:
    """Errors of ZEO's servers become those that mean the same."""
    posix = "ZODB.POSException."
    found = from_wire((posix + "POSKeyError", (OID,)), "zeo://there")
    assert isinstance(found, POSKeyError) and found.oid == OID and found.database == "zeo://there"
    found = from_wire(
        (posix + "ConflictError", {"message": "m", "oid": OID, "class_name": ".",
                                   "serials": SERIALS}), "there"
    )
    assert type(found) is ConflictError and found.serials == SERIALS
    found = from_wire((posix + "UndoError", {"_reason": "because", "_oid": OID}), "there")
    assert isinstance(found, UndoError) and found.reason == "because"
    found = from_wire((posix + "MultipleUndoErrors", {
        "_errs": ((OID, (posix + "UndoError", {"_reason": "one", "_oid": OID})),),
        "_reason": "Multiple errors", "_oid": None,
    }), "there")
    assert isinstance(found, MultipleUndoErrors) and found.reasons == ((OID, "one"),)
    assert isinstance(from_wire((posix + "ReadOnlyError", ()), "there"), ReadOnlyError)
    found = from_wire((posix + "StorageTransactionError", ("no such",)), "there")
    assert isinstance(found, StorageTransactionError) and "no such" in str(found)
    assert isinstance(from_wire(("builtins.ValueError", ("x",)), "there"), ValueError)
    for strange in (None, (), ("a",), ("os.system", ("false",)), ("x.Y", 7), (1, {"message": 2})):
        assert isinstance(from_wire(strange, "there"), ServerError)
    hostile = ("x", {"objdb": ("ObjdbError.__init__", "m", {})})
    assert isinstance(from_wire(hostile, "there"), ServerError)
