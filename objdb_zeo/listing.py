"""Transactions, histories and undo logs, as a server lists them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from objdb.ids import NO_TID, Tid
from objdb.storage.extension import dumps_extension
from objdb.storage.iteration import RevisionRecord, TransactionRecord
from objdb_zeo.messages import ProtocolError

_AT_ONCE = 200  # entries of an undo log, where they are filtered here
_TEXTS = ("id", "user_name", "description")

Ask = Callable[..., Any]


def batches(ask: Ask, start: Tid | None, stop: Tid) -> Iterator[TransactionRecord]:
    """Yield transactions, of which the extension's `iterate` gives many at once."""
    following: Tid | None = start or NO_TID
    while following is not None:
        begin = following
        found, following = ask("iterate", begin, stop)
        if following is not None and following <= begin:
            raise ProtocolError(f"the server lists transactions again from {following.hex()} on")
        for tid, status, user, description, extension, records in found:
            revisions = [RevisionRecord(oid, tid, data, "", txn) for oid, data, txn in records]
            yield TransactionRecord(tid, status, user, description, extension, revisions)


def one_by_one(call: Ask, start: Tid | None, stop: Tid | None) -> Iterator[TransactionRecord]:
    """Yield transactions, with ZEO's calls: one for each record."""
    number = call("iterator_start", start, stop)
    while (found := call("iterator_next", number)) is not None:
        tid, status, user, description, extension = found
        records = call("iterator_record_start", number, tid)
        revisions = []
        while (record := call("iterator_record_next", records)) is not None:
            oid, _, data, data_txn = record
            revisions.append(RevisionRecord(oid, tid, data, "", data_txn))
        pickled = dumps_extension(extension) if extension else b""
        yield TransactionRecord(tid, status, user, description, pickled, revisions)


def entry(found: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of an undo log or a history, with texts as text."""
    return {
        name: value.decode("utf-8", "replace")
        if name in _TEXTS and isinstance(value, bytes) else value
        for name, value in found.items()
    }


def moment(value: Any) -> Any:
    """Return a position or time as it is sent."""
    return value.timestamp() if isinstance(value, datetime) else value


def filtered(
    undo_log: Callable[[int, int], list[dict[str, Any]]], wanted: Any, filter: Callable[..., Any]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of an undo log that *filter* keeps; positions count only those. *wanted*: a
    `Span`."""
    position = begin = 0
    end = math.inf if wanted.limit is None else wanted.skip + wanted.limit
    while position < end:
        entries = undo_log(begin, begin + _AT_ONCE)
        for found in entries:
            if found["time"] < wanted.start:
                return
            if found["time"] > wanted.stop or not filter(found):
                continue
            if wanted.skip <= position < end:
                yield found
            position += 1
        if len(entries) < _AT_ONCE:
            return
        begin += _AT_ONCE
