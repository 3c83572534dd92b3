"""Finding and reading current records: the path of every load.

    oid ─► PageTable.get: pages[first 7 bytes] ─► page + 16 * (last byte) ─► (position, tid)
        ─► RecordReader.load: one read at the position, or none ─► header checked ─► record

The position of a record in a version has its first two bits set (`IN_VERSION`): both, so that
damage to one of them is detected.

These classes are the reference. If the accelerator was built, its classes of the same names take
their place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.file.format import RECORD, VERSION

IN_VERSION = 3 << 62
_RECORD_BYTES = RECORD.size
_unpack_record = RECORD.unpack_from
_unpack_entry, _pack_entry = struct.Struct(">Q8s").unpack_from, struct.Struct(">Q8s").pack
# One read of this size gets header and record of most objects.
_GUESS_BYTES = 512
# The size of a read if reading goes on forward.
_WINDOW_BYTES = 16 * 1024


class PageTable:
    """oid → (position, tid), in pages of 256 entries of 16 bytes, in a mapped file.

    `pages` has the position in `map` of the page for the oids with the same first 7 bytes;
    `overlay` has entries that are not in the map. Lookups take no lock: entries are read and
    written atomically.
    """

    def __init__(self) -> None:
        self.pages: dict[bytes, int] = {}
        self.overlay: dict[Oid, tuple[int, Tid]] = {}
        self.map: Any = b""

    def get(self, oid: Oid) -> tuple[int, Tid] | None:
        """Return (position, tid) of the object's current record, or None."""
        if self.overlay:
            found = self.overlay.get(oid)
            if found is not None:
                return found
        page = self.pages.get(oid[:7])
        if page is None or len(oid) != 8:
            return None
        try:
            entry: tuple[int, Tid] = _unpack_entry(self.map, page + (oid[7] << 4))
        except struct.error:  # closed by another thread meanwhile
            return None
        return entry if entry[0] else None

    def set_many(self, positions: dict[Oid, int], tid: Tid) -> None:
        """Point each oid at its record of the transaction *tid*; it has a page in the map."""
        mapped, pages, pack = self.map, self.pages, _pack_entry
        for oid, position in positions.items():
            at = pages[oid[:7]] + (oid[7] << 4)
            # Not with pack_into: it writes zeros first, which another process could read.
            mapped[at : at + 16] = pack(position, tid)

    def changed(self, serials: dict[Oid, Tid]) -> list[tuple[Oid, Tid]]:
        """Return (oid, tid of its current record) of each object whose tid in *serials* differs; 8
        zero bytes for a missing object."""
        current = [(oid, (self.get(oid) or (0, NO_TID))[1]) for oid in serials]
        return [(oid, tid) for oid, tid in current if tid != serials[oid]]


class RecordReader:
    """Reads current records, found by *find* (an oid to its position and tid), with *read_at*.

    It never reads beyond `end`: after the last published transaction, another may be partly
    written. The bytes read last are kept: objects stored together are often loaded together.
    """

    def __init__(
        self, find: Callable[[Oid], tuple[int, Tid] | None], read_at: Callable[[int, int], bytes]
    ) -> None:
        self._find = find
        self.read_at = read_at
        self.end = 0
        self._window: tuple[int, bytes] = 0, b""

    def load(
        self, oid: Oid, before: Tid, version: str = ""
    ) -> tuple[bytes, Tid, None] | None:
        """Return (record, tid, None) of the current revision of *oid*; None unless it is older
        than *before*, in *version* or outside any, and a plain record of some kilobytes."""
        entry = self._find(oid)
        if entry is None:
            return None
        position, current = entry
        name = b""
        if version and position >= IN_VERSION:
            position, name = position - IN_VERSION, version.encode()
        if position >= self.end or current >= before:
            return None
        start, block = self._window
        at = position - start
        if at < 0 or at + _RECORD_BYTES > len(block):
            at, block = 0, self._read(position)
            if len(block) < _RECORD_BYTES:
                return None
        found, serial, _, _, version_size, size = _unpack_record(block, at)
        data_at = at + _RECORD_BYTES
        if name:
            data_at += VERSION.size + len(name)
            if block[data_at - len(name) : data_at] != name:
                return None
        data = block[data_at : data_at + size]
        if found != oid or serial != current or len(data) != size or not size:
            return None
        if version_size != len(name):
            return None
        return data, current, None

    def _read(self, position: int) -> bytes:
        """Return the bytes at *position*: many if reading goes on forward, few otherwise."""
        start, block = self._window
        ahead = position - start - len(block)
        size = _WINDOW_BYTES if -_GUESS_BYTES <= ahead <= _WINDOW_BYTES else _GUESS_BYTES
        block = self.read_at(min(size, self.end - position), position)
        if len(block) >= _RECORD_BYTES:
            self._window = position, block
        return block


try:
    from objdb._accelerator import PageTable, RecordReader  # type: ignore
except ImportError:
    pass
