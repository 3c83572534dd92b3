"""Finding a transaction by its tid, in a log that has no index of them.

    low                        mid                                  high
     ├──────────────────────────┼─────────────────────────────────────┤
     │ before: tids <= wanted   └► read on to the first bytes that     │ from here: tids > wanted
     │                             are a tid between those of low      │
     │                             and high                            │

Tids grow along the file, so binary search works if the next transaction can be found from any
position. Those 8 bytes are at the beginning of a transaction, or in a data record, 16 bytes before
the position of its transaction. A transaction found this way is accepted if everything matches:
both lengths, the transaction before it, and its first data record, which must have the position
of the transaction.

An attacker who knows the position of an object's data in the file could forge bytes that pass for
transactions. If the search meets a contradiction, the log is scanned from its beginning instead;
if not, an object's chain of records reveals the forgery: see `Generation.is_genuine`.
"""

from __future__ import annotations

from objdb.errors import CorruptedDataError
from objdb.ids import Tid, next_tid
from objdb.storage.file.format import NUMBER, RECORD, START, VOTED
from objdb.storage.file.log import Header, Log

_NEAR_BYTES = 8192  # within this distance, transactions are scanned one after the other
_FIRST_WINDOW, _LARGEST_WINDOW = 4096, 1024 * 1024
# After a record's tid: its previous position, and the position of its transaction.
_TRANSACTION_AT = 16


def position_behind(log: Log, end: int, last: Tid, tid: Tid) -> int:
    """Return the end position of the last transaction with a tid not greater than *tid*, `START`
    if there is none. The log ends at *end*, with the transaction *last*."""
    if tid >= last or end == START:
        return end
    try:
        return _search(log, end, last, tid)
    except CorruptedDataError:
        return position_by_scanning(log, end, tid)


def position_by_scanning(log: Log, end: int, tid: Tid, start: int = START) -> int:
    """Return the same as `position_behind`, by scanning the transactions."""
    while start < end:
        header = log.header(start, end)
        if header.tid > tid:
            break
        start = header.end
    return start


def _search(log: Log, end: int, last: Tid, tid: Tid) -> int:
    first = log.header(START, end)
    if first.tid > tid:
        return START
    low, low_tid, high, high_tid = first.end, first.tid, end, next_tid(last)
    probe = high  # no transaction was found from here to high
    while probe - low > _NEAR_BYTES:
        middle = (low + probe) // 2
        found = _Search(log, low, low_tid, high, high_tid).transaction_from(middle, probe)
        if found is None:
            probe = middle
        elif found.tid <= tid:
            low, low_tid = found.end, found.tid
            probe = max(probe, low)
        else:
            high = probe = found.position
            high_tid = found.tid
    return position_by_scanning(log, high, tid, low)


class _Search:
    """Searches for a transaction between two others, at *low* and *high*."""

    def __init__(self, log: Log, low: int, low_tid: Tid, high: int, high_tid: Tid) -> None:
        self._log = log
        self._low, self._low_tid = low, low_tid
        self._high, self._high_tid = high, high_tid
        self._prefix = _common_prefix(low_tid, high_tid)

    def transaction_from(self, position: int, stop: int) -> Header | None:
        """Return the first transaction found from *position* on, by its header or a record."""
        size = _FIRST_WINDOW
        while position < stop:
            block = self._log.file.read_at(size + RECORD.size, position)
            at = block.find(self._prefix)
            while 0 <= at < size:
                if self._low_tid < block[at : at + 8] < self._high_tid:
                    header = self._transaction_near(block, at, position)
                    if header is not None:
                        return header
                at = block.find(self._prefix, at + 1)
            position += size
            size = min(4 * size, _LARGEST_WINDOW)
        return None

    def _transaction_near(self, block: bytes, at: int, position: int) -> Header | None:
        """Return the transaction with the tid at *at*, if it is real."""
        tid = block[at : at + 8]
        places = [position + at]
        if len(block) >= at + _TRANSACTION_AT + NUMBER.size:
            places.append(NUMBER.unpack_from(block, at + _TRANSACTION_AT)[0])
        for place in places:
            if self._low <= place < self._high and self._is_transaction(place, tid):
                return self._log.header(place, self._high)
        return None

    def _is_transaction(self, position: int, tid: Tid) -> bool:
        log = self._log
        try:
            header = log.header(position, self._high)
            if header.tid != tid or header.status == VOTED:
                return False
            if position > self._low:
                before = log.header_before(position)
                if before.position < self._low or not self._low_tid < before.tid < tid:
                    return False
            if header.body < header.end - NUMBER.size:
                block = log.file.read_at(RECORD.size, header.body)
                record_tid, place = RECORD.unpack(block)[1], RECORD.unpack(block)[3]
                return bool(record_tid == tid and place == position)
        except CorruptedDataError:
            return False
        return True


def _common_prefix(one: bytes, other: bytes) -> bytes:
    size = 0
    while size < 7 and one[size] == other[size]:
        size += 1
    return one[:size]
