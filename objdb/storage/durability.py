"""Group commit: transactions that wait for the disk at the same time share one sync.

    thread A   commit ─ join ─ lead: [ sync ] publish A, hand the lead to B
    thread B            commit ─ join ─ wait ──────────── lead: [ sync ] publish B, C
    thread C                commit ─ join ─ wait ───────────────────────────┘

The first ticket to join leads: its thread syncs once for all tickets joined by then, publishes
them in the order they joined, which is tid order, and passes the lead to one that joined
meanwhile. No transaction is published before a sync that began after its commit has returned.

A thread that commits several transactions joins with each of them, and waits when it has
committed them all. Until then it does not lead, so no other thread waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from objdb.errors import StorageFailedError
from objdb.ids import Oid, Tid

# When a commit returns: after a sync, or once the operating system has the data.
Durability = Literal["sync", "os"]


# A thread interrupted more often while it waits has a different problem.
_MOST_INTERRUPTS = 1000


class Ticket:
    """A committed transaction that waits to be durable. *finished* is then called with its tid,
    before it becomes visible. *token* is the engine's, None for a ticket that only waits; *oids*
    are those of its writes."""

    __slots__ = ("error", "finished", "is_settled", "is_told", "oids", "tid", "token", "wake")

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
        self.is_told = False  # *finished* was called
        self.wake: threading.Lock | None = None  # held until the ticket is settled, or leads


class GroupCommit:
    """Makes tickets durable in groups.

    *sync* makes all earlier writes durable; *publish(ticket)* makes the transaction visible, and
    is called again if it was interrupted. `_mutex` protects `_leader`, the ticket that leads.
    `unpublished` is replaced, never changed, so it can be read without the lock: tickets leave it
    only after they were published.

    An exception that another thread or a signal raises here is delayed until the committed
    transactions are published. So each step can be repeated, and continues from where it was.
    """

    def __init__(self, sync: Callable[[], None], publish: Callable[[Ticket], None]) -> None:
        self._sync = sync
        self._publish = publish
        self._mutex = threading.Lock()
        self._leader: Ticket | None = None
        self.unpublished: tuple[Ticket, ...] = ()

    def join(self, ticket: Ticket, *, waits_at_once: bool = True) -> None:
        """Enter a ticket; called in tid order, by the holder of the commit slot."""
        with self._mutex:
            if not ticket.is_settled and self.unpublished[-1:] != (ticket,):
                self.unpublished += (ticket,)
            if waits_at_once:
                self._line_up(ticket)

    def _line_up(self, ticket: Ticket) -> None:
        """Let the ticket lead, or wait to be woken. `_mutex` is held."""
        if self._leader is None and not ticket.is_settled:
            self._leader = ticket
        elif ticket.wake is None:
            wake = threading.Lock()
            wake.acquire()
            ticket.wake = wake

    def wait(self, ticket: Ticket) -> None:
        """Return when the ticket's transaction is durable and published.

        Raises `StorageFailedError` when the sync failed: the outcome is unknown.
        """
        interrupt = None
        for _ in range(_MOST_INTERRUPTS):
            if ticket.is_settled and self._leader is not ticket:
                break
            try:
                self._wait(ticket)
            except BaseException as error:
                interrupt = error
        if ticket.error is not None:
            raise ticket.error
        if interrupt is not None:
            raise interrupt

    def _wait(self, ticket: Ticket) -> None:
        if ticket.wake is None and self._leader is not ticket:
            with self._mutex:
                self._line_up(ticket)
        while self._leader is not ticket and not ticket.is_settled:
            if ticket.wake is not None:
                ticket.wake.acquire()  # released by the leader
                with self._mutex:  # until then the thread that wakes is not done
                    pass
        if self._leader is ticket:
            self._lead()

    def _lead(self) -> None:
        group = self.unpublished
        self._make_durable(group)
        with self._mutex:
            for each in group:
                each.is_settled = True
            rest = self.unpublished[len(group) :]  # others have joined meanwhile
            following = next((each for each in rest if each.wake is not None), None)
            for each in group if following is None else (*group, following):
                if each.wake is not None:
                    with suppress(RuntimeError):  # woken already
                        each.wake.release()
            self.unpublished = rest
            self._leader = following

    def _make_durable(self, group: tuple[Ticket, ...]) -> None:
        try:
            self._sync()
        except (StorageFailedError, OSError) as error:
            for ticket in group:
                ticket.error = _unknown_outcome(error)
            return
        for ticket in group:
            if not ticket.is_settled:
                try:
                    self._publish(ticket)
                except BaseException:
                    self._publish_rest(ticket)
                    if ticket.error is None:
                        raise

    def _publish_rest(self, ticket: Ticket) -> None:
        """Do the remaining steps of a publication that was interrupted."""
        try:
            self._publish(ticket)
        except Exception as error:
            ticket.error = error


def _unknown_outcome(error: BaseException) -> StorageFailedError:
    return StorageFailedError(
        f"the sync of a commit failed ({error!r}): it is unknown whether the transaction is "
        "durable, so the storage refuses to commit. Close the storage, check the disk, and reopen "
        "it: it then shows what was committed"
    )
