"""From the vote to the moment others see it: one transaction at a time, whose outcome is known.

    write ─► commit ─► slot freed ─► sync, shared with others ─► callback ─► publish
                 │
                 └── raises: the outcome is unknown, and nobody commits any more (`CommitSlot.fail`)

An engine that does not declare `ISynced` is durable when `commit` returns: then the slot is freed
last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from objdb.errors import ObjdbError, StorageClosedError, StorageFailedError
from objdb.ids import Tid
from objdb.storage.commit import CommitSlot, Phase
from objdb.storage.durability import GroupCommit, Ticket
from objdb.storage.engine import ISynced
from objdb.storage.oids import OidSource
from objdb.storage.staging import Writes


class Committer:
    """Commits to *engine* what holds *slot*; tells *oids* which are taken."""

    def __init__(self, engine: Any, slot: CommitSlot, oids: OidSource) -> None:
        self._engine = engine
        self._slot = slot
        self._oids = oids
        self._group: GroupCommit | None = None
        if ISynced.providedBy(engine):
            self._group = GroupCommit(self._sync, self._publish)
        self._last_error: type | None = None  # of the last sync

    def commit(self, writes: Writes, finished: Callable[[Tid], object]) -> None:
        """Commit a transaction that voted; return when it is durable, or, if it waits by itself,
        when it is committed. Whatever is raised in between, what is committed goes through to its
        end, and what is not stays as it was at the vote."""
        try:
            self._engine.commit(writes.token)
            writes.phase = Phase.COMMITTED
            self._settle(writes, finished)
        except BaseException as error:
            if writes.phase is not Phase.COMMITTED:
                self._find_out(writes, error)
            if writes.phase is Phase.COMMITTED and self._is_unsettled(writes):
                self._settle(writes, finished)
            raise

    def _find_out(self, writes: Writes, error: BaseException) -> None:
        """See whether the transaction is committed though its commit raised *error*. Raises
        `StorageFailedError` where that is unknown."""
        if _is_failure(error):
            writes.phase = Phase.UNKNOWN
            self._fail("a commit could not be finished", error)
            self._slot.require_not_failed()
        if self._engine.is_committed(writes.token):
            self._engine.commit(writes.token)  # what is left of it
            writes.phase = Phase.COMMITTED

    def _is_unsettled(self, writes: Writes) -> bool:
        ticket = writes.ticket
        return ticket is None or not (ticket.is_settled and (ticket.is_told or ticket.error))

    def _settle(self, writes: Writes, finished: Callable[[Tid], object]) -> None:
        """Make a committed transaction durable and visible. It may have been begun already."""
        assert writes.tid is not None
        ticket = writes.ticket
        if ticket is None:
            ticket = writes.ticket = Ticket(writes.tid, finished, writes.token, writes.bases)
        group = self._group
        if group is None:
            return self._publish(ticket)
        later = getattr(writes.transaction, "later", None)
        group.join(ticket, waits_at_once=later is None)
        self._engine.visibility.committed_tid = max(
            ticket.tid, self._engine.visibility.committed_tid
        )  # who sees that, sees the ticket
        self._slot.release(writes)
        if later is None:
            self._finish(group, ticket)
        else:
            later.append(partial(self._finish, group, ticket))

    def _finish(self, group: GroupCommit, ticket: Ticket) -> None:
        """Return when a transaction is durable and visible."""
        group.wait(ticket)
        try:
            self._engine.after_commit()
        except StorageFailedError as error:  # the transaction itself is well
            self._slot.fail(str(error))

    def adopt(self, tokens: list[Any]) -> Callable[[], None]:
        """Take in transactions that are written and committed already, each a token with its
        `tid` and `positions`; the slot is held. Return what waits until they are visible."""
        assert self._group is not None
        for token in tokens:
            ticket = Ticket(token.tid, no_callback, token, token.positions)
            self._group.join(ticket, waits_at_once=False)
        self._engine.visibility.committed_tid = tokens[-1].tid
        return partial(self._finish, self._group, ticket)

    def _sync(self) -> None:
        """Put what is committed on the medium (called by the leader of a group)."""
        self._slot.require_not_failed()
        try:
            self._engine.sync()
        except Exception as error:
            # What comes from outside does not come again; what the medium says does.
            is_first = type(error) is not self._last_error
            self._last_error = type(error)
            if is_first and not _is_failure(error):
                raise
            self._fail("a sync failed", error)
            self._slot.require_not_failed()
        self._last_error = None

    def _fail(self, what: str, error: BaseException) -> None:
        told = isinstance(error, StorageFailedError)
        self._slot.fail(str(error) if told else f"{what}: {error!r}")

    def _publish(self, ticket: Ticket) -> None:
        """Let others see a durable transaction (called in tid order, by one thread at a time)."""
        try:
            if not ticket.is_told:
                ticket.finished(ticket.tid)
                ticket.is_told = True
        finally:
            if ticket.token is not None:
                self._oids.note(ticket.oids)
                self._engine.publish(ticket.token)
            if self._group is None:
                ticket.is_settled = True

    def take_back(self, writes: Writes) -> None:
        """Roll back what the transaction wrote, and free the slot. Where that fails, nobody commits
        any more; that this transaction is not committed is known."""
        if not self._slot.is_held_by(writes):
            return
        try:
            self._roll_back(writes)
        except BaseException:
            self._roll_back(writes)  # what is left of it
            raise
        finally:
            self._slot.release(writes)

    def _roll_back(self, writes: Writes) -> None:
        try:
            self._engine.rollback(writes.token)
        except StorageClosedError:  # closing has taken it back
            return
        except Exception as error:
            if not _is_failure(error):
                raise
            self._fail("an uncommitted transaction could not be taken back", error)

    def take_back_and_wait(self, writes: Writes) -> None:
        """The same after a conflict; return when what was conflicted with is visible: the next
        try would meet it again otherwise."""
        ticket = self._join()
        self.take_back(writes)
        self._wait(ticket)

    def wait_for_all(self) -> None:
        """Return when all that is committed is durable and visible. The slot is held."""
        self._wait(self._join())

    def _join(self) -> Ticket | None:
        """Return a ticket to wait with, behind those that are committed and not visible yet; None
        if there are none. The slot is held."""
        if self._group is None or not self._group.unpublished:
            return None
        ticket = Ticket(self._engine.visibility.committed_tid, no_callback, None, ())
        self._group.join(ticket)
        return ticket

    def _wait(self, ticket: Ticket | None) -> None:
        if ticket is not None and self._group is not None:
            self._group.wait(ticket)


def _is_failure(error: BaseException) -> bool:
    """Whether *error* is the engine's, and does not come from outside; a storage that is closed
    has not failed."""
    is_engines = isinstance(error, (ObjdbError, OSError))
    return is_engines and not isinstance(error, StorageClosedError)


def no_callback(tid: Tid) -> None:
    """Stand for a callback of `tpc_finish`."""
