"""What the server asks a client, on behalf of a call that is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from objdb.errors import ConflictError, ObjdbError
from objdb.ids import Oid, Tid
from objdb_zeo.protocol.served import Resolve

ANSWER_SECONDS = 60.0


class AskedInVain(ObjdbError):
    """A client did not answer."""


class Question:
    """What a client is asked."""

    def __init__(self) -> None:
        self.is_answered = threading.Event()
        self.is_known = False
        self.answer: Any = None


def resolver(
    asks: Callable[..., Any] | None, seconds: float | None = ANSWER_SECONDS
) -> Resolve | None:
    """Return a function that lets the client resolve conflicts, for so many seconds altogether;
    None without one to ask."""
    if asks is None:
        return None
    deadline = time.monotonic() + (ANSWER_SECONDS if seconds is None else seconds)

    def resolve(
        oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        try:
            question = "resolve", oid, old, committed, new, tuple(serials)
            merged, class_name = asks(*question, seconds=max(0.0, deadline - time.monotonic()))
        except AskedInVain:
            merged, class_name = None, None
        if merged is None:
            raise ConflictError(oid=oid, serials=serials, class_name=class_name)
        return bytes(merged)

    return resolve
