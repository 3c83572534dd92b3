"""The commit of a transaction that voted, until it is visible.

    write ─► commit ─► slot freed ─► sync, shared with others ─► callback ─► publish
                 │
                 └── raises: the outcome is unknown, and commits are refused (`CommitSlot.fail`)

With an engine that does not declare `ISynced`, a transaction is durable when `commit` returns:
then the slot is freed last.
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
    """Commits to *engine* the transaction that holds *slot*; notes used oids in *oids*."""

    def __init__(self, engine: Any, slot: CommitSlot, oids: OidSource) -> None:
        self._engine = engine
        self._slot = slot
        self._oids = oids
        self._group: GroupCommit | None = None
        if ISynced.providedBy(engine):
            self._group = GroupCommit(self._sync, self._publish)
        self._last_error: type | None = None  # of the last sync

    def commit(self, writes: Writes, finished: Callable[[Tid], object]) -> None:
        """Commit a transaction that voted; return when it is durable, or, if the caller waits for
        that itself, when it is committed. If an exception interrupts this, a committed transaction
        still becomes visible, and one not committed stays as it was at the vote."""
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
        """Find out whether the transaction is committed although its commit raised *error*.
        Raises `StorageFailedError` if that is unknown."""
        if _is_failure(error):
            writes.phase = Phase.UNKNOWN
            self._fail("a commit could not be finished", error)
            self._slot.require_not_failed()
        if self._engine.is_committed(writes.token):
            self._engine.commit(writes.token)  # its remaining steps
            writes.phase = Phase.COMMITTED

    def _is_unsettled(self, writes: Writes) -> bool:
        ticket = writes.ticket
        return ticket is None or not (ticket.is_settled and (ticket.is_told or ticket.error))

    def _settle(self, writes: Writes, finished: Callable[[Tid], object]) -> None:
        """Make a committed transaction durable and visible. May be called again."""
        assert writes.tid is not None
        ticket = writes.ticket
        if ticket is None:
            ticket = writes.ticket = Ticket(writes.tid, finished, writes.token, writes.bases)
        group = self._group
        if group is None:
            return self._publish(ticket)
        later = getattr(writes.transaction, "later", None)
        group.join(ticket, waits_at_once=later is None)
        visibility = self._engine.visibility
        if ticket.tid > visibility.committed_tid:  # else the ticket is visible already
            visibility.committed_tid = ticket.tid
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
        except StorageFailedError as error:  # the transaction itself did not fail
            self._slot.fail(str(error))

    def adopt(self, tokens: list[Any]) -> Callable[[], None]:
        """Take in transactions that are written and committed already, each a token with its
        `tid` and `positions`; the slot is held. Return a function that waits until they are
        visible."""
        assert self._group is not None
        for token in tokens:
            ticket = Ticket(token.tid, no_callback, token, token.positions)
            self._group.join(ticket, waits_at_once=False)
        self._engine.visibility.committed_tid = tokens[-1].tid
        return partial(self._finish, self._group, ticket)

    def _sync(self) -> None:
        """Sync all committed transactions (called by the leader of a group)."""
        self._slot.require_not_failed()
        try:
            self._engine.sync()
        except Exception as error:
            # An exception from outside does not recur; an error of the disk does.
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
        """Make a durable transaction visible (called in tid order, by one thread at a time)."""
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
        """Roll back the transaction's writes, and free the slot. If that fails, the storage
        refuses to commit; this transaction is known not to be committed."""
        if not self._slot.is_held_by(writes):
            return
        try:
            self._roll_back(writes)
        except BaseException:
            self._roll_back(writes)  # the remaining steps
            raise
        finally:
            self._slot.release(writes)

    def _roll_back(self, writes: Writes) -> None:
        try:
            self._engine.rollback(writes.token)
        except StorageClosedError:  # closing has rolled it back
            return
        except Exception as error:
            if not _is_failure(error):
                raise
            self._fail("an uncommitted transaction could not be rolled back", error)

    def take_back_and_wait(self, writes: Writes) -> None:
        """Roll back after a conflict; return when the conflicting transaction is visible:
        otherwise a retry would meet the same conflict."""
        ticket = self._join()
        self.take_back(writes)
        self._wait(ticket)

    def wait_for_all(self) -> None:
        """Wait until all committed transactions are durable and visible. The slot is held."""
        self._wait(self._join())

    def _join(self) -> Ticket | None:
        """Return a ticket to wait with, after those of committed transactions that are not
        visible yet; None if all are. The slot is held."""
        if self._group is None or not self._group.unpublished:
            return None
        ticket = Ticket(self._engine.visibility.committed_tid, no_callback, None, ())
        self._group.join(ticket)
        return ticket

    def _wait(self, ticket: Ticket | None) -> None:
        if ticket is not None and self._group is not None:
            self._group.wait(ticket)


def _is_failure(error: BaseException) -> bool:
    """Whether *error* comes from the engine, not from outside; a closed storage has not failed."""
    is_engines = isinstance(error, (ObjdbError, OSError))
    return is_engines and not isinstance(error, StorageClosedError)


def no_callback(tid: Tid) -> None:
    """Do nothing: the default callback of `tpc_finish`."""
