"""Group commit: transactions that wait for the medium together share one sync.

    thread A   decide ─ join ─ lead: [ sync ] publish A, hand the lead to B
    thread B            decide ─ join ─ wait ──────────── lead: [ sync ] publish B, C
    thread C                decide ─ join ─ wait ───────────────────────────┘

The first to join leads: it syncs once for all who have joined by then, publishes them in the
order they joined, which is tid order, and passes the lead on to one of those who came
meanwhile. Nobody is published before a sync that began after it was decided has returned.

A thread that decides several transactions joins with each of them, and waits when it has
decided them all. Until then it does not lead, so nobody waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from objdb.errors import StorageFailedError
from objdb.ids import Oid, Tid

# When a commit returns: when it is on the medium, or when the operating system has it.
Durability = Literal["sync", "os"]


class Ticket:
    """A committed transaction that waits to be durable. *finished* is called with its tid when it
    is, before others see it. *token* is the engine's, None for one that only waits; *oids* are what
    it wrote."""

    __slots__ = ("error", "finished", "is_settled", "leads", "oids", "tid", "token", "wake")

    def __init__(
        self, tid: Tid, finished: Callable[[Tid], object], token: Any = None,
        oids: Iterable[Oid] = (),
    ) -> None:
        self.tid = tid
        self.finished = finished
        self.token = token
        self.oids = oids
        self.error: BaseException | None = None
        self.is_settled = False  # durable and published, or failed
        self.leads = False
        self.wake: threading.Lock | None = None  # held until there is something to do


class GroupCommit:
    """Makes tickets durable in groups.

    *sync* puts everything written so far on the medium; *publish(ticket)* lets others see it.
    `_mutex` protects `_waiting` and `_is_led`. `unpublished` is replaced, never changed, so it
    can be read without the lock: tickets leave it only after they were published.
    """

    def __init__(self, sync: Callable[[], None], publish: Callable[[Ticket], None]) -> None:
        self._sync = sync
        self._publish = publish
        self._mutex = threading.Lock()
        self._waiting: list[Ticket] = []
        self._is_led = False
        self.unpublished: tuple[Ticket, ...] = ()

    def join(self, ticket: Ticket, *, waits_at_once: bool = True) -> None:
        """Enter a ticket; called in tid order, by the holder of the commit slot."""
        with self._mutex:
            self._waiting.append(ticket)
            self.unpublished += (ticket,)
            if waits_at_once:
                self._line_up(ticket)

    def _line_up(self, ticket: Ticket) -> None:
        """Let the ticket lead, or else be woken. `_mutex` is held."""
        if self._is_led:
            ticket.wake = threading.Lock()
            ticket.wake.acquire()
        else:
            self._is_led = ticket.leads = True

    def wait(self, ticket: Ticket) -> None:
        """Return when the ticket's transaction is durable and published.

        Raises `StorageFailedError` when the sync failed: the outcome is unknown.
        """
        if ticket.wake is None and not ticket.leads:
            with self._mutex:
                if not ticket.is_settled:
                    self._line_up(ticket)
        interrupt = None
        while ticket.wake is not None and not (ticket.leads or ticket.is_settled):
            try:
                ticket.wake.acquire()  # released by the leader
            except KeyboardInterrupt as error:
                # The transaction is decided, and this thread may be the next to lead: the
                # interrupt has to wait for the sync.
                interrupt = error
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        if interrupt is not None:
            raise interrupt

    def _lead(self) -> None:
        with self._mutex:
            group, self._waiting = self._waiting, []
        try:
            self._make_durable(group)
        finally:
            with self._mutex:
                self.unpublished = self.unpublished[len(group) :]
                for ticket in group:
                    ticket.is_settled = True
                following = next((t for t in self._waiting if t.wake is not None), None)
                if following is None:
                    self._is_led = False
                else:
                    following.leads = True
                    group.append(following)
            for ticket in group:
                if ticket.wake is not None:
                    with suppress(RuntimeError):  # it has gone on already
                        ticket.wake.release()

    def _make_durable(self, group: list[Ticket]) -> None:
        try:
            self._sync()
        except BaseException as error:
            for ticket in group:
                ticket.error = _unknown_outcome(error)
            if isinstance(error, Exception):
                return
            raise
        for ticket in group:
            try:
                self._publish(ticket)
            except BaseException as error:  # of the callback: the transaction is committed
                ticket.error = error


def _unknown_outcome(error: BaseException) -> StorageFailedError:
    return StorageFailedError(
        f"the sync of a commit failed ({error!r}): whether the transaction is on "
        "the medium is unknown, so the storage commits no more. Close it, see to the disk, and "
        "open it again: what it then shows is what was committed"
    )
