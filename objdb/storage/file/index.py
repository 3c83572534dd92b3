"""The index: the current record of each object, oid → (position, tid), in a mapped file. The first
two bits of the position are set if that record is in a version.

The index lies beside the log as `<path>.oidx`. Integers are unsigned, big-endian, 8 bytes.

    page 0       header slots at 0 and 512 (see `_HEADER`), the synced position twice at 1024
    then groups  one directory page: the page numbers (oid // 256, plus 1) of the 512 pages
                 that follow it, 0 where there is none yet
                 pages: 256 entries of (position, tid), one for each oid of the page;
                 position 0: no such object

    get(oid): pages[first 7 bytes of the oid] ─► page + 16 * (last byte)

Pages are changed in place through the map, so nothing is private to the process and nothing is
rewritten. This is safe for these reasons:

* An entry is written only when its transaction is durable. So whichever pages reach the disk
  before a crash, every entry points to an existing record.
* The header has the log position up to which all entries are durable. It is written after a sync
  of the pages (a *checkpoint*). Opening replays the log from there on.
* A page damaged on disk is detected when it is used: the record an entry points to must have the
  entry's oid and tid.

Drawbacks: an oid far from all others takes a page of 4 KiB for itself; a disk that fails to
read a mapped page ends the process with a signal, not with an exception.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from objdb.ids import Oid, Tid
from objdb.storage.file.lookup import IN_VERSION, PageTable
from objdb.storage.files import File

PAGE = 4096
_ENTRIES = PAGE // 16
_PER_GROUP = PAGE // 8
_GROUP = PAGE * (1 + _PER_GROUP)
_MAGIC = b"objdbix1"
_SLOTS = 0, 512
_SYNCED_AT = 1024

# magic, sequence number of this header, log position, tid of the last transaction before it,
# largest oid, number of objects, number of pages, 1 when commits are synced; then CRC-32 of it.
_HEADER = struct.Struct(">8sQQ8sQQQQ")
_CRC = struct.Struct(">I")
_PAIR = struct.Struct(">QQ")
_PREFIX = itemgetter(slice(7))  # of an oid: which page it is on
_NUMBER = struct.Struct(">Q")

assert _ENTRIES == 256 and _HEADER.size + _CRC.size <= 512


class Checkpoint(NamedTuple):
    """The log position up to which the index is complete, and the facts there."""

    position: int
    tid: Tid
    max_oid: int
    objects: int
    pages: int
    synced: bool


class Index(PageTable):
    """The index file of one log, open for reading and writing; or read-only (*file* may then be
    None), with further entries in memory.

    The transaction that holds the commit slot adds pages (`reserve`), the leader of a group commit
    sets entries (`set_many`); both under the storage's own locks. Lookups take no lock: entries
    are read and written atomically.
    """

    def __init__(self, file: File | None, *, writable: bool) -> None:
        super().__init__()
        self._file: Any = file
        self.is_writable = writable
        self._page_count = 0
        self._sequence = 0
        self._size = 0
        self.checkpoint: Checkpoint | None = None
        self._open()

    # -- looking up

    def settled(self, oid: Oid) -> tuple[int, Tid] | None:
        """Return the same as `get`, read until two reads agree: a writer in another process may be
        changing the entry."""
        entry, again = self.get(oid), self.get(oid)
        while entry != again:
            entry, again = again, self.get(oid)
        return entry

    def oids(self) -> Iterable[Oid]:
        """Yield the oids that have an entry, in order."""
        prefixes = {oid[:7] for oid in self.overlay} | self.pages.keys()
        for prefix in sorted(prefixes):
            for last in range(_ENTRIES):
                oid = prefix + bytes([last])
                if self.get(oid) is not None:
                    yield oid

    def in_versions(self) -> Iterator[tuple[Oid, tuple[int, Tid]]]:
        """Yield (oid, entry) of the objects whose current record is in a version."""
        for prefix, page in list(self.pages.items()):
            first_bytes = self.map[page : page + PAGE : 16]
            if max(first_bytes, default=0) >= 0xC0:
                yield from self._in_versions(prefix + bytes([last]) for last in range(_ENTRIES))
        # Entries in memory only; if there are any, another process owns the file.
        pages = self.pages
        yield from self._in_versions(oid for oid in list(self.overlay) if oid[:7] not in pages)

    def _in_versions(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, tuple[int, Tid]]]:
        for oid in oids:
            entry = self.get(oid)
            if entry is not None and entry[0] >= IN_VERSION:
                yield oid, entry

    # -- changing

    def reserve(self, oids: Iterable[Oid]) -> None:
        """Make room for entries, so that setting them cannot fail.

        Raises OSError when the disk is full.
        """
        if not self.is_writable:
            return
        missing = set(map(_PREFIX, oids)).difference(self.pages)
        for prefix in sorted(missing) if missing else ():
            self._add_page(prefix)

    def _add_page(self, prefix: bytes) -> None:
        group, place = divmod(self._page_count, _PER_GROUP)
        directory = PAGE + group * _GROUP
        page = directory + PAGE * (1 + place)
        self._grow(page + PAGE)
        if place == 0:
            self.map[directory : directory + PAGE] = bytes(PAGE)
        self.map[page : page + PAGE] = bytes(PAGE)
        number = int.from_bytes(prefix, "big") + 1
        _NUMBER.pack_into(self.map, directory + 8 * place, number)
        self._page_count += 1
        self.pages[prefix] = page

    def _grow(self, size: int) -> None:
        if size > self._size:
            # Doubling up to one group at a time keeps both small files and the steps small.
            size = max(size, min(2 * self._size, self._size + _GROUP))
            self._file.allocate(size)
            # Lookups under way keep the old map, which shows the same pages.
            self.map = self._file.map(size)
            self._size = size

    def set_many(self, positions: dict[Oid, int], tid: Tid) -> None:
        """Point each oid at its record of the transaction *tid*, which is durable."""
        if not self.is_writable:
            self.overlay.update((oid, (position, tid)) for oid, position in positions.items())
            return
        super().set_many(positions, tid)

    def note_synced(self, position: int) -> None:
        """Note that the log is durable up to *position*, so that it is never a torn tail."""
        _PAIR.pack_into(self.map, _SYNCED_AT, position, position)

    def synced_position(self) -> int:
        """Return the last position noted as synced, or 0 if the note is missing or torn."""
        first, second = _PAIR.unpack_from(self.map, _SYNCED_AT)
        return first if first == second else 0

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._file.sync()

    def write_checkpoint(
        self, position: int, tid: Tid, max_oid: int, objects: int, *, synced: bool = True
    ) -> None:
        """Note that the index has every entry of the log up to *position*."""
        self._file.sync()
        self._write_header(Checkpoint(position, tid, max_oid, objects, self._page_count, synced))

    def _write_header(self, checkpoint: Checkpoint) -> None:
        self._sequence += 1
        position, tid, max_oid, objects, pages, synced = checkpoint
        header = _HEADER.pack(
            _MAGIC, self._sequence, position, tid, max_oid, objects, pages, int(synced)
        )
        slot = _SLOTS[self._sequence % 2]
        header += _CRC.pack(zlib.crc32(header))
        self.map[slot : slot + len(header)] = header
        self._file.sync()
        self.checkpoint = checkpoint

    def clear(self) -> None:
        """Remove all entries, to be rebuilt from the log, but keep the last transaction: a log
        that does not reach it is damaged, however often it is opened."""
        known = self.checkpoint
        self.pages.clear()
        self.overlay.clear()
        self._page_count = 0
        if self.is_writable and known is not None:
            self._write_header(known._replace(pages=0, synced=False))
            other = _SLOTS[(self._sequence + 1) % 2]
            self.map[other : other + _HEADER.size] = bytes(_HEADER.size)
            self.note_synced(0)
            self._file.sync()

    def renamed(self, path: str) -> None:
        """Note the new path of the file."""
        self._file.path = path

    def close(self) -> None:
        """Close the file."""
        self.pages.clear()
        self.overlay.clear()
        self.map = b""
        if self._file is not None:
            self._file.close()

    # -- opening

    def _open(self) -> None:
        if self._file is None:
            return
        size = self._file.size()
        if size < PAGE:
            if self.is_writable:
                self._grow(PAGE)
            return
        self._size = size
        self.map = self._file.map(size, read_only=not self.is_writable)
        headers = [self._header(slot) for slot in _SLOTS]
        found = max((header for header in headers if header), default=None)
        if found is None:
            return
        self._sequence, self.checkpoint = found
        if not self._read_directory(self.checkpoint.pages):
            self.pages.clear()
            self.checkpoint = None
            return
        self._page_count = self.checkpoint.pages

    def _header(self, slot: int) -> tuple[int, Checkpoint] | None:
        block = bytes(self.map[slot : slot + _HEADER.size])
        crc = _CRC.unpack_from(self.map, slot + _HEADER.size)[0]
        magic, sequence, position, tid, max_oid, objects, pages, synced = _HEADER.unpack(block)
        if magic != _MAGIC or crc != zlib.crc32(block):
            return None
        return sequence, Checkpoint(position, tid, max_oid, objects, pages, bool(synced))

    def _read_directory(self, count: int) -> bool:
        """Read the directory of the first *count* pages; False if it is not valid."""
        for first in range(0, count, _PER_GROUP):
            directory = PAGE + first // _PER_GROUP * _GROUP
            here = min(_PER_GROUP, count - first)
            if directory + PAGE * (1 + here) > self._size:
                return False
            numbers = struct.unpack_from(f">{here}Q", self.map, directory)
            if not all(numbers) or max(numbers) > 1 << 56:
                return False
            prefixes = ((number - 1).to_bytes(7, "big") for number in numbers)
            offsets = range(directory + PAGE, directory + PAGE * (1 + here), PAGE)
            self.pages.update(zip(prefixes, offsets, strict=True))
        return len(self.pages) == count
