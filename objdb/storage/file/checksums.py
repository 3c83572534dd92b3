"""Verifying the checksum of a transaction in the log. See `format`."""

from __future__ import annotations

import zlib

from objdb.storage.file.format import COMMITTED, STATUS_AT, find_crc, moved_crc, place_item
from objdb.storage.file.log import Header, Log

_CHUNK = 4 * 1024 * 1024


def check_crc(log: Log, header: Header) -> bool:
    """Return whether the transaction has a checksum; `CorruptedDataError` if it is wrong."""
    try:
        size = header.end - header.position
        place = find_crc(header.extension, header.position, size, header.status)
    except ValueError:
        raise log.damaged(header.position, "the checksum in the extension") from None
    if place is None:
        if _is_only_place_damaged(log, header):
            raise log.damaged(header.position, "the position in the extension is wrong")
        return False
    expected, crc = _crcs(log, header, place)
    if expected != crc:
        raise log.damaged(header.position, "the transaction's checksum does not match")
    return True


def _is_only_place_damaged(log: Log, header: Header) -> bool:
    """Whether the checksum matches once the position item is corrected; if not, another program
    has moved or packed the transaction."""
    found = moved_crc(header.extension)
    if found is None:
        return False
    item = place_item(header.position, header.end - header.position, header.status)
    expected, crc = _crcs(log, header, found[1], (found[0], item))
    return expected == crc


def _crcs(
    log: Log, header: Header, place: int, put_right: tuple[int, bytes] | None = None
) -> tuple[bytes, bytes]:
    """Return the stored checksum, from the extension of a transaction, and the computed one, with
    some bytes of the extension *put_right*."""
    texts_at = header.body - len(header.extension)
    crc_at = texts_at + place
    crc, position = 0, header.position
    while position < header.end:
        chunk = log.file.read_at(min(_CHUNK, header.end - position), position)
        if not chunk:
            raise log.damaged(position, "the file ends inside a transaction")
        behind = 0
        if position == header.position:
            at = crc_at - position
            expected, behind = chunk[at : at + 4], at + 4
            before = chunk[:STATUS_AT] + COMMITTED + chunk[STATUS_AT + 1 : at]
            if put_right is not None:
                begin = texts_at - position + put_right[0]
                before = before[:begin] + put_right[1] + before[begin + 8 :]
            crc = zlib.crc32(before + bytes(4))
        crc = zlib.crc32(memoryview(chunk)[behind:], crc)
        position += len(chunk)
    return expected, crc.to_bytes(4, "big")
