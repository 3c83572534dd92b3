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
                       one has, 0: a tombstone

Integrity, which ZODB lacks: the extension of every transaction written here ends in two items
(appended to the pickle, which is not parsed),

    "_objdb_position": 8 bytes   where the transaction was written
    "_crc32": 4 bytes            CRC-32 (zlib) of the whole transaction, with a space as status
                                 and zeros in place of these 4 bytes

Readers that do not know them see two more extension items. Another program that rewrites the
file (ZODB's pack, a copy) moves transactions and changes positions inside them, but copies the
extension unchanged: `_objdb_position` reveals such a transaction, which then counts as having no
checksum. To recognise a packed transaction that did not move, the item of a packed transaction is
`1 << 63 | (position << 20 ^ length)`.

Drawbacks: the length of user, description and extension is 65,535 bytes at most; the previous
position makes a chain through the file that only packing shortens; zlib's CRC detects damage,
not tampering.
"""

from __future__ import annotations

import pickle
import re
import struct
from functools import lru_cache

from objdb.errors import CorruptedDataError
from objdb.storage.extension import INTEGRITY_KEYS, UNREADABLE, loads_extension

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


# The opcodes that set the items in the pickled dict, inserted before its end. The memo is no longer
# used there, so one memo index, which no pickle uses for a key and its value, serves all.
_ITEMS = (
    b"(X\x0f\0\0\0" + _POSITION_KEY.encode() + b"q\xff" + _POSITION_PLACE + b"q\xff"
    + b"X\x06\0\0\0" + _CRC_KEY.encode() + b"q\xff" + _CRC_PLACE + b"q\xffu."
)
INTEGRITY_BYTES = len(_ITEMS) - 1
_IN_ITEMS = _ITEMS.index(_POSITION_PLACE) + 2, _ITEMS.index(_CRC_PLACE) + 2


def pack_extension(extension: bytes) -> tuple[bytes, tuple[int, int] | None]:
    """Return the extension's bytes with integrity items of zeros, and the places of the position
    and the CRC in them. Bytes that are not the pickle of a dict are returned unchanged, with
    None."""
    if not extension:
        return _INTEGRITY_ONLY, _ONLY_PLACES
    if not _is_dict(extension):
        return extension, None
    start = len(extension) - 1
    return extension[:start] + _ITEMS, (start + _IN_ITEMS[0], start + _IN_ITEMS[1])


@lru_cache(maxsize=64)
def _is_dict(extension: bytes) -> bool:
    """Whether the bytes are the pickle of a dict, and nothing follows it."""
    try:
        is_dict = UNREADABLE not in loads_extension(extension)
    except CorruptedDataError:
        return False
    return is_dict and extension.endswith(b".")


def place_item(position: int, size: int, status: bytes) -> bytes:
    """Return the position item, 8 bytes, of a transaction of *size* bytes."""
    if status == PACKED:
        return NUMBER.pack(_PACKED_BIT | (position << _SIZE_BITS ^ size) & _PACKED_BIT - 1)
    return NUMBER.pack(position)


def plain_extension(position: int) -> tuple[bytes, bytes]:
    """Return the bytes before and after the CRC in the extension of a never packed transaction at
    *position* that has only the integrity items."""
    return _BEFORE_POSITION + NUMBER.pack(position) + _BEFORE_CRC, _BEHIND_CRC


def find_crc(extension: bytes, position: int, size: int, status: bytes) -> int | None:
    """Return the place of the CRC in the extension's bytes; None if the transaction has none, or
    one for another position, or from before a pack. ValueError if the items are damaged."""
    before, behind = plain_extension(position)
    is_plain = extension.startswith(before) and extension[len(before) + 4 :] == behind
    if is_plain and status != PACKED:
        return len(before)
    found = moved_crc(extension)
    if found is None:
        return None
    is_here = extension[found[0] : found[0] + 8] == place_item(position, size, status)
    return found[1] if is_here else None


def moved_crc(extension: bytes) -> tuple[int, int] | None:
    """Return the places of the position and the CRC in the extension's bytes, for any position;
    None if it has none. ValueError if they are damaged, or the extension is not a pickle."""
    shape = _INTEGRITY_SHAPE.search(extension)
    if shape is None:
        if any(trace in extension for trace in _TRACES):
            raise ValueError("the integrity items are damaged")
        if extension and (extension[0] not in _BEGIN_PICKLES or extension[-1:] != b"."):
            raise ValueError("the extension is not a pickle")
        return None
    if (shape["first"], shape["second"]) != (_POSITION_KEY.encode(), _CRC_KEY.encode()):
        raise ValueError("the integrity items are damaged")
    return shape.start("position"), shape.start("crc")


# Parts that remain of damaged items; and the beginning of the pickle of a dict.
_TRACES = b"_objdb_p", b"b_position", b"_crc32q"
_BEGIN_PICKLES = b"\x80}("

# The end of an extension with the items: two keys and values, each followed by a memo opcode. The
# keys are checked separately, to distinguish a damaged one from an extension without items.
_MEMO = rb"(?:q.|r.{4})"
_INTEGRITY_SHAPE = re.compile(
    rb"X\x0f\0\0\0(?P<first>.{15})(?P<memo>" + _MEMO + rb")C\x08(?P<position>.{8})" + _MEMO
    + rb"X\x06\0\0\0(?P<second>.{6})" + _MEMO + rb"C\x04(?P<crc>.{4})" + _MEMO + rb"u\.\Z",
    re.DOTALL,
)


def visible_extension(extension: bytes) -> bytes:
    """Return the extension's bytes without the integrity items; b"" if nothing is left."""
    if len(extension) == len(_INTEGRITY_ONLY) and extension.startswith(_BEFORE_POSITION):
        return b""
    shape = _INTEGRITY_SHAPE.search(extension) if extension else None
    if shape is None:
        return extension
    start = shape.start()
    if shape["memo"] == b"q\xff":  # they were appended as a whole
        return extension[: start - 1] + b"."
    rest = extension[:start] + b"u."  # they were pickled with the others
    return b"" if rest == _NOTHING_ELSE else rest


_NOTHING_ELSE = b"\x80\x03}q\0(u."
