"""A transaction of a client.

    begun ─► stores, checks, undos are collected here ─► vote ─► finish, or abort
                                                          │
                begin, all of it, and vote in one write ◄─╯
                          │     ▲
                          ╰─────╯ conflicts are resolved: an objdb server asks meanwhile (see
                                  `Link.resolve`), a ZEO server wants another vote

Nothing is sent before the vote, so a transaction that is aborted before costs the server nothing.
Where nobody else takes part in the transaction, an objdb server commits at the vote: one message,
and one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from objdb.errors import ConflictError, POSKeyError, StorageError
from objdb.ids import Oid, Tid, next_tid
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.link import Link
from objdb_zeo.transport import Channel, DisconnectedError, Pending

_MOST_TRIES = 20  # votes of a transaction whose conflicts were resolved
_ONE_MESSAGE_BYTES = 1 << 20
_AROUND_BYTES = 64  # around a record in a message, at most

Call = tuple[str, tuple[Any, ...], "Pending | None"]


class Staged:
    """A transaction that has begun. *id* is its name on the wire; its extension is sent as it is,
    or to an objdb server *pickled*."""

    def __init__(
        self, id: int, user: bytes, description: bytes, extension: dict[Any, Any], pickled: bytes,
        tid: Tid | None, status: str,
    ) -> None:
        self.id = id
        self.records: dict[Oid, tuple[Tid, bytes]] = {}  # (serial, record) to store
        self.others: set[Oid] = set()  # deleted, restored, undone
        self.undone: list[Any] = []  # ids of transactions
        self.has_voted = self.is_over = False
        self._texts = user, description
        self._extension, self._pickled = extension, pickled
        self._wanted = tid, status
        self._calls: list[Call] = []
        self._merged: dict[Oid, bytes] = {}  # what is committed in place of what was sent
        self._made: set[Oid] = set()  # by the vote: what is there is not what was sent
        self._channel: Channel | None = None  # on which it voted
        self._tid: Tid | None = None  # that it will have, if the server says so
        self._instance = b""  # of the server to which it went
        self._committed: Tid | None = None  # its tid, when it is committed at the vote

    def add(self, method: str, *arguments: Any) -> None:
        """Call a method one-way, before the vote."""
        self._calls.append((method, arguments, None))

    def change(self, oid: Oid, method: str, *arguments: Any) -> None:
        """Call a method one-way, before the vote, that changes an object."""
        self.others.add(oid)
        self.add(method, *arguments)

    @property
    def committed_tid(self) -> Tid | None:
        """The tid of the transaction, once that it is committed was taken in: which may be so, and
        the connection be lost."""
        return self._committed

    @property
    def changed(self) -> set[Oid]:
        """The oids of all that the transaction changes."""
        return {*self.records, *self.others, *self._made}

    def _stage(self, oids: Iterable[Oid], *, is_first: bool) -> list[Call]:
        """Return the calls that store the records of *oids*; if they are the first, begin, and
        those that do all the rest."""
        stores: list[Call] = [("storea", (oid, *self.records[oid], self.id), None) for oid in oids]
        if not is_first:
            return stores
        begin: Call = "tpc_begin", (self.id, *self._texts, self._extension, *self._wanted), None
        if self._pickled:
            stores.insert(0, ("objdb.extension", (self.id, self._pickled), None))
        return [begin, *stores, *self._calls]

    def vote(
        self, link: Link, committed: Callable[[Tid, list[Oid]], object] | None = None
    ) -> list[Oid]:
        """Vote; return the oids of which the records are not those that were sent. Raises the
        server's errors, and `ConflictError` for a conflict that is not resolved.

        *committed*: if nobody else takes part; called if the vote has committed. Then it raises
        what `finish` does.
        """
        channel = self._channel = link.channel()
        self._instance = link.info.instance
        oids, is_first = list(self.records), True
        for _ in range(_MOST_TRIES):
            try:
                if committed is not None and link.info.has_extension:
                    answer = self._commit(link, channel, oids, is_first, committed)
                else:
                    answer = self._vote(link, channel, oids, is_first)
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
            oids, is_first = [conflict["oid"] for conflict in conflicts], False
        raise ConflictError(oid=conflicts[0]["oid"], serials=tuple(conflicts[0]["serials"]))

    def _vote(self, link: Link, channel: Channel, oids: list[Oid], is_first: bool) -> Any:
        """Send the records of *oids*, the rest if they are the first, and vote; return the
        conflicts, or the oids that the server changed."""
        method = "objdb.vote" if link.info.has_extension else "vote"
        pending = Pending(asked=partial(self._asked, link))
        stage = self._stage(oids, is_first=is_first)
        channel.send([*stage, (method, (self.id,), pending)])
        answer = channel.wait(pending)
        if link.info.has_extension:
            answer, self._tid = answer
        return answer

    def _commit(
        self, link: Link, channel: Channel, oids: list[Oid], is_first: bool,
        committed: Callable[[Tid, list[Oid]], object],
    ) -> Any:
        """Do as `_vote`, and commit if there are no conflicts."""

        def taken(answer: Any, *, is_last: bool = True) -> Any:
            made, tid = answer
            if tid is not None:
                self._made.update(made)
                tell = partial(committed, tid, sorted(self._made))
                self._take_in(link, tid, tell, is_last=is_last)
            return made

        since = link.last
        pending = Pending(taken, partial(self._asked, link))
        link.voting[self.id] = None
        try:
            channel.send(self._commit_calls(link, oids, is_first, pending))
            return channel.wait(pending)
        except DisconnectedError as error:
            if self.committed_tid is not None:
                return ()
            self._tid = link.voting[self.id]
            return taken(((), self._settle(link, since, error)), is_last=False)
        finally:
            del link.voting[self.id]

    def _asked(self, link: Link, kind: str, *arguments: Any) -> Any:
        """Resolve a conflict that the server asks about, and note what comes of it."""
        merged, class_name = link.resolve(kind, *arguments)
        if merged is not None:
            self._merged[arguments[0]] = merged
        return merged, class_name

    def _commit_calls(
        self, link: Link, oids: list[Oid], is_first: bool, pending: Pending
    ) -> list[Call]:
        """Return the calls: one, if it is small and the transaction only stores."""
        records = [(oid, *self.records[oid]) for oid in oids]
        most = min(_ONE_MESSAGE_BYTES, link.info.frame_bytes // 2)
        size = sum(_AROUND_BYTES + len(record) for _, _, record in records)
        size += sum(map(len, (*self._texts, self._pickled)))
        if (is_first and self._calls) or size > most:
            stage = self._stage(oids, is_first=is_first)
            return [*stage, ("objdb.commit", (self.id,), pending)]
        begin = (*self._texts, self._pickled, *self._wanted) if is_first else None
        return [("objdb.commit", (self.id, begin, records), pending)]

    def _take_in(
        self, link: Link, tid: Tid, tell: Callable[[], object], *, is_last: bool
    ) -> None:
        """Take in that the transaction is committed; *tell* tells the database. *is_last*: others
        that changed the same objects behind it are not taken in yet."""
        self._committed = tid
        records = {
            oid: record for oid, (_, record) in self.records.items()
            if is_last and oid not in self._made
        }
        try:
            tell()
        finally:
            link.take_in_own(tid, self.changed, records)

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
        if self._committed is not None:
            self.is_over = True
            return self._committed
        if channel.failure is not None:
            raise DisconnectedError(
                f"the connection to {channel.name} was lost after the vote; nothing is committed"
            )
        self.is_over = True

        def taken(tid: Tid, *, is_last: bool = True) -> Tid:
            tell = partial(callback, tid) if callback else lambda: None
            self._take_in(link, tid, tell, is_last=is_last)
            return tid

        since = link.last
        try:
            tid: Tid = channel.call("tpc_finish", self.id, taken=taken)
            return tid
        except DisconnectedError as error:
            # Others may have changed the same objects since.
            return self.committed_tid or taken(self._settle(link, since, error), is_last=False)

    def _settle(self, link: Link, since: Tid, lost: DisconnectedError) -> Tid:
        """Find out whether the transaction is committed, after the connection was *lost* while it
        was finished; return its tid. Raises `DisconnectedError` if it is not, and
        `CommitInDoubtError` if the server does not come back."""
        deadline = link.wires.now() + link.call_seconds
        while True:
            try:
                tid = self._find(link, since, lost)
                break
            except DisconnectedError as error:  # once more: asking changes nothing
                if link.wires.now() > deadline or link.is_closed:
                    why = f"the server cannot be asked: {error}"
                    raise self._in_doubt(lost, why) from lost
            link.wires.sleep(0.05)
        if tid is None:
            raise DisconnectedError(f"{lost}. The transaction is not committed") from lost
        return tid

    def _find(self, link: Link, since: Tid, lost: DisconnectedError) -> Tid | None:
        """Return the tid of the transaction, which has come to its end; None if it is not
        committed."""
        if link.info.has_extension:
            tid, known_since = link.call("objdb.outcome", self.id)
            if tid is not None:
                return bytes(tid)
            if known_since <= since and link.info.instance == self._instance:
                return None
        else:
            self._wait_for_the_end(link)
        for found in link.transactions(next_tid(since) if self._tid is None else self._tid):
            if self._is(found):
                if link.info.has_extension and self._tid is None:
                    why = f"one with the same changes is there: {found.tid.hex()}"
                    raise self._in_doubt(lost, f"{why}, which may be another client's")
                return bytes(found.tid)
            if self._tid is not None and found.tid > self._tid:
                break
        return None

    def _in_doubt(self, lost: DisconnectedError, why: str) -> CommitInDoubtError:
        tid = "" if self._tid is None else f" {self._tid.hex()}"
        return CommitInDoubtError(
            f"{lost}. It is not known whether the transaction{tid} is committed ({why}). Look "
            "whether its changes are there before it is done again"
        )

    def _wait_for_the_end(self, link: Link) -> None:
        """Return when the transaction has come to its end on a ZEO server: who votes behind it has
        waited for that."""
        id = ("settle", self.id)
        begin: Call = ("tpc_begin", (id, b"", b"", {}, None, " "), None)
        pending = Pending()
        channel = link.channel()
        channel.send([begin, ("vote", (id,), pending)])
        channel.wait(pending)
        channel.call("tpc_abort", id)

    def _is(self, found: Any) -> bool:
        """Whether a transaction is this one: the same tid, or texts, and the same records."""
        if self._tid is not None and found.tid != self._tid:
            return False
        if (found.user, found.description) != self._texts:
            return False
        there = {record.oid: record.data for record in found}
        return there.keys() == self.changed and all(
            oid in self._made or there[oid] == self._merged.get(oid, record)
            for oid, (_, record) in self.records.items()
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
