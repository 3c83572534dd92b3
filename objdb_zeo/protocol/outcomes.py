"""What became of the last transactions, for clients that did not get the reply."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from objdb.ids import MAX_TID, Tid

REMEMBERED = 10_000


class Outcomes:
    """The tids of the last commits, by a name that their client gave them; of all that were made
    after the transaction *since*."""

    def __init__(self, since: Tid) -> None:
        self._lock = threading.Lock()  # covers the attributes below
        self._since = since
        self._tids: OrderedDict[Any, Tid] = OrderedDict()

    def note(self, name: Any, tid: Tid) -> None:
        """Note that a transaction is committed."""
        with self._lock:
            self._tids[name] = tid
            if len(self._tids) > REMEMBERED:
                _, self._since = self._tids.popitem(last=False)

    def give_up(self) -> None:
        """Note that nobody knows whether a transaction is committed: the storage has failed."""
        with self._lock:
            self._since = MAX_TID

    def find(self, name: Any) -> tuple[Tid | None, Tid]:
        """Return (the tid of a transaction, None if it is not known to be committed; the tid up to
        which commits are not known here)."""
        with self._lock:
            return self._tids.get(name), self._since
