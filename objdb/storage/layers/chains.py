"""The revisions, without data, of objects changed over a base.

    tids            oid -> [tid, ...]    oldest first; the first is the base's revision, if any
    uncreated       {(oid, tid)}         tombstones
    versions        (oid, tid) -> (its version, tid of the revision outside or None)
    back_pointers   (oid, tid) -> tid of the older revision whose data it has
    packed          {(oid, tid)}         earlier revisions, in the changes, may be gone

The place of a revision is (oid, tid).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from objdb.ids import MAX_TID, Oid, Tid

Place = tuple[Oid, Tid]


class InBase(NamedTuple):
    """The current revision of an object in the base: its tid, its version, and the tid of the one
    outside, None for none."""

    tid: Tid
    version: str
    outside: Tid | None


class Chains:
    """The revisions of the changed objects; *find_in_base(oid)* returns the base's `InBase`."""

    def __init__(self, find_in_base: Callable[[Oid], InBase | None]) -> None:
        self._find_in_base = find_in_base
        self.tids: dict[Oid, list[Tid]] = {}
        self.in_base: set[Oid] = set()  # of those in `tids`
        self.uncreated: set[Place] = set()
        self.versions: dict[Place, tuple[str, Tid | None]] = {}
        self.back_pointers: dict[Place, Tid] = {}
        self.packed: set[Place] = set()
        self.transactions: list[tuple[Tid, str, int]] = []  # tid, status, bytes of its records

    def of(self, oid: Oid) -> list[Tid]:
        """Return the tids of an object's revisions; none for a missing object."""
        chain = self.tids.get(oid)
        if chain is not None:
            return chain
        found = self._find_in_base(oid)
        if found is None:
            return []
        if found.version:
            self.versions[oid, found.tid] = found.version, found.outside
        self.in_base.add(oid)
        return self.tids.setdefault(oid, [found.tid])

    def add(self, tid: Tid, status: str, revisions: Iterator[tuple[Oid, Any, str, Any]]) -> None:
        """Enter a transaction: of each revision the oid, data or None, version, and back
        pointer."""
        size = 0
        for oid, data, version, back_pointer in revisions:
            chain = self.of(oid)
            place = oid, tid
            if version:
                self.versions[place] = version, self._outside_of_new(oid, chain, back_pointer)
            if back_pointer is not None:
                self.back_pointers[place] = back_pointer
            if data is None:
                self.uncreated.add(place)
            if status == "p":
                self.packed.add(place)
            if chain:
                chain.append(tid)
            else:
                self.tids[oid] = [tid]
            size += len(data or b"")
        self.transactions.append((tid, status, size))

    def _outside_of_new(self, oid: Oid, chain: list[Tid], back_pointer: Tid | None) -> Tid | None:
        """Return the tid of the revision outside when a revision in a version follows *chain*."""
        if not chain:
            return None
        target = oid, back_pointer or MAX_TID
        if (oid, chain[-1]) not in self.versions and target in self.versions:
            return self.versions[target][1]
        return self.seen(oid, chain[-1], "")

    def seen(self, oid: Oid, tid: Tid, version: str) -> Tid | None:
        """Return the tid of the revision visible in *version* when *tid* is current."""
        own, outside = self.versions.get((oid, tid), ("", None))
        return outside if own and own != version else tid

    def before(self, oid: Oid, tid: Tid) -> Place | None:
        """Return the place of the revision before."""
        chain = self.of(oid)
        i = bisect_left(chain, tid)
        return (oid, chain[i - 1]) if i else None

    def has(self, oid: Oid, tid: Tid) -> bool:
        """Return whether this revision exists."""
        chain = self.of(oid)
        return tid in chain[bisect_left(chain, tid) :][:1]

    def is_current(self, place: Place) -> bool:
        """Return whether a revision is its object's last one; False while `of` or `add` is
        entering it."""
        chain = self.tids.get(place[0])
        return chain is not None and chain[-1] == place[1]
