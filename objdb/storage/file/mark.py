"""Marking the records of a log that stay in a pack: the first half of a pack.

    index ─► current record ─► … previous … ─► the object's record at T ─► its references

Only records that stay are read, in the order of their positions, as far as the graph allows. The
result is small: a byte for each object, and the position of each record that stays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid, oid_from_int
from objdb.storage.file.format import RECORD, START
from objdb.storage.file.generation import Generation
from objdb.storage.file.log import POSITION, Record
from objdb.storage.file.recovery import next_transaction
from objdb.storage.file.scan import Walk
from objdb.storage.packing import (
    Elsewhere,
    OidSet,
    OidTable,
    Pacer,
    References,
    require_none_missing,
)

_NOWHERE = 1  # a position where no record can be
_AT_ONCE = 256  # records put in order
_BUCKET_BITS = 19
_NEAR_BYTES = 16 * 1024
_GUESS_BYTES = 512
_BETWEEN_PAUSES = 8  # records
_HEAD_BYTES = RECORD.size
_unpack_record = RECORD.unpack_from


class PositionSet:
    """Positions in a file, iterated in order. A position added twice counts twice."""

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}
        self.count = 0

    def add(self, position: int) -> None:
        """Add a position."""
        bucket = self._buckets.get(position >> _BUCKET_BITS)
        if bucket is None:
            bucket = self._buckets[position >> _BUCKET_BITS] = array("Q")
        bucket.append(position)
        self.count += 1

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self._buckets):
            yield from sorted(set(self._buckets[number]))


class Marking:
    """Finds the records that stay of *generation*'s log, packed to the transaction *pack_to*.

    `begin` is the position after that transaction. `stays` has the positions before it; their
    records take about `size` bytes in the packed file, which will have `objects` objects.
    *references* is None if all existing objects stay.
    """

    def __init__(
        self, generation: Generation, pack_to: Tid, begin: int, references: References | None,
        pacer: Pacer, elsewhere: Elsewhere,
    ) -> None:
        self._generation = generation
        self.pack_to = self._end_tid = pack_to
        self._references = references
        self._pacer = pacer
        self._elsewhere = elsewhere
        self._block, self._block_at = b"", 0  # the bytes read last
        self._seen = OidSet()
        self._before = OidTable()  # of the objects changed later: the positions before
        self._waiting = array("Q")  # positions
        self._objects = generation.published.objects
        self.begin = begin
        self.end = begin  # of the later transactions processed so far
        self.stays = PositionSet()
        self.orphans: set[int] = set()  # those of `stays` that are not an object's last record
        self._uncreated: set[int] = set()  # tombstones that stay because of orphans
        self._missing: list[Oid] = []  # referenced objects that do not exist
        self.size = 0
        self.objects = 0  # including those of the later transactions

    def run(self, end: int, roots: Iterable[Oid]) -> None:
        """Mark all objects reachable from the transactions up to *end*, and from *roots*.
        `CorruptedDataError` for damage; `PackError` for a reference to a missing object."""
        self._verify()
        self.look_at_later(end)
        everything = self._references is None
        self.reach_all(self._generation.index.oids() if everything else (ROOT_OID, *roots))
        if self.objects < self._generation.published.objects:
            require_none_missing(self._generation.file.path, self._missing)

    def _verify(self) -> None:
        """Raise `CorruptedDataError` unless the transactions up to the pack time are undamaged,
        and the index has each of their records, or a later one of the object: records missing in
        the index would be dropped, and copied ones get a new checksum."""
        log, get = self._generation.log, self._generation.index.get
        walk = Walk(log, START, self.begin, NO_TID)
        for header in walk:
            for oid, place in walk.places(header)[0].items():
                entry = get(oid)
                if entry is None or entry[0] & POSITION < place & POSITION:
                    self._pacer.require_wanted()
                    raise log.damaged(
                        place & POSITION, f"the index does not have the record of "
                        f"{format_oid(oid)} that is here. The file itself is undamaged so far: "
                        "remove the index beside it (.oidx); it is then rebuilt", oid,
                    )
            self._pacer.pace()
            self._pacer.report("verify", header.end, self.begin)

    def reach_all(self, oids: Iterable[Oid]) -> bool:
        """Mark objects, and those reachable from them; return whether any is new."""
        count = self.stays.count
        for oid in oids:
            self.reach(oid)
            if len(self._waiting) > _AT_ONCE:
                self._follow()
        self._follow()
        return self.stays.count > count

    def look_at_later(self, end: int) -> bool:
        """Mark the objects that the transactions up to the position *end* change or refer to,
        from the last one processed on; return whether any is new."""
        log, references = self._generation.log, self._references
        count = self.stays.count
        while self.end < end:
            header = next_transaction(log, self.end, end, self._end_tid)
            if header is None:
                raise log.damaged(self.end, "the log ends before the index says")
            for record in log.records(header):
                # An earlier pack may have removed the records in between.
                before = record.previous or record.outside or _NOWHERE
                self.objects += self._before.set_once(record.oid, before)
                self.reach(record.oid)
                if record.version and not record.size:
                    self._keep_orphans(record)
                if references is not None:
                    for oid in references(log.data(record) or b""):
                        self.reach(oid)
                self._pacer.pace()
            self.end, self._end_tid = header.end, header.tid
        self._follow()
        return self.stays.count > count

    def _keep_orphans(self, record: Record) -> None:
        """Keep the revision that a later *record* restores to a version, with the one outside it,
        and the object's last revision even if that is a tombstone."""
        log = self._generation.log
        target = log.target(record)
        if target is None or not target.version or target.position >= self.begin:
            return
        if record.previous and log.record(record.previous).version:
            return
        place, usual = self._place(record.oid), set[int]()
        if place is not None:
            current = log.record(place[0])
            usual = {current.position, current.outside}
            if log.data(current) is None and current.position not in self._uncreated:
                self._uncreated.add(current.position)
                self._keep(current)
        for found in (target, log.outside(target)):
            if found is None or found.position in usual | self.orphans:
                continue
            if log.data(found) is not None:
                self.orphans.add(found.position)
                self._keep(found)

    def _keep(self, record: Record) -> None:
        """Keep this record, and mark the objects it refers to."""
        data = self._generation.log.data(record)
        self.stays.add(record.position)
        self.size += record.data_at - record.position + (record.size or len(data or bytes(8)))
        if self._references is not None and data is not None:
            for referred in self._references(data):
                self.reach(referred)

    def reach(self, oid: Oid) -> None:
        """Mark the object, as of the pack time."""
        if self._seen.add(oid):
            self._waiting.append(int.from_bytes(oid, "big"))

    def _place(self, oid: Oid) -> tuple[int, Tid | None] | None:
        """Return the position of the object's last record up to the pack time, and its tid if
        known; None if there is no such record."""
        position = self._before.get(oid)
        if position:
            return None if position == _NOWHERE else (position, None)
        entry = self._generation.index.get(oid)
        if entry is None:
            return None
        if entry[1] <= self.pack_to:
            return entry[0] & POSITION, entry[1]
        position, tid = entry  # changed since marking began, or not processed yet
        while position:
            for record in self._generation.chain(oid, position, tid):
                if record.tid <= self.pack_to:
                    return record.position, record.tid
            # An earlier pack may have removed the records in between.
            outside = self._generation.log.outside(record)
            position, tid = (0, tid) if outside is None else (outside.position, outside.tid)
        return None

    def _follow(self) -> None:
        """Visit the waiting records, and those they refer to."""
        waiting = self._waiting
        while waiting:
            places = []
            for number in waiting[-_AT_ONCE:]:
                oid = oid_from_int(number)
                place = self._place(oid)
                if place is not None:
                    places.append((place[0], oid, place[1]))
                elif self._generation.index.get(oid) is None and not self._elsewhere(oid):
                    self._missing.append(oid)
            del waiting[-_AT_ONCE:]
            places.sort()
            for first in range(0, len(places), _BETWEEN_PAUSES):
                for position, oid, tid in places[first : first + _BETWEEN_PAUSES]:
                    count = self.stays.count
                    self._visit(position, oid, tid)
                    if self.stays.count > count and not self._before.get(oid):
                        self.objects += 1
                self._pacer.pace()
            self._pacer.report("mark", min(self.stays.count, self._objects), self._objects)

    def _visit(self, position: int, oid: Oid, tid: Tid | None) -> None:
        """Keep a record, and mark the objects it refers to."""
        at = position - self._block_at
        has_head = 0 <= at <= len(self._block) - _HEAD_BYTES
        block = self._block if has_head else self._read(position, _HEAD_BYTES)
        at = at if has_head else 0
        found, found_tid, _, _, version_size, size = _unpack_record(block, at)
        if found != oid or found_tid > self.pack_to or tid not in (None, found_tid):
            raise self._generation.log.damaged(
                position, f"the record of {format_oid(oid)} is missing", oid
            )
        begin, references = at + _HEAD_BYTES, self._references
        if version_size or not size:
            self._visit_unusual(self._generation.log.record(position))
            return
        self.stays.add(position)
        self.size += _HEAD_BYTES + size
        if references is not None:
            if begin + size > len(block):
                block, begin = self._read(position, _HEAD_BYTES + size), _HEAD_BYTES
            for referred in references(block[begin : begin + size]):
                self.reach(referred)

    def _visit_unusual(self, record: Record) -> None:
        """Keep a record that is in a version, or has a back pointer; but not a tombstone outside
        any version."""
        log, count = self._generation.log, self.stays.count
        outside = log.outside(record) if record.version else None
        if outside is not None:
            self._visit(outside.position, record.oid, outside.tid)
        data = log.data(record)
        if data is None and self.stays.count == count:
            return
        self._keep(record)

    def _read(self, position: int, size: int) -> bytes:
        """Return the bytes at *position*, *size* or more: many if reading goes on forward, few
        otherwise."""
        is_near = 0 <= position - self._block_at <= len(self._block) + _NEAR_BYTES
        wanted = max(size, _NEAR_BYTES if is_near else _GUESS_BYTES)
        file = self._generation.file
        # A damaged size may be any number: read no more than the file has.
        is_beyond = size > _NEAR_BYTES and size > file.size() - position
        block = b"" if is_beyond else file.read_at(wanted, position)
        if len(block) < size:
            raise self._generation.log.damaged(position, "the file ends inside a data record")
        self._block, self._block_at = block, position
        return block
