"""The bytes of a FileStorage file. Integers are unsigned and big-endian, positions and sizes in
bytes.

    file         magic `FS30`, then transactions, then (while open) zeros allocated ahead
    transaction  header 23, user, description, extension, data records …, length 8

    header   at  size  field
              0     8  tid
              8     8  length of the whole transaction, less 8
             16     1  status: space committed, `c` voted, `p` packed, `u` undone (old)
             17     2  length of user
             19     2  length of description
             21     2  length of extension (a pickled dict)
             23

    record   at  size  field
              0     8  oid
              8     8  tid (that of its transaction)
             16     8  position of the object's previous record, 0 if none
             24     8  position of the transaction
             32     2  length of the version name
             34     8  length of the data; 0: a back pointer follows
             42
        version name not empty, in between:
                    8  position of the record outside any version
                    8  position of the previous record in this version
                    n  version name
             then      data, or back pointer: 8 bytes, position of the record whose data this
                       one repeats, 0: the object is un-created

Integrity, which ZODB lacks: the extension of every transaction written here ends in two items,

    "_objdb_position": 8 bytes   where the transaction was written
    "_crc32": 4 bytes            CRC-32 (zlib) of the whole transaction, with a space as status
                                 and zeros in place of these 4 bytes

Readers that do not know them see two extension items more. Another program that rewrites the
file (ZODB's pack, a copy) moves transactions and changes positions inside them, but copies the
extension as it is: such a transaction is told by its `_objdb_position`, and is taken like one
from a file that never had checksums. So that one is told, too, that was packed and has not moved,
the item of a packed transaction has its highest bit set, and the position times 2**20 combined
with the transaction's length (exclusive or) in the others.

Drawbacks: the length of user, description and extension is 65,535 bytes at most; the previous
position makes a chain through the file that only packing shortens; zlib's CRC finds damage,
not tampering.
"""

from __future__ import annotations

import pickle
import re
import struct
from typing import Any

from objdb.storage.commit import (
    INTEGRITY_KEYS,
    dumps_extension,
    loads_extension,
    without_integrity,
)

MAGIC = b"FS30"
PYTHON_TWO_MAGIC = b"FS21"
START = len(MAGIC)

TRANSACTION = struct.Struct(">8sQcHHH")
RECORD = struct.Struct(">8s8sQQHQ")
VERSION = struct.Struct(">QQ")
NUMBER = struct.Struct(">Q")
STATUS_AT = 16
MAX_TEXT_BYTES = 0xFFFF

COMMITTED, VOTED, PACKED, UNDONE = b" ", b"c", b"p", b"u"

assert TRANSACTION.size == 23 and RECORD.size == 42 and VERSION.size == 16

_POSITION_KEY, _CRC_KEY = INTEGRITY_KEYS
_PACKED_BIT, _SIZE_BITS = 1 << 63, 20
_ZEROS = {_POSITION_KEY: bytes(8), _CRC_KEY: bytes(4)}
# Pickle protocol 3 writes 8 and 4 zero bytes as these; the zeros begin after 2 bytes.
_POSITION_PLACE, _CRC_PLACE = b"C\x08" + bytes(8), b"C\x04" + bytes(4)
_INTEGRITY_ONLY = pickle.dumps(_ZEROS, 3)
_ONLY_PLACES = _INTEGRITY_ONLY.rindex(_POSITION_PLACE) + 2, _INTEGRITY_ONLY.rindex(_CRC_PLACE) + 2

_BEFORE_POSITION = _INTEGRITY_ONLY[: _ONLY_PLACES[0]]
_BEFORE_CRC = _INTEGRITY_ONLY[_ONLY_PLACES[0] + 8 : _ONLY_PLACES[1]]
_BEHIND_CRC = _INTEGRITY_ONLY[_ONLY_PLACES[1] + 4 :]


def pack_extension(extension: dict[str, Any]) -> tuple[bytes, int, int]:
    """Return the extension's bytes with its integrity items as zeros, and where in it the
    position and the CRC belong."""
    if not extension:
        return _INTEGRITY_ONLY, *_ONLY_PLACES
    packed = dumps_extension({**without_integrity(extension), **_ZEROS})
    return packed, packed.rindex(_POSITION_PLACE) + 2, packed.rindex(_CRC_PLACE) + 2


def place_item(position: int, size: int, status: bytes) -> bytes:
    """Return the item that tells where a transaction of *size* bytes was written: 8 bytes."""
    if status == PACKED:
        return NUMBER.pack(_PACKED_BIT | (position << _SIZE_BITS ^ size) & _PACKED_BIT - 1)
    return NUMBER.pack(position)


def integrity_places(extension: bytes) -> tuple[int, int] | None:
    """Return where in the extension's bytes the position and the CRC are; None if it has none."""
    shape = _INTEGRITY_SHAPE.search(extension)
    return None if shape is None else (shape.start("position"), shape.start("crc"))


def plain_extension(position: int) -> tuple[bytes, bytes]:
    """Return what is before and behind the CRC in the extension of a transaction at *position*
    that has nothing but its integrity items, and was never packed."""
    return _BEFORE_POSITION + NUMBER.pack(position) + _BEFORE_CRC, _BEHIND_CRC


def find_crc(extension: bytes, position: int, size: int, status: bytes) -> int | None:
    """Return where in the extension's bytes the CRC is; None if the transaction has none, or one
    that was made for another position, or before it was packed. ValueError when the items are
    there and damaged."""
    before, behind = plain_extension(position)
    is_plain = extension.startswith(before) and extension[len(before) + 4 :] == behind
    if is_plain and status != PACKED:
        return len(before)
    names = sum(key.encode() in extension for key in _ZEROS)
    shape = _INTEGRITY_SHAPE.search(extension) if names else None
    if shape is None:
        if names == 2:
            raise ValueError("the integrity items are damaged")
        return None
    if (shape["first"], shape["second"]) != (_POSITION_KEY.encode(), _CRC_KEY.encode()):
        raise ValueError("the integrity items are damaged")
    is_here = shape["position"] == place_item(position, size, status)
    return shape.start("crc") if is_here else None


# How an extension ends that has the items: two keys and values, a memo opcode behind each. The
# keys are looked at apart, so that a damaged one is told from an extension that has none.
_MEMO = rb"(?:q.|r.{4})"
_INTEGRITY_SHAPE = re.compile(
    rb"X\x0f\0\0\0(?P<first>.{15})" + _MEMO + rb"C\x08(?P<position>.{8})" + _MEMO
    + rb"X\x06\0\0\0(?P<second>.{6})" + _MEMO + rb"C\x04(?P<crc>.{4})" + _MEMO + rb"u\.\Z",
    re.DOTALL,
)


def visible_extension(extension: bytes) -> bytes:
    """Return the extension's bytes without the integrity items; empty if nothing is left."""
    if len(extension) == len(_INTEGRITY_ONLY) and extension.startswith(_BEFORE_POSITION):
        return b""
    if not extension or _INTEGRITY_SHAPE.search(extension) is None:
        return extension
    rest = without_integrity(loads_extension(extension))
    return pickle.dumps(rest, 3) if rest else b""
