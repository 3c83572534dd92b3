"""What a server lets its clients cost, so that one of them cannot hurt the others.

    connect ─► clients, clients_per_address ─► register_seconds ─► staged_bytes ─► vote_seconds
                                                   │
               what waits to be sent: at HIGH_WATER_BYTES no more calls of that client are
               taken in; above pending_bytes (others' commits) it is cut off

The log says who was cut off. What one address causes over and over is written a few times only.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields
from typing import Any

from objdb.errors import UsageError
from objdb_zeo.messages import MAX_FRAME_BYTES

HIGH_WATER_BYTES = 1 << 20
# How many calls of one client are taken in before it is the next one's turn: while others have
# called within COMPANY_SECONDS, and while none has; and how long it then waits, in turns, for them.
TURN_CALLS, ALONE_CALLS, COMPANY_SECONDS, TURN_PAUSES = 4, 16, 0.05, 3
# Calls of one client that take long, commits aside: at work, and with those that wait.
THREADS_OF_ONE, CALLS_IN_THREADS = 4, 64
TRANSACTIONS = 1000  # of one client at once
ITERATORS = 10_000
_VARIABLE = re.compile(r"[\d'\"]")
_LINES, _LINES_SECONDS = 10, 10.0


@dataclass(frozen=True)
class Limits:
    """The limits of a server. *frame_bytes*: of the largest message; *staged_bytes*: of the
    transactions of a client before their votes; *register_seconds*: from connecting to
    registering; *vote_seconds*: from a vote to its end, in which others cannot commit; None: any
    time. `UsageError` for a value that a limit cannot have."""

    clients: int = 1000
    clients_per_address: int = 500
    frame_bytes: int = MAX_FRAME_BYTES
    pending_bytes: int = 64 << 20
    staged_bytes: int = 1 << 30
    register_seconds: float = 10.0
    vote_seconds: float | None = 30.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise UsageError(f"{limit.name} is {value!r}; it is a number greater than 0")


class Sparing(logging.Filter):
    """Lets a logger write the same sentence about the same address (`extra={"host": …}`) ten times
    in ten seconds; then it says how many it left out."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[Any, str], list[float]] = {}  # [begin, lines]

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        key = getattr(record, "host", None), _kind(record)
        window = self._windows.get(key)
        if window is None or record.created - window[0] >= _LINES_SECONDS:
            left_out = 0 if window is None else int(window[1]) - _LINES
            if len(self._windows) > 1000:
                self._windows.clear()
            window = self._windows[key] = [record.created, 0]
            if left_out > 0:
                _append(record, f" ({left_out} lines like this one were left out)")
        window[1] += 1
        if window[1] == _LINES:
            _append(record, f" (more lines like this one are left out for {_LINES_SECONDS:.0f} s)")
        return window[1] <= _LINES


def _kind(record: logging.LogRecord) -> str:
    """Return what lines of one kind share: the sentence, and the beginning of the reason in it, up
    to a number or a quotation. The first argument says who."""
    reasons = map(str, record.args[1:]) if isinstance(record.args, tuple) else ()
    return f"{record.msg} {_VARIABLE.split(' '.join(reasons), maxsplit=1)[0]}"


def _append(record: logging.LogRecord, text: str) -> None:
    record.msg, record.args = record.getMessage() + text, None


def sparing_logger(name: str) -> logging.Logger:
    """Return the logger *name*, made `Sparing`."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, Sparing) for each in logger.filters):
        logger.addFilter(Sparing())
    return logger
