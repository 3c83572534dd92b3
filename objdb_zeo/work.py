"""A transaction of a client.

    begun ─► stores, checks, undos are collected here ─► vote ─► finish, or abort
                                                          │
                begin, all of it, and vote in one write ◄─╯─► conflicts are resolved ─► vote

Nothing is sent before the vote, so a transaction that is aborted before costs the server nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from objdb.errors import ConflictError, POSKeyError, StorageError
from objdb.ids import Oid, Tid, next_tid
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.link import Link
from objdb_zeo.transport import Channel, DisconnectedError, Pending

_MOST_TRIES = 20  # votes of a transaction whose conflicts were resolved

Call = tuple[str, tuple[Any, ...], "Pending | None"]


class Staged:
    """A transaction that has begun. *id* is its name on the wire, *begin* the call that begins it
    there."""

    def __init__(self, id: int, begin: Call) -> None:
        self.id = id
        self.records: dict[Oid, tuple[Tid, bytes]] = {}  # (serial, record) to store
        self.others: set[Oid] = set()  # deleted, restored, undone
        self.undone: list[Any] = []  # ids of transactions
        self.has_voted = self.is_over = False
        self._begin = begin
        self._calls: list[Call] = []
        self._made: set[Oid] = set()  # by the vote: what is there is not what was sent
        self._channel: Channel | None = None  # on which it voted
        self._tid: Tid | None = None  # that it will have, if the server says so

    def add(self, method: str, *arguments: Any) -> None:
        """Call a method one-way, before the vote."""
        self._calls.append((method, arguments, None))

    def change(self, oid: Oid, method: str, *arguments: Any) -> None:
        """Call a method one-way, before the vote, that changes an object."""
        self.others.add(oid)
        self.add(method, *arguments)

    @property
    def changed(self) -> set[Oid]:
        """The oids of all that the transaction changes."""
        return {*self.records, *self.others, *self._made}

    def _store(self, oid: Oid) -> Call:
        return "storea", (oid, *self.records[oid], self.id), None

    def vote(self, link: Link) -> list[Oid]:
        """Vote; return the oids of which the records are not those that were sent. Raises the
        server's errors, and `ConflictError` for a conflict that is not resolved."""
        channel = self._channel = link.channel()
        calls = [self._begin, *map(self._store, self.records), *self._calls]
        for _ in range(_MOST_TRIES):
            pending = Pending(asked=link.resolve)
            method = "objdb.vote" if link.info.has_extension else "vote"
            try:
                channel.send([*calls, (method, (self.id,), pending)])
                answer = channel.wait(pending)
                if link.info.has_extension:
                    answer, self._tid = answer
            except ConflictError as error:
                if error.oid in self.records:
                    error.record = self.records[error.oid][1]
                raise
            conflicts = [each for each in answer if isinstance(each, dict)]
            if not conflicts:
                self.has_voted = True
                self._made.update(answer)
                return sorted(self._made)
            for conflict in conflicts:
                self._resolve(link, conflict)
            calls = [self._store(conflict["oid"]) for conflict in conflicts]
        raise ConflictError(oid=conflicts[0]["oid"], serials=tuple(conflicts[0]["serials"]))

    def _resolve(self, link: Link, conflict: dict[str, Any]) -> None:
        oid, serials, ours = conflict["oid"], tuple(conflict["serials"]), conflict["data"]
        try:
            committed = link.call("loadSerial", oid, serials[0])
            try:
                old = link.call("loadSerial", oid, serials[1])
            except POSKeyError:  # packed away
                old = None
            merged = link.db.resolve(oid, old, committed, ours, serials)
        except POSKeyError:  # deleted
            raise ConflictError(oid=oid, serials=serials) from None
        except ConflictError as error:
            error.record = ours
            raise
        self._made.add(oid)
        self.records[oid] = serials[0], merged

    def finish(self, link: Link, callback: Callable[[Tid], object] | None) -> Tid:
        """Commit; return the tid. *callback* is called with it, and the database is told, when the
        answer is taken in. If the connection is lost meanwhile, see `_settle`."""
        channel = self._channel
        assert channel is not None
        if channel.failure is not None:
            raise DisconnectedError(
                f"the connection to {channel.name} was lost after the vote; nothing is committed"
            )
        self.is_over = True

        def taken(tid: Tid, *, is_last: bool = True) -> Tid:
            records = {
                oid: record for oid, (_, record) in self.records.items()
                if is_last and oid not in self._made
            }
            try:
                if callback is not None:
                    callback(tid)
            finally:
                link.take_in_own(tid, self.changed, records)
            return tid

        since = link.last
        try:
            tid: Tid = channel.call("tpc_finish", self.id, taken=taken)
            return tid
        except DisconnectedError as error:
            settled = self._settle(link, since, error)
        return taken(settled, is_last=False)  # others may have changed the same objects since

    def _settle(self, link: Link, since: Tid, lost: DisconnectedError) -> Tid:
        """Find out whether the transaction is committed, after the connection was *lost* while it
        was finished; return its tid. Raises `DisconnectedError` if it is not, and
        `CommitInDoubtError` if the server does not come back."""
        deadline = link.wires.now() + link.call_seconds
        while True:
            try:
                tid = self._find(link, since)
                break
            except DisconnectedError as error:  # once more: asking changes nothing
                if link.wires.now() > deadline or link.is_closed:
                    raise self._in_doubt(lost, error) from lost
            link.wires.sleep(0.05)
        if tid is None:
            raise DisconnectedError(f"{lost}. The transaction is not committed") from lost
        return tid

    def _find(self, link: Link, since: Tid) -> Tid | None:
        """Return the tid of the transaction, which has come to its end; None if it is not
        committed."""
        self._wait_for_the_end(link)
        for found in link.transactions(next_tid(since) if self._tid is None else self._tid):
            if self._is(found):
                return bytes(found.tid)
            if self._tid is not None and found.tid > self._tid:
                break
        return None

    def _in_doubt(self, lost: DisconnectedError, error: DisconnectedError) -> CommitInDoubtError:
        tid = "" if self._tid is None else f" {self._tid.hex()}"
        return CommitInDoubtError(
            f"{lost}. It is not known whether the transaction{tid} is committed, and the server "
            f"cannot be asked ({error}). Look whether its changes are there before it is done again"
        )

    def _wait_for_the_end(self, link: Link) -> None:
        """Return when the transaction has come to its end on the server: who votes behind it has
        waited for that."""
        id = ("settle", self.id)
        begin: Call = ("tpc_begin", (id, b"", b"", {}, None, " "), None)
        pending = Pending()
        channel = link.channel()
        channel.send([begin, ("vote", (id,), pending)])
        channel.wait(pending)
        channel.call("tpc_abort", id)
        if link.info.has_extension:
            channel.call("objdb.settled")

    def _is(self, found: Any) -> bool:
        """Whether a transaction is this one: the same tid, or texts, and the same records."""
        _, (_, user, description, *_), _ = self._begin
        if self._tid is not None and found.tid != self._tid:
            return False
        if (found.user, found.description) != (user, description):
            return False
        there = {record.oid: record.data for record in found}
        return there.keys() == self.changed and all(
            oid in self._made or there[oid] == record for oid, (_, record) in self.records.items()
        )

    def abort(self) -> None:
        """Drop it, here and there."""
        self.is_over = True
        channel = self._channel
        if channel is None or channel.failure is not None:
            return
        try:
            channel.call("tpc_abort", self.id)
        except StorageError:
            pass  # it is dropped there, with the connection
