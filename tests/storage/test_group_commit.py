"""Group commit: who leads, whatever comes between."""

from __future__ import annotations

import threading
from typing import Any

from objdb.ids import Tid, oid_from_int
from objdb.storage.durability import GroupCommit, Ticket


class Interrupted:
    """A lock whose first acquire gets it, and is interrupted before it returns."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._is_first = True
        self.release, self.locked = lock.release, lock.locked

    def acquire(self) -> bool:
        """Take the lock."""
        self._lock.acquire()
        if self._is_first:
            self._is_first = False
            raise KeyboardInterrupt
        return True


def test_an_interrupt_when_it_is_ones_turn() -> None:
    """An interrupt at the moment when a thread is given the lead comes out after its sync."""
    published: list[Tid] = []
    group: GroupCommit[Ticket] = GroupCommit(
        lambda: None, lambda ticket: published.append(ticket.tid)
    )
    first, second = (Ticket(oid_from_int(number), lambda tid: None) for number in (1, 2))
    raised: list[BaseException] = []
    group.join(first)

    def sync_first() -> None:
        group.join(second)  # while the first one leads, so that the second leads next
        second.wake = Interrupted(second.wake)  # type: ignore[assignment]
        thread.start()

    def wait() -> None:
        try:
            group.wait(second)
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    group._sync = lambda: sync_first() if not published else None
    group.wait(first)
    thread.join(10)
    assert not thread.is_alive() and raised and published == [first.tid, second.tid]
    assert group.unpublished == ()
