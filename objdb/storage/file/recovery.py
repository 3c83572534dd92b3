"""Opening a log: find its end, bring the index up to date, and deal with what a crash left.

    is the index's checkpoint one of this log? ─► replay the log from there (or all)

The replay ends at the first place that is not a committed transaction:

    what is there                         what it is                    what is done
    nothing, or zeros to the end          space allocated ahead         nothing
    status `c`, nothing behind it         a commit that was not decided cut
    anything else that does not fit,
      not known to have been synced       a tail torn by a crash        cut, saved as .trN, logged
      known to have been synced           damage                        CorruptedDataError
      committed transactions behind it,
      and no index to tell                damage                        CorruptedDataError
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, Oid, Tid, format_tid
from objdb.storage.file.format import NUMBER, START, TRANSACTION, VOTED
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Header, Log
from objdb.storage.files import Files

logger = logging.getLogger("objdb.storage.file")

_COPY_CHUNK = 4 * 1024 * 1024
_ZEROS_CHUNK = 4096


@dataclass
class LogState:
    """Where a log ends, and what is true there."""

    end: int = START
    tid: Tid = NO_TID
    max_oid: int = 0
    objects: int = 0
    replayed: int = 0  # records


def open_log(log: Log, index: Index) -> LogState:
    """Return the state at the end of the log's last committed transaction, the index brought up
    to date. Nothing is cut: see `cut_tail`."""
    state = LogState()
    checkpoint = index.checkpoint
    known_tid, known_end = NO_TID, 0
    if checkpoint is not None:
        known_tid = checkpoint.tid
        if checkpoint.synced and _is_of(log, checkpoint.position, checkpoint.tid):
            known_end = max(checkpoint.position, index.synced_position())
            state = LogState(
                checkpoint.position, checkpoint.tid, checkpoint.max_oid, checkpoint.objects
            )
        else:
            logger.info("%s: the index is stale and is built again", log.file.path)
            index.clear()
    is_known = checkpoint is not None
    damage = replay(log, index, state)
    if damage and (state.end < known_end or (not is_known and _find_transaction(log, state))):
        raise damage
    if state.end < known_end or state.tid < known_tid:
        raise CorruptedDataError(
            f"{log.file.path} ends at position {state.end}, after transaction "
            f"{format_tid(state.tid)}, but {format_tid(known_tid)} had been committed to it. If "
            "an older copy was put here on purpose, remove the index beside it (.oidx) and open "
            "it again; else restore the file from a backup",
            path=log.file.path, position=state.end,
        )
    return state


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
    """Enter the transactions from `state.end` on into the index, up to the first thing that is
    none; return the damage that ended it, None where it ended quietly."""
    size, start = log.file.size(), state.end
    try:
        while True:
            header = next_transaction(log, state.end, size, state.tid)
            if header is None:
                return None
            if index.is_writable and state.end == start:
                log.file.sync()  # an entry is written only when its transaction is on the medium
            positions: dict[Oid, int] = {}
            for record in log.records(header):
                is_first = record.oid not in positions  # ZODB may write an object twice
                positions[record.oid] = record.place
                entry = index.get(record.oid)
                is_torn = entry is not None and entry[1] == NO_TID
                # An entry may be of this record or a later one, where the index is ahead. One of
                # an earlier record that this one does not lead to was left there by a pack.
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

    Raises `CorruptedDataError` for what is neither.
    """
    if position >= size:
        return None
    if log.file.read_at(TRANSACTION.size, position).count(0) == min(
        TRANSACTION.size, size - position
    ):
        if log.is_zero_from(position, size):
            return None
        raise log.damaged(position, "zeros, with something behind them")
    header = log.header(position, size)
    if header.status == VOTED:
        if log.is_zero_from(header.end, size):
            return None
        raise log.damaged(position, "a transaction that was not finished, with others behind it")
    if header.tid <= last_tid:
        raise log.damaged(position, f"transaction {format_tid(header.tid)} is not in order")
    log.check_crc(header)
    return header


def _find_transaction(log: Log, state: LogState) -> bool:
    """Whether a whole transaction, later than the last good one, follows further on."""
    size, position = log.file.size(), state.end + 1
    day = state.tid[:2]  # tids of the next weeks begin like this
    while position < size:
        block = log.file.read_at(_COPY_CHUNK, position)
        at = block.find(day) if day != NO_TID[:2] else 0
        while at >= 0:
            try:
                header = log.header(position + at, size)
                if header.tid > state.tid and header.status != VOTED:
                    log.check_crc(header)
                    for _ in log.records(header):
                        pass
                    return True
            except CorruptedDataError:
                pass
            at = block.find(day, at + 1) if day != NO_TID[:2] else at + 1
            if at >= len(block):
                break
        position += max(len(block) - 1, 1)
    return False


def cut_tail(log: Log, files: Files, state: LogState) -> None:
    """Remove what lies behind the end of the log. A torn tail is saved beside the file first."""
    size = log.file.size()
    if size <= state.end:
        return
    if not _is_quiet(log, state, size):
        saved = _save_tail(log, files, state.end, size)
        logger.warning(
            "%s: %d bytes after position %d, left by a crash and never acknowledged as "
            "committed, were cut off and saved as %s", log.file.path, size - state.end,
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
    saved = files.open(path, "c")
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
