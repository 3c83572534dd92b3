"""A storage that is served: who commits to it, and who is told.

    vote ─► turn ─► the storage's vote ─► … ─► its finish ─► everybody is told ─► visible
              │                                    │
              ╰── one transaction at a time ───────╯ the next one's turn

Order, on each connection: the reply to a load that was made from the state before a transaction is
sent before the invalidation of that transaction; one made from the state after it, behind. A commit
is *announced* under `order` before it becomes visible. A load begins when all that was announced is
visible, and is answered under `order`, if nothing was announced meanwhile: else it is made again.

    announce ─► the log ─► each session, before its next reply that depends on it
                      ╰──► and a few sessions at a time, for those that ask nothing: `tell_some`

So a commit does not wait until a thousand clients were told, and clients that are told of several
transactions get them in one write.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from zope.interface import implementer

from objdb.errors import ConflictError, PackError
from objdb.ids import Oid, Tid
from objdb.interfaces import IDatabaseForStorage, IStorageShared
from objdb.records.references import references
from objdb.storage.foreign import pack_storage
from objdb.storage.packing import PackResult, Progress
from objdb_zeo.messages import ONE_WAY, Codec, Message, frame
from objdb_zeo.protocol.outcomes import Outcomes
from objdb_zeo.protocol.staging import ClientTransaction

logger = logging.getLogger(__name__)
REMEMBERED = 100  # transactions, for clients that come back

Resolve = Callable[[Oid, "bytes | None", bytes, bytes, tuple[Tid, Tid]], bytes]


class Announced:
    """A transaction *tid* that changed *oids*, committed through the session *origin*."""

    __slots__ = ("_frames", "_message", "origin", "tid")

    def __init__(self, tid: Tid, oids: tuple[Oid, ...], origin: Any) -> None:
        self.tid, self.origin = tid, origin
        self._message = Message(0, ONE_WAY, "invalidateTransaction", (tid, oids))
        self._frames: dict[bytes, bytes] = {}  # one for all that speak the same

    def frame(self, codec: Codec) -> bytes:
        """Return the frame that tells of it."""
        found = self._frames.get(codec.greeting)
        if found is None:
            found = self._frames[codec.greeting] = frame(codec.encode(self._message))
        return found


class Served:
    """The storage *name*, for any number of sessions. *references*: finds the oids in a record, for
    packs. *vote_seconds*: how long a transaction may stay between its vote and its end. *instance*:
    who has these outcomes; random, if it is not given."""

    def __init__(
        self, name: str, storage: Any, *, references: Callable[[bytes], Iterable[Oid]] = references,
        vote_seconds: float | None = 30.0, read_only: bool = False, instance: bytes | None = None,
    ) -> None:
        self.name = name
        self.storage = storage
        self.references = references
        self.vote_seconds = vote_seconds
        self.is_read_only = read_only or bool(storage.isReadOnly())
        # Takes in what other processes have committed to the storage.
        self.poll: Callable[[], object] | None = None
        if IStorageShared.providedBy(storage):
            self.poll = storage.poll
        self.sessions: set[Any] = set()
        self.order = threading.Lock()
        self.announced: Tid = storage.lastTransaction()
        self.outcomes = Outcomes(self.announced)
        self.instance = instance or os.urandom(8)
        self.conflicts: list[dict[str, Any]] = []  # of the transaction that votes
        # In each thread, what to do with conflicts: a function, or none: they are errors.
        self._resolving = threading.local()
        self.counts = dict.fromkeys(("loads", "stores", "commits", "aborts", "conflicts"), 0)
        # What was announced, as long as there may be sessions that it was not put to.
        self.log: deque[Announced] = deque()
        self.log_start = 0  # the number of the first one in it
        # Called when more than a few sessions are to be told; has to see to it that `tell_some` is
        # called. Without, all of them are told at once.
        self.wake: Callable[[], object] | None = None
        self._behind: deque[Any] = deque()  # sessions to be told up to `_told`
        self._told = 0
        self.at_once = 8  # sessions
        self._changes: deque[tuple[Tid, tuple[Oid, ...]]] = deque(maxlen=REMEMBERED)
        self._known_since = self.announced
        self._finishing = 0  # transactions whose finish is under way
        self._finished = threading.Condition()
        self._turns = threading.Lock()
        self._is_stopping = False
        self._holder: ClientTransaction | None = None
        self._waiting: deque[tuple[ClientTransaction, Callable[[], object]]] = deque()
        if not self.is_read_only:
            storage.registerDB(_Deferring(self))

    # -- turns

    def vote(self, transaction: ClientTransaction, resolve: Resolve | None) -> list[Oid]:
        """Vote; return the oids that the storage changed by itself. The transaction has its turn.

        Conflicts are resolved by *resolve*. Without it, `conflicts` has what the client has to
        resolve before it votes again, and the storage's transaction is aborted if there is any;
        those of undos are errors."""
        self.conflicts = []
        is_asked = resolve is not None or transaction.has_undos
        with self.resolving(resolve if is_asked else self._note_conflict):
            made = transaction.vote(self.storage)
        if self.conflicts:
            transaction.abort(self.storage)
        return made

    @contextmanager
    def resolving(self, resolve: Resolve | None) -> Iterator[None]:
        """Resolve the conflicts of this thread with *resolve*, inside the block."""
        self._resolving.how = resolve
        try:
            yield
        finally:
            self._resolving.how = None

    def resolve(
        self, oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Resolve a conflict in the way of this thread; `ConflictError` where there is none."""
        how: Resolve | None = getattr(self._resolving, "how", None)
        if how is None:
            raise ConflictError(oid=oid, serials=serials)
        return how(oid, old, committed, new, serials)

    def _note_conflict(
        self, oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Note the conflict, for the client; let it pass: the vote is taken back."""
        self.conflicts.append({"oid": oid, "serials": tuple(serials), "data": new})
        return new

    def take_turn(self, transaction: ClientTransaction, go: Callable[[], object]) -> bool:
        """Return true if the transaction may vote now; else *go* is called when it may: never, if
        the server stops."""
        with self._turns:
            is_free = self._holder is None and not self._is_stopping
            if is_free:
                self._holder = transaction
            else:
                self._waiting.append((transaction, go))
        return is_free

    def end_turn(self, transaction: ClientTransaction) -> None:
        """Let the next transaction vote; any thread calls it. *transaction* may be one that still
        waits."""
        with self._turns:
            if self._holder is not transaction:
                kept = [entry for entry in self._waiting if entry[0] is not transaction]
                self._waiting = deque(kept)
                return
            self._holder = go = None
            if self._waiting and not self._is_stopping:
                self._holder, go = self._waiting.popleft()
        if go is not None:
            go()

    def stop(self) -> None:
        """Give no transaction its turn any more, and cancel packs."""
        with self._turns:
            self._is_stopping = True

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is between its vote and its end."""
        return self._holder is None and not self._finishing

    def pack(
        self, moment: Any, gc: bool = True, *, progress: Progress | None = None, **options: Any
    ) -> PackResult:
        """Pack, as `IStoragePackable` does, and tell all clients. `PackError` if the server
        stops meanwhile."""
        def go_on(phase: str, done: int, total: int) -> None:
            if self._is_stopping:
                raise PackError(f"the storage {self.name!r}: the server stops, so the pack ends")
            if progress is not None:
                progress(phase, done, total)

        result = pack_storage(
            self.storage, moment, self.references, gc, progress=go_on, **options
        )
        if not options.get("dry_run"):
            for session in list(self.sessions):
                session.tell("info", self.info())
                if session.knows_extension:
                    session.tell("objdb.packed")
        return result

    def begin_finish(self) -> None:
        """Note that a finish is under way, until `end_finish`."""
        with self._finished:
            self._finishing += 1

    def end_finish(self) -> None:
        """Note that a finish has ended."""
        with self._finished:
            self._finishing -= 1
            self._finished.notify_all()

    def wait_for_finishes(self) -> None:
        """Return when no finish is under way: also not of clients that are gone."""
        with self._finished:
            self._finished.wait_for(lambda: not self._finishing)

    @property
    def waiting(self) -> int:
        """How many transactions wait for their turn."""
        return len(self._waiting)

    # -- telling

    def announce(self, tid: Tid, oids: Iterable[Oid], origin: Any) -> None:
        """Tell all sessions but *origin* of a transaction that is about to become visible."""
        changed = tuple(oids)
        with self.order:
            if len(self._changes) == REMEMBERED:
                self._known_since = self._changes[0][0]  # the one that is forgotten now
            self._changes.append((tid, changed))
            self.announced = tid
            if origin is not None:
                origin.keep_place(tid)
            self.log.append(Announced(tid, changed, origin))
            if origin is not None:
                origin.catch_up()
        if self.wake is not None and len(self.sessions) > self.at_once:
            self.wake()
            return
        while self.tell_some():
            pass

    @property
    def log_end(self) -> int:
        """The number that the next one announced will have. `order` is held."""
        return self.log_start + len(self.log)

    def tell_some(self) -> bool:
        """Tell some sessions what they have not been told; return whether there are more."""
        with self.order:
            if not self._behind:
                self._told = self.log_end
                self._behind.extend(self.sessions if self.log else ())
            for _ in range(min(self.at_once, len(self._behind))):
                self._behind.popleft().catch_up()
            if not self._behind:
                for _ in range(self._told - self.log_start):
                    self.log.popleft()
                self.log_start = self._told
            return bool(self.log)

    def retract(self, tid: Tid) -> None:
        """Note that an announced transaction did not become visible: the storage has failed."""
        with self.order:
            if self.announced == tid:
                self.announced = self.storage.lastTransaction()

    def changes_since(self, tid: Tid) -> tuple[Tid, tuple[Oid, ...]] | None:
        """Return (last tid, the oids changed after *tid*); None if that is not known any more.
        The caller holds `order`."""
        if tid >= self.announced:
            return self.announced, ()
        if tid < self._known_since:
            return None
        changed = {oid for later, oids in self._changes if later > tid for oid in oids}
        return self.announced, tuple(changed)

    def join(self, session: Any) -> Tid:
        """Let a session be told from now on; return the last tid that it is not told."""
        with self.order:
            self.sessions.add(session)
            session.told = self.log_end
            return self.announced

    def leave(self, session: Any) -> None:
        """Tell a session no more."""
        with self.order:
            self.sessions.discard(session)

    def cut_off_others(self, session: Any) -> None:
        """Cut off other sessions of the client of *session*: it has given them up, and what is
        still on its way through them must not be carried out when it asks for the outcome."""
        for other in list(self.sessions):
            if other is not session and other.client == session.client:
                other.cut_off("its client has connected again")
                other.closed()

    def info(self) -> dict[str, int]:
        """Return length and size, of which clients are told."""
        if self.poll is not None:
            self.poll()
        return {"length": len(self.storage), "size": self.storage.getSize()}


@implementer(IDatabaseForStorage)
class _Deferring:
    """The database as the served storage sees it."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def resolve(
        self, oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """See `Served.resolve`."""
        return self._served.resolve(oid, old, committed, new, serials)

    def is_equal(self, oid: Oid, one: bytes | None, other: bytes | None) -> bool:
        """Return whether two records are the same bytes."""
        return one == other

    def invalidate(self, tid: Tid, oids: Iterable[Oid], version: str = "") -> None:
        """Pass on what another process committed to the storage."""
        self._served.announce(tid, oids, None)

    def invalidateCache(self) -> None:
        """Nothing is cached here."""

    def oldest_view(self) -> Tid:
        """Return the last transaction: no view here needs older revisions."""
        tid: Tid = self._served.storage.lastTransaction()
        return tid
