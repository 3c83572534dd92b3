"""Messages of ZEO's protocol 5, and their bytes.

    length (4 bytes, big-endian) · body: an array (id, flag, name, arguments)

                     id                     flag    name      fourth
    call             chosen by the caller   0       method    arguments
    one-way call     0                      1       method    arguments
    reply            that of the call       0       .reply    result
    error            that of the call       2       .reply    (class name, attributes or arguments)
    keep-alive       -1                     any     any       any

The server's first frame is its greeting: a letter, `M` for bodies in msgpack or `Z` for pickles,
and the version of the protocol. The client's first frame repeats it.

Nothing that is read here runs code. Pickles may name no global: values are None, booleans, numbers,
text, bytes, tuples, lists and dicts. See docs/formats/zeo.md.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from objdb.errors import StorageError, Unsupported

VERSION = b"5"
MSGPACK, PICKLE = b"M" + VERSION, b"Z" + VERSION
STATUS_QUESTION = b"ruok"  # instead of a greeting
REPLY = ".reply"
KEEP_ALIVE = -1
CALL, ONE_WAY, ERROR = 0, 1, 2
MAX_FRAME_BYTES = 256 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_HALF = 1 << 63  # of the numbers that msgpack has


class ProtocolError(StorageError):
    """The other end does not keep to the protocol."""


class FrameTooLargeError(ProtocolError):
    """A frame above the limit. `size` and `limit`: in bytes."""

    facts = {"size": 0, "limit": 0}


class Message(NamedTuple):
    """A message; see the table above."""

    id: Any
    flag: int
    name: str
    arguments: Any


def frame(body: bytes) -> bytes:
    """Return the frame with a body."""
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Splits what arrives into the bodies of frames. *limit*: of a body, in bytes."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self.limit = limit
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in what has arrived; yield the bodies that are complete. Raises
        `FrameTooLargeError` as soon as a frame says that it is too large, and `ProtocolError` for
        an empty one."""
        self._data += data
        at = 0
        try:
            while len(self._data) - at >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._data, at)
                self._require_size(size)
                end = at + _LENGTH.size + size
                if len(self._data) < end:
                    return
                body = bytes(self._data[at + _LENGTH.size : end])
                at = end
                yield body
        finally:
            del self._data[:at]

    def _require_size(self, size: int) -> None:
        if size > self.limit:
            raise FrameTooLargeError(
                f"a frame of {size} bytes was announced; the limit is {self.limit}. Store the data "
                "in smaller objects, or raise the limit on both ends", size=size, limit=self.limit,
            )
        if not size:
            raise ProtocolError("an empty frame arrived, which the protocol does not have")


def plain(value: Any) -> Any:
    """Return a value as messages can carry it: parts that they cannot carry become text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {
            key if isinstance(key, bytes) else plain(str(key)): plain(each)
            for key, each in value.items()
        }
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, list):
        return list(map(plain, value))
    if isinstance(value, int):
        return value if -_HALF <= value < 2 * _HALF else str(value)
    return value if value is None or isinstance(value, (bytes, float)) else plain(str(value))


def as_bytes(text: Any) -> bytes:
    """Return a text, or nothing, as UTF-8 bytes; bytes as they are."""
    return text.encode() if isinstance(text, str) else bytes(text or b"")


class Msgpack:
    """Bodies in msgpack. `Unsupported` without the package."""

    greeting = MSGPACK

    def __init__(self) -> None:
        try:
            import msgpack
        except ImportError as error:
            raise Unsupported(
                "talking msgpack needs the package msgpack, which is not installed. Install it "
                "with: pip install 'objdb[zeo]'"
            ) from error
        self._pack = msgpack.Packer(use_bin_type=True).pack
        self._unpack = msgpack.unpackb

    def encode(self, message: Message) -> bytes:
        """Return the body of a message. TypeError or ValueError for a value that it cannot be made
        of."""
        body: bytes = self._pack(tuple(message))
        return body

    def decode(self, body: bytes) -> Message:
        """Return the message in a body; `ProtocolError` if there is none."""
        try:
            found = self._unpack(body, raw=False, use_list=False, strict_map_key=True)
        except Exception as error:
            raise ProtocolError(f"{len(body)} bytes are not a message: {error!r}") from error
        return _message(found)


class Pickle:
    """Bodies in pickles of protocol 3, which may name no global."""

    greeting = PICKLE

    def encode(self, message: Message) -> bytes:
        """Return the body of a message. TypeError for a value that it cannot be made of."""
        file = io.BytesIO()
        pickler = _PlainPickler(file, 3)
        pickler.fast = True  # without memo
        pickler.dump(tuple(message))
        return file.getvalue()

    def decode(self, body: bytes) -> Message:
        """Return the message in a body; `ProtocolError` if there is none."""
        try:
            _require_small_memo(body)
            found = _PlainUnpickler(io.BytesIO(body)).load()
        except Exception as error:
            raise ProtocolError(f"{len(body)} bytes are not a message: {error!r}") from error
        return _message(found)


def _require_small_memo(body: bytes) -> None:
    """Refuse a pickle that fills memory: the memo is as long as the largest number in it."""
    for opcode, argument, _ in pickletools.genops(body):
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(body):
            raise pickle.UnpicklingError(f"its memo has an entry {argument}")


class _PlainPickler(pickle.Pickler):
    """Writes pickles that name no global."""

    def reducer_override(self, value: Any) -> NoReturn:
        """Refuse."""
        raise TypeError(f"messages cannot carry {type(value).__name__!r} objects")


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles that name no global, so that none is imported or called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, and messages name no global")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError("it refers to a persistent object")


Codec = Msgpack | Pickle


def codec_for(greeting: bytes) -> Codec:
    """Return the codec that a greeting names. `ProtocolError` for any other frame."""
    if greeting == MSGPACK:
        return Msgpack()
    if greeting == PICKLE:
        return Pickle()
    raise ProtocolError(
        f"the other end greets with {greeting[:20]!r}, which is not protocol 5 of ZEO "
        f"({MSGPACK.decode()} or {PICKLE.decode()})"
    )


def _message(found: Any) -> Message:
    """Return the message made of a decoded body; `ProtocolError` if it is not one."""
    if not isinstance(found, tuple) or len(found) != 4:
        raise ProtocolError("a frame is not a message: it is not an array of four")
    id, flag, name, arguments = found
    if not isinstance(flag, int) or not isinstance(name, str):
        raise ProtocolError("a frame is not a message: its flag or name is of another type")
    if not _is_id(id):
        raise ProtocolError("a frame is not a message: its id is neither a number nor bytes")
    return Message(id, int(flag), name, arguments)


def _is_id(id: Any) -> bool:
    if isinstance(id, tuple):
        return len(id) <= 4 and all(isinstance(part, (bytes, int)) for part in id)
    return isinstance(id, (int, bytes, str))
