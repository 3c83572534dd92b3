"""Finding rows in the Berkeley DB tables, while another thread may be writing.

Uncommitted rows can be read, but are never shown: their tid is beyond `visibility.before`. A
reader that meets such a row in `current` finds the row before it in `old`, where the same
transaction has moved it, unless that is being rolled back: then it reads again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, Oid, Tid, format_oid, next_tid
from objdb.storage.berkeley.change import FACTS_BYTES, Facts
from objdb.storage.berkeley.directory import TABLES
from objdb.storage.engine import Visibility
from objdb.storage.rows import (
    Current,
    Row,
    TransactionRow,
    decode_row,
    decode_transaction,
    unsealed,
)

Chain = list[tuple[Tid, int]]
_PIECE = 500  # rows
_LAST_KEY = b"\xff" * 17


class BerkeleyRows:
    """The reading part of the Berkeley DB engine."""

    name: str
    visibility: Visibility
    has_checksums: bool
    _environment: Any  # an Environment, or its replacement that raises
    _facts: Facts
    _in_versions: dict[Oid, Current]

    def _decode(self, oid: Oid, tid: Tid, data: bytes) -> Row:
        if self.has_checksums:
            data = unsealed(oid + tid, data, self.name)
        return decode_row(tid, data)

    def _data_bytes(self, oid: Oid, tid: Tid, data: bytes) -> int:
        """Return the length of the record in the bytes of a row."""
        return len(self._decode(oid, tid, data).data or b"")

    def _decode_transaction(self, tid: Tid, data: bytes) -> TransactionRow:
        if self.has_checksums:
            data = unsealed(tid, data, self.name)
        return decode_transaction(tid, data[FACTS_BYTES:])

    def row(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        while True:
            current = self._environment.get("current", oid)
            if current is not None and current[:8] == tid:
                return self._decode(oid, tid, current[8:])
            found = self._environment.get("old", oid + tid)
            if found is not None:
                return self._decode(oid, tid, found)
            if self._is_still(oid, current):
                return None

    def before(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        while True:
            current = self._environment.get("current", oid)
            if current is not None and current[:8] < tid:
                return self._decode(oid, current[:8], current[8:])
            found = self._environment.last_before("old", oid + tid)
            if self._is_still(oid, current):
                if found is None or found[0][:8] != oid:
                    return None
                return self._decode(oid, found[0][8:], found[1])

    def after(self, oid: Oid, tid: Tid) -> Row | None:
        """See `IEngine`."""
        while True:
            current = self._environment.get("current", oid)
            found = self._environment.first_after("old", oid + tid)
            if self._is_still(oid, current):
                if found is not None and found[0][:8] == oid:
                    return self._decode(oid, found[0][8:], found[1])
                if current is not None and current[:8] > tid:
                    return self._decode(oid, current[:8], current[8:])
                return None

    def _is_still(self, oid: Oid, current: bytes | None) -> bool:
        """Whether *current*, read before a row in `old`, was not rolled back meanwhile."""
        if current is None or current[:8] < self.visibility.before:
            return True
        return bool(self._environment.get("current", oid, 8) == current[:8])

    def current(self, oids: Iterable[Oid]) -> dict[Oid, Current | None]:
        """See `IEngine`."""
        found: dict[Oid, Current | None] = {}
        largest, in_versions = self._facts.max_oid.to_bytes(8, "big"), self._in_versions
        get = self._environment.get
        for oid in oids:
            head = None if oid > largest else get("current", oid, 8)
            if head is not None and head > self.visibility.committed_tid:
                row = self.before(oid, next_tid(self.visibility.committed_tid))
                head = None if row is None else row.tid
            if head is None:
                found[oid] = None
            else:
                found[oid] = in_versions.get(oid) or Current(head)
        return found

    def in_versions(self) -> dict[Oid, Current]:
        """See `IEngine`."""
        return dict(self._in_versions)

    def had_versions(self) -> bool:
        """See `IEngine`."""
        return self._facts.had_versions

    def chains(self) -> Iterator[tuple[Oid, Chain]]:
        """See `IEngine`."""
        start = b""
        while True:
            bound = self.visibility.before
            piece = self._environment.piece("current", start, b"\xff" * 8, _PIECE)
            if not piece:
                return
            chains: dict[Oid, Chain] = {oid: [] for oid, _ in piece}
            self._add_old(chains, piece[0][0], piece[-1][0])
            for oid, value in piece:
                if value[:8] >= bound:  # it may be rolled back: read this object separately
                    yield oid, self._chain_of(oid, bound)
                    continue
                last = value[:8], self._data_bytes(oid, value[:8], value[8:])
                yield oid, [*(each for each in chains[oid] if each[0] < last[0]), last]
            start = piece[-1][0] + b"\0"

    def _add_old(self, chains: dict[Oid, Chain], first: Oid, last: Oid) -> None:
        start, stop = first, last + b"\xff" * 8
        while rows := self._environment.piece("old", start, stop, _PIECE):
            for key, value in rows:
                if key[:8] in chains:
                    size = self._data_bytes(key[:8], key[8:], value)
                    chains[key[:8]].append((key[8:], size))
            start = rows[-1][0] + b"\0"

    def _chain_of(self, oid: Oid, bound: Tid) -> Chain:
        chain: Chain = []
        row = self.after(oid, NO_TID)
        while row is not None and row.tid < bound:
            chain.append((row.tid, len(row.data or b"")))
            row = self.after(oid, row.tid)
        return chain

    # -- transactions

    def transaction(self, tid: Tid) -> TransactionRow | None:
        """See `IEngine`."""
        data = self._environment.get("transactions", tid)
        return None if data is None else self._decode_transaction(tid, data)

    def transactions(
        self, start: Tid, stop: Tid, newest_first: bool = False
    ) -> Iterator[TransactionRow]:
        """See `IEngine`."""
        stop = min(stop, self.visibility.committed_tid)
        while start <= stop:
            rows = self._environment.piece("transactions", start, stop, _PIECE, newest_first)
            if not rows:
                return
            for tid, data in rows:
                yield self._decode_transaction(tid, data)
            if newest_first:
                stop = _tid_before(rows[-1][0])
            else:
                start = next_tid(rows[-1][0])

    def self_check(self) -> list[str]:
        """See `ISelfChecking`: reads every page, verifies every checksum, and, if no transaction
        is being committed, counts the objects. Detects pages of zeros first."""
        facts, count, is_quiet = self._facts, 0, True
        noted: list[str] = []  # valid unless a commit intervenes
        problems: list[str] = self._environment.find_blank_pages()
        for table in TABLES if not problems else ():
            start = b""
            try:
                while piece := self._environment.piece(table, start, _LAST_KEY, _PIECE):
                    if table == "versions":
                        noted += self._wrong_notes(piece)
                    else:
                        problems += self._damaged_rows(table, piece)
                    if table == "current":
                        count += len(piece)
                        committed_tid = self.visibility.committed_tid
                        is_quiet &= all(value[:8] <= committed_tid for _, value in piece)
                    start = piece[-1][0] + b"\0"
            except CorruptedDataError as error:
                problems.append(f"{table}: {error}")
        if is_quiet and facts is self._facts:
            if not problems and count != facts.objects:
                noted.append(
                    f"{self.name}: there are {count} objects, but {facts.objects} are noted"
                )
            problems += noted
        return problems

    def _wrong_notes(self, piece: list[tuple[bytes, bytes]]) -> Iterator[str]:
        for oid, value in piece:
            if self._environment.get("current", oid, 8) != value[:8]:
                yield f"{self.name}: object {format_oid(oid)} is wrongly noted as in a version"

    def _damaged_rows(self, table: str, piece: list[tuple[bytes, bytes]]) -> Iterator[str]:
        for key, value in piece:
            try:
                if table == "current":
                    self._decode(key, value[:8], value[8:])
                elif table == "old":
                    self._decode(key[:8], key[8:], value)
                else:
                    self._decode_transaction(key, value)
            except CorruptedDataError as error:
                yield str(error)


def _tid_before(tid: Tid) -> Tid:
    return (int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
