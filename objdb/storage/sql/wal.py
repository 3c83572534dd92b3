"""Checking SQLite's write-ahead log before SQLite reads it.

SQLite reads it up to the first frame whose checksum does not match, and drops the rest silently,
since a commit torn by a crash looks the same. Such a commit has at most one frame that ends a
transaction. With two or more after the damage, acknowledged transactions would be lost.

    header  magic 4 (its last bit: words are big-endian), version 4, page size 4, number 4,
            salts 8, checksum 8
    frame   number of the page 4, pages in the database after a transaction 4 (else 0), salts 8,
            checksum 8, page

Numbers are big-endian. A frame counts if its salts are the header's; its checksum goes on from
that of the frame before it. Source: SQLite's "WAL-mode File Format", sqlite.org/walformat.html.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import sys
import time
from array import array
from typing import NamedTuple

from objdb.errors import CorruptedDataError

log = logging.getLogger("objdb.storage")

_HEADER, _FRAME = 32, 24
_MAGIC = 0x377F0682
_IN_USE_AT = 128  # of PATH-shm: the byte locked by every process that has the database open
_FLOCK = struct.Struct("hhqqi0q")
_PAUSE_SECONDS = 0.2


class _Break(NamedTuple):
    """The end of the chain of frames, and the number of transactions that end after it."""

    frame: int
    position: int
    transactions: int


def require_whole_log(path: str, durability: str) -> None:
    """Raise `CorruptedDataError` if the write-ahead log of the database *path*, which this process
    does not have open, is damaged before acknowledged transactions. With *durability* `"os"`,
    which permits that after a loss of power, only warn."""
    if _is_in_use(path + "-shm"):
        return
    found = _look(path + "-wal")
    if found is None:
        return
    time.sleep(_PAUSE_SECONDS)
    if _is_in_use(path + "-shm") or _look(path + "-wal") != found:  # another process is writing it
        return
    what = (
        f"{path}-wal is damaged in frame {found.frame}, at position {found.position}: SQLite "
        f"would drop it and all later frames, {found.transactions} transactions or more"
    )
    if durability != "sync":
        log.warning("%s. With durability=\"os\" a loss of power does that", what)
        return
    raise CorruptedDataError(
        f"{what}. Nothing was changed. Restore a backup; or copy the files, and let SQLite drop "
        f"them: sqlite3 {path} 'PRAGMA wal_checkpoint(TRUNCATE)'",
        path=path + "-wal", position=found.position,
    )


def _is_in_use(path: str) -> bool:
    """Whether another process has open the database whose shared memory is the file *path*."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _IN_USE_AT, 1, 0)
        answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(file)


def _look(path: str) -> _Break | None:
    """Return the damage in a log; None if it is whole, or has a torn tail only."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                return None
            magic, _, page_size, _, *salts, first, second = struct.unpack(">8I", header)
            is_swapped = bool(magic & 1) != (sys.byteorder == "big")
            if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
                page_size = 4096
            sums = _checksum(header[:24], (0, 0), is_swapped)
            is_whole = magic & ~1 == _MAGIC and sums == (first, second)
            broken, position, ends, frame = (0, 0, 0, 0) if not is_whole else (None, 0, 0, 0)
            while len(bytes_ := file.read(_FRAME + page_size)) == _FRAME + page_size:
                frame += 1
                _, size, *its_salts, first, second = struct.unpack_from(">6I", bytes_)
                if broken is None:
                    sums = _checksum(bytes_[:8], sums, is_swapped)
                    sums = _checksum(bytes_[_FRAME:], sums, is_swapped)
                    if its_salts == salts and sums == (first, second):
                        continue
                    broken = frame
                    position = _HEADER + (frame - 1) * (_FRAME + page_size)
                if broken == 0 and salts != its_salts and not ends:
                    salts = its_salts  # the header itself may be damaged
                ends += size > 0 and its_salts == salts
    except OSError:
        return None
    return _Break(broken, position, ends) if broken is not None and ends > 1 else None


def _checksum(data: bytes, sums: tuple[int, int], is_swapped: bool) -> tuple[int, int]:
    words = array("I", data)
    if is_swapped:
        words.byteswap()
    first, second = sums
    for i in range(0, len(words), 2):
        first = (first + words[i] + second) & 0xFFFFFFFF
        second = (second + words[i + 1] + first) & 0xFFFFFFFF
    return first, second
