"""Recovery: find the end of a log, bring its index up to date, and cut a torn tail.

    is the index's checkpoint one of this log? ─► replay the log from there (or all)

The replay ends at the first position without a committed transaction. Transactions that the index
notes as synced were acknowledged; those after them, if the index belongs to this log, were not.

    the bytes there                            the index is      without an index, or with one
                                               of this log       of another file
    none, or zeros to the end                  nothing is done   nothing is done
    an uncommitted transaction (status `c`),
      with no whole transaction after it       cut               cut
    anything else                              cut               CorruptedDataError
      … before the synced position             CorruptedDataError
    no transaction is whole                    cut               CorruptedDataError

A cut tail is saved beside the file as .trN, and logged. A read-only file is never cut: it shows
the whole transactions, logs a warning, and `tail_problem` reports to the checks.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, Oid, Tid, format_tid
from objdb.storage.file.checksums import check_crc
from objdb.storage.file.format import NUMBER, START, TRANSACTION, VOTED
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Header, Log
from objdb.storage.files import Files

logger = logging.getLogger("objdb.storage.file")

_COPY_CHUNK = 4 * 1024 * 1024
_ZEROS_CHUNK = 4096
_BETWEEN_LINES_SECONDS = 5.0


@dataclass
class LogState:
    """The end of a log, and the facts there."""

    end: int = START
    tid: Tid = NO_TID
    max_oid: int = 0
    objects: int = 0
    replayed: int = 0  # records


def open_log(log: Log, index: Index, *, read_only: bool = False) -> LogState:
    """Bring the index up to date, and return the state at the end of the log's last committed
    transaction. Nothing is cut: see `cut_tail`. `CorruptedDataError` if the tail must not be
    cut."""
    state = LogState()
    checkpoint = index.checkpoint
    known_tid, known_end, is_known = NO_TID, 0, False
    if checkpoint is not None:
        known_tid = checkpoint.tid
        is_known = _is_of(log, checkpoint.position, checkpoint.tid)
        if checkpoint.synced and is_known:
            known_end = max(checkpoint.position, index.synced_position())
            state = LogState(
                checkpoint.position, checkpoint.tid, checkpoint.max_oid, checkpoint.objects
            )
        else:
            logger.info("%s: the index is stale and is rebuilt", log.file.path)
            index.clear()
    damage = replay(log, index, state)
    if damage and state.end < known_end:
        raise damage
    if state.end < known_end or state.tid < known_tid:
        raise CorruptedDataError(
            f"{log.file.path} ends at position {state.end}, after transaction "
            f"{format_tid(state.tid)}, but {format_tid(known_tid)} was committed to it. If this "
            "is intentionally an older copy, remove the index beside it (.oidx) and reopen it; "
            "otherwise restore the file from a backup",
            path=log.file.path, position=state.end,
        )
    if damage and not is_known:
        _require_undecided(log, state, damage, read_only)
    return state


def _require_undecided(
    log: Log, state: LogState, damage: CorruptedDataError, read_only: bool
) -> None:
    """Raise `CorruptedDataError` for the bytes after the last whole transaction, unless they are
    an uncommitted one; for a read-only file only log a warning, if no whole transaction follows
    them."""
    size = log.file.size()
    found = find_transaction(log, state)
    if found is None and _is_undecided(log, state):
        return
    if state.end == START:
        raise CorruptedDataError(
            f"{log.file.path} has no whole transaction: it is damaged, or a copy truncated inside "
            f"its first transaction ({damage.what} at position {damage.position}; the file has "
            f"{size} bytes). Nothing was removed. Copy it again, or restore it from a backup",
            path=log.file.path, position=damage.position,
        ) from damage
    if found is None and read_only:
        logger.warning("%s", _tail_text(log, state.end, state.tid, damage))
        return
    behind = "" if found is None else f" Whole transactions follow, at position {found}."
    raise CorruptedDataError(
        f"{_tail_text(log, state.end, state.tid, damage)}.{behind} Without the index (.oidx) it "
        "is not known whether they were acknowledged, so nothing was removed. Restore the file "
        "from a backup"
        + ("" if found else "; or copy the whole transactions to a new file: objdb migrate"),
        path=log.file.path, position=damage.position,
    ) from damage


def _is_undecided(log: Log, state: LogState) -> bool:
    """Whether the bytes after the last whole transaction are of one that never got its status
    byte."""
    block = log.file.read_at(TRANSACTION.size, state.end)
    if len(block) < TRANSACTION.size:
        return False
    tid, _, status = TRANSACTION.unpack(block)[:3]
    return bool(status == VOTED and tid > state.tid)


def _tail_text(log: Log, end: int, tid: Tid, damage: CorruptedDataError) -> str:
    count = log.file.size() - end
    return (
        f"{log.file.path}: {count} bytes after the last whole transaction ({format_tid(tid)}, "
        f"which ends at position {end}) are not a transaction: {damage.what}, at position "
        f"{damage.position}"
    )


def tail_problem(log: Log, end: int, tid: Tid) -> str | None:
    """Return the problem with the bytes after the last whole transaction of a file that another
    process may be writing; None if there is none."""
    size = log.file.size()
    try:
        header = next_transaction(log, end, size, tid)
        if header is not None:  # if it is whole, a writing process has just finished it
            for _ in log.records(header):
                pass
    except CorruptedDataError as error:
        return _tail_text(log, end, tid, error)
    if header is None and not log.is_zero_from(end, size):
        return (
            f"{log.file.path}: {size - end} bytes after the last whole transaction "
            f"({format_tid(tid)}, which ends at position {end}) are an uncommitted transaction. "
            "A process is writing it, or a crash left it; then opening the file for writing "
            "saves and removes it"
        )
    return None


def _is_of(log: Log, position: int, tid: Tid) -> bool:
    """Whether the transaction *tid* ends at *position*: the index belongs to this log."""
    if position == START:
        return tid == NO_TID
    length = log.file.read_at(NUMBER.size, position - NUMBER.size)
    if len(length) < NUMBER.size:
        return False
    start = position - NUMBER.size - NUMBER.unpack(length)[0]
    try:
        return start >= START and log.header(start, position).tid == tid
    except CorruptedDataError:
        return False


def replay(log: Log, index: Index, state: LogState) -> CorruptedDataError | None:
    """Enter the transactions from `state.end` on into the index, up to the first bytes that are
    not a transaction; return the damage that ended it, None if there is none."""
    size, start = log.file.size(), state.end
    progress = _Progress(log, "building the index", size)
    try:
        while True:
            progress.tell(state.end)
            header = next_transaction(log, state.end, size, state.tid)
            if header is None:
                return None
            if index.is_writable and state.end == start:
                log.file.sync()  # an entry is written only when its transaction is durable
            positions: dict[Oid, int] = {}
            for record in log.records(header):
                is_first = record.oid not in positions  # ZODB may write an object twice
                positions[record.oid] = record.place
                entry = index.get(record.oid)
                is_torn = entry is not None and entry[1] == NO_TID
                # An entry may be of this record or, if the index is ahead, a later one. A pack
                # left an entry of an earlier record that this one does not refer to.
                is_new = entry is None or is_torn or (
                    entry[0] & POSITION >= record.position and not record.previous
                )
                state.objects += is_first and is_new
            index.reserve(positions)
            index.set_many(positions, header.tid)
            if positions:
                state.max_oid = max(state.max_oid, int.from_bytes(max(positions), "big"))
            state.end, state.tid = header.end, header.tid
            state.replayed += len(positions)
    except CorruptedDataError as error:
        return error


def next_transaction(log: Log, position: int, size: int, last_tid: Tid) -> Header | None:
    """Return the committed transaction at *position*, None at the end of the log.

    Raises `CorruptedDataError` otherwise.
    """
    if position >= size:
        return None
    if log.file.read_at(TRANSACTION.size, position).count(0) == min(
        TRANSACTION.size, size - position
    ):
        if log.is_zero_from(position, size):
            return None
        raise log.damaged(position, "zeros, followed by other bytes")
    header = log.header(position, size)
    if header.status == VOTED:
        if log.is_zero_from(header.end, size):
            return None
        raise log.damaged(position, "an unfinished transaction, followed by others")
    if header.tid <= last_tid:
        raise log.damaged(position, f"transaction {format_tid(header.tid)} is not in order")
    return header._replace(has_checksum=True) if check_crc(log, header) else header


class _Progress:
    """Logs the progress of long work, every few seconds."""

    def __init__(self, log: Log, what: str, size: int) -> None:
        self._what = f"{log.file.path}: {what}"
        self._size = size
        self._next = time.monotonic() + _BETWEEN_LINES_SECONDS

    def tell(self, position: int) -> None:
        """Log the *position*, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _BETWEEN_LINES_SECONDS
            logger.warning(
                "%s: %d of %d MiB (%d %%)", self._what, position >> 20, self._size >> 20,
                100 * position // self._size,
            )


# Bytes that can begin a transaction: a tid, a length below 2**48, a status.
_BEGINNING = re.compile(rb"(?=(.{8})\0\0.{6}[ pu])", re.DOTALL)


def find_transaction(log: Log, state: LogState) -> int | None:
    """Return the position of the first whole transaction, with a later tid, after the last
    undamaged one; None if there is none."""
    size, position = log.file.size(), state.end + 1
    progress = _Progress(log, "looking for transactions after the damage", size)
    while position < size:
        progress.tell(position)
        block = log.file.read_at(_COPY_CHUNK, position)
        for found in _BEGINNING.finditer(block):
            at = found.start()
            if found[1] > state.tid and _fits(block, at, size - position):
                with suppress(CorruptedDataError):
                    header = log.header(position + at, size)
                    has_crc = check_crc(log, header)
                    if has_crc | sum(1 for _ in log.records(header)):
                        return position + at
        position += max(len(block) - TRANSACTION.size, 1)
    return None


def _fits(block: bytes, at: int, rest: int) -> bool:
    """Whether the lengths in the header at a place in *block* fit into the file, and the length at
    the transaction's end, if that is in the block, is the same."""
    if at + TRANSACTION.size > len(block):
        return False
    _, length, _, user, description, extension = TRANSACTION.unpack_from(block, at)
    end = at + length
    if length < TRANSACTION.size + user + description + extension or end + NUMBER.size > rest:
        return False
    is_here = end + NUMBER.size <= len(block)
    return not is_here or block[end : end + NUMBER.size] == block[at + 8 : at + 16]


def cut_tail(log: Log, files: Files, state: LogState) -> None:
    """Cut the file at the end of the log. A torn tail is first saved beside the file."""
    size = log.file.size()
    if size <= state.end:
        return
    if not _is_quiet(log, state, size):
        saved = _save_tail(log, files, state.end, size)
        logger.warning(
            "%s: a torn tail of %d bytes after position %d, left by a crash and never "
            "acknowledged, was cut and saved as %s", log.file.path, size - state.end,
            state.end, saved,
        )
    log.file.truncate(state.end)
    log.file.sync()


def _is_quiet(log: Log, state: LogState, size: int) -> bool:
    try:
        return next_transaction(log, state.end, size, state.tid) is None
    except CorruptedDataError:
        return False


def _save_tail(log: Log, files: Files, start: int, size: int) -> str:
    number = 0
    while files.exists(f"{log.file.path}.tr{number}"):
        number += 1
    path = f"{log.file.path}.tr{number}"
    saved = files.open(path, "p")
    files.keep_mode(path, log.file.path)
    while size > start and log.is_zero_from(max(start, size - _ZEROS_CHUNK), size):
        size = max(start, size - _ZEROS_CHUNK)  # space allocated ahead is not worth saving
    try:
        for position in range(start, size, _COPY_CHUNK):
            chunk = log.file.read_at(min(_COPY_CHUNK, size - position), position)
            saved.write_at(chunk, position - start)
        saved.sync()
    finally:
        saved.close()
    return path
