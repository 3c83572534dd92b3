"""Rows: revisions and transactions as an engine keeps them, and their bytes.

A revision, under its oid and tid:

    flags 1   [version length 2, version, outside 8]   [back pointer 8]   record
              └─────────── if VERSION ────────────┘   └─ BACK_POINTER ─┘   absent if TOMBSTONE

A transaction, under its tid:

    status 1, lengths of user, description and extension 4 each, number of oids 4, size 8,
    user, description, extension (a pickled dict), oids 8 each

Numbers are big-endian; texts are UTF-8. An *outside* of zeros is None.

An engine that keeps rows on disk adds a CRC-32 to each, after it (`sealed`) or beside it
(`row_crc`, `transaction_crc`): of the row's key, which is oid and tid or tid, and its bytes.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple
from zlib import crc32

from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, Oid, Tid, format_oid, format_tid
from objdb.storage.extension import loads_extension

TOMBSTONE, VERSION, BACK_POINTER, FOLLOWS_GAP = 1, 2, 4, 8
PLAIN = b"\0"  # the flags of a row with a record only
CRC_BYTES = 4
SOUND = 0x2144DF1C  # the CRC-32 of any bytes that end with their own CRC-32, little-endian

_VERSION_LENGTH = struct.Struct(">H")
_TRANSACTION = struct.Struct(">cIIIIQ")
assert _TRANSACTION.size == 25


class Row(NamedTuple):
    """A revision. `data` is None for a tombstone: the object does not exist. `outside` is the tid
    of the revision visible outside `version` while this one is current; `back_pointer` the tid of
    an older revision with the same data. `follows_gap`: the revision before this one was packed
    away."""

    tid: Tid
    data: bytes | None
    version: str = ""
    outside: Tid | None = None
    back_pointer: Tid | None = None
    follows_gap: bool = False

    @property
    def exists(self) -> bool:
        """Whether the row is not a tombstone."""
        return self.data is not None

    @property
    def size(self) -> int:
        """The size of the record in bytes; 0 for a tombstone."""
        return len(self.data or b"")


class Current(NamedTuple):
    """The tid of an object's last revision, and the version of that revision."""

    tid: Tid
    version: str = ""


new_row = new_current = tuple.__new__  # from all fields at once; in half the time


class TransactionRow(NamedTuple):
    """A transaction: its metadata, the oids it changed, the size of their records in bytes.
    `status` is one character: space, `p` (packed) or `u`."""

    tid: Tid
    status: str
    user: bytes
    description: bytes
    extension_bytes: bytes
    oids: list[Oid]
    size: int

    @property
    def extension(self) -> dict[Any, Any]:
        """Further facts of the transaction."""
        return loads_extension(self.extension_bytes)


def encode_row(row: Row) -> bytes:
    """Return the bytes of a row, without its tid."""
    flags, parts = 0, []
    if row.version:
        flags |= VERSION
        name = row.version.encode()
        parts += [_VERSION_LENGTH.pack(len(name)), name, row.outside or NO_TID]
    if row.back_pointer is not None:
        flags |= BACK_POINTER
        parts.append(row.back_pointer)
    if row.follows_gap:
        flags |= FOLLOWS_GAP
    if row.data is None:
        flags |= TOMBSTONE
    else:
        parts.append(row.data)
    return b"".join((flags.to_bytes(1, "big"), *parts))


def decode_row(tid: Tid, data: bytes) -> Row:
    """Return the row that `encode_row` made *data* from. Raises `CorruptedDataError`."""
    if not data:
        raise CorruptedDataError(f"the row of the revision {tid.hex()} is empty")
    flags, at = data[0], 1
    if not flags:
        return Row(tid, data[1:])
    version, outside, back_pointer = "", None, None
    try:
        if flags & VERSION:
            (length,) = _VERSION_LENGTH.unpack_from(data, at)
            at += 2 + length
            version = data[at - length : at].decode()
            outside = data[at : at + 8]
            at += 8
        if flags & BACK_POINTER:
            back_pointer = data[at : at + 8]
            at += 8
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptedDataError(f"the row of the revision {tid.hex()}: {error}") from error
    if at > len(data) or flags > 15:
        raise CorruptedDataError(f"the row of the revision {tid.hex()} is damaged")
    record = None if flags & TOMBSTONE else data[at:]
    seen = None if outside == NO_TID else outside
    return Row(tid, record, version, seen, back_pointer, bool(flags & FOLLOWS_GAP))


def sealed(key: bytes, value: bytes) -> bytes:
    """Return *value* followed by the checksum of *key* and *value*."""
    return value + crc32(value, crc32(key)).to_bytes(CRC_BYTES, "little")


def unsealed(key: bytes, value: bytes, path: str | None) -> bytes:
    """Return *value* without the checksum that `sealed` added; `CorruptedDataError` if the
    checksum does not match. *key* is a tid, or an oid and a tid; *path* is the database's."""
    if crc32(value, crc32(key)) != SOUND:
        raise damaged_row(key, path)
    return value[:-CRC_BYTES]


def row_crc(oid: Oid, row: Row) -> int:
    """Return the checksum of a revision of *oid*."""
    return crc32(encode_row(row), crc32(oid + row.tid))


def plain_crc(oid: Oid, tid: Tid, record: bytes) -> int:
    """Return the checksum of a revision with a record only."""
    return crc32(record, crc32(oid + tid + PLAIN))


def transaction_crc(row: TransactionRow) -> int:
    """Return the checksum of a transaction."""
    return crc32(encode_transaction(row), crc32(row.tid))


def damaged_row(key: bytes, path: str | None) -> CorruptedDataError:
    """Return the error for a row whose checksum does not match; *key* as for `unsealed`."""
    what = f"transaction {format_tid(key[-8:])}"
    if len(key) == 16:
        what = f"the revision of object {format_oid(key[:8])} in {what}"
    return CorruptedDataError(
        f"{path}: {what} is damaged: its checksum does not match. Restore a backup; objdb check "
        "lists all damage", path=path, oid=key[:8] if len(key) == 16 else None,
    )


def encode_transaction(row: TransactionRow) -> bytes:
    """Return the bytes of a transaction, without its tid."""
    user, description, extension = row.user, row.description, row.extension_bytes
    return b"".join((
        _TRANSACTION.pack(
            row.status.encode(), len(user), len(description), len(extension), len(row.oids),
            row.size,
        ),
        user, description, extension, *row.oids,
    ))


def decode_transaction(tid: Tid, data: bytes) -> TransactionRow:
    """Return the row that `encode_transaction` made *data* from. Raises `CorruptedDataError`."""
    try:
        status, *lengths, count, size = _TRANSACTION.unpack_from(data)
    except struct.error as error:
        raise CorruptedDataError(f"the row of the transaction {tid.hex()}: {error}") from error
    if len(data) != _TRANSACTION.size + sum(lengths) + 8 * count:
        raise CorruptedDataError(
            f"the row of the transaction {tid.hex()} has {len(data)} bytes, but its lengths add "
            f"up to {_TRANSACTION.size + sum(lengths) + 8 * count}"
        )
    texts, at = [], _TRANSACTION.size
    for length in lengths:
        texts.append(data[at : at + length])
        at += length
    oids = [data[i : i + 8] for i in range(at, len(data), 8)]
    user, description, extension = texts
    return TransactionRow(
        tid, status.decode("latin-1"), user, description, extension, oids, size
    )
