"""Mistakes in the server and the client, one for each rule: the simulation has to find each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from objdb.ids import NO_TID
from objdb_zeo import link, transport, work
from objdb_zeo.cache import MemoryCache
from objdb_zeo.client import ClientStorage
from objdb_zeo.errors import to_wire
from objdb_zeo.messages import REPLY, Message
from objdb_zeo.protocol import calls, outcomes, served, session, staging


class Mutant(NamedTuple):
    """A mistake. *rule*: what it breaks; *make* makes it, as a context manager."""

    rule: str
    make: Callable[[], Any]


@contextmanager
def invalidations_change_places() -> Iterator[None]:
    """Hold an invalidation back until the next one is sent."""
    real = session.Session._put

    def put(self: Any, tid: bytes | None, data: bytes | None) -> None:
        held = self.__dict__.setdefault("held", [])
        if tid is None or data is None:
            real(self, tid, data)
        elif not held:
            held.append((tid, data))
        else:
            real(self, tid, data)
            real(self, *held.pop())

    with mock.patch.object(session.Session, "_put", put):
        yield


@contextmanager
def own_replies_have_no_place() -> Iterator[None]:
    """Send the reply to a finish when it is there."""
    def fill(self: Any, id: Any, found: Any) -> None:
        self._reply(id, found.result, is_error=found.is_error)

    with (
        mock.patch.object(session.Session, "_fill", fill),
        mock.patch.object(session.Session, "keep_place", return_value=None),
    ):
        yield


def answering(*, waits: bool = True, looks_again: bool = True, catches_up: bool = True) -> Any:
    """Answer a load before what was announced is visible; whatever was announced since it began;
    or before what the client was not told yet."""
    def answer(self: Any, id: Any, function: Callable[[], Any]) -> None:
        served = self.served
        while True:
            announced = served.announced
            if waits and announced > served.storage.lastTransaction():
                self.driver.rest()
                continue
            try:
                result, is_error = function(), False
            except Exception as error:
                result, is_error = to_wire(error), True
            data = self._reply_frame(id, result, is_error)
            with served.order:
                if served.announced == announced or not looks_again:
                    if catches_up:
                        self.catch_up()
                    self._put(None, data)
                    return

    return mock.patch.object(session.Session, "_answer", answer)


@contextmanager
def announced_when_visible() -> Iterator[None]:
    """Tell others of a transaction when it is visible already."""
    def finish(self: Any, transaction: Any) -> bytes:
        served = self._session.served
        transaction.metadata.later = []
        tid: bytes = served.storage.tpc_finish(transaction.metadata, lambda tid: None)
        for wait in transaction.metadata.later:
            wait()
        self._session.driver.rest()
        served.announce(tid, sorted(transaction.changed), self._session)
        transaction.announced = transaction.committed = tid
        served.outcomes.note((self._session.client, transaction.id), tid)
        self._session.driver.soon(partial(served.end_turn, transaction))
        return tid

    with mock.patch.object(calls.Calls, "_finish", finish):
        yield


@contextmanager
def pings_have_no_place() -> Iterator[None]:
    """Answer a ping at once."""
    reads = session.READS - {"ping"}
    with mock.patch.object(session, "READS", reads):
        yield


@contextmanager
def replies_are_handled_first() -> Iterator[None]:
    """Let a client handle what the server says by itself behind the next reply."""
    real = transport.Channel._handle

    def handle(self: Any, message: Message) -> None:
        if message.name != REPLY:
            self.__dict__.setdefault("late", []).append(message)
            return
        real(self, message)
        for each in self.__dict__.pop("late", ()):
            real(self, each)

    with mock.patch.object(transport.Channel, "_handle", handle):
        yield


@contextmanager
def stored_by_the_caller() -> Iterator[None]:
    """Let the thread that asked store what was loaded, when it goes on."""
    def load(self: Any, oid: bytes, bound: bytes) -> Any:
        found = self.channel().call("loadBefore", oid, bound)
        if found is not None:
            self.cache.store(oid, *found)
        return found

    with mock.patch.object(link.Link, "_load", load):
        yield


@contextmanager
def last_moves_first() -> Iterator[None]:
    """Move `lastTransaction()` before the cache and the database are told."""
    def take_in(self: Any, tid: bytes, oids: Any) -> None:
        self.last = tid
        self._mark(oids)
        self.cache.invalidate(tid, oids)
        self.db.invalidate(tid, list(oids))

    with mock.patch.object(link.Link, "_take_in", take_in):
        yield


def left_out(which: Callable[[Any], set[bytes]]) -> Any:
    """Leave oids out of invalidations."""
    real = staging.ClientTransaction.vote

    def vote(self: Any, storage: Any) -> Any:
        made = real(self, storage)
        self.changed -= which(self)
        return made

    return mock.patch.object(staging.ClientTransaction, "vote", vote)


@contextmanager
def what_arrives_meanwhile_is_dropped() -> Iterator[None]:
    """Forget the invalidations that arrive while a new connection is verified."""
    real = link.Link._told

    def told(self: Any, method: str, arguments: Any) -> None:
        if self._held is None or method != "invalidateTransaction":
            real(self, method, arguments)

    with mock.patch.object(link.Link, "_told", told):
        yield


@contextmanager
def nothing_is_forgotten() -> Iterator[None]:
    """Keep what was changed while there was no connection."""
    with mock.patch.object(MemoryCache, "forget", return_value=None):
        yield


@contextmanager
def lost_replies_are_refusals() -> Iterator[None]:
    """Take a commit whose reply was lost for one that is not committed."""
    def settle(self: Any, link: Any, since: bytes, lost: BaseException) -> bytes:
        raise transport.DisconnectedError("it is not committed")

    with mock.patch.object(work.Staged, "_settle", settle):
        yield


@contextmanager
def found_is_last() -> Iterator[None]:
    """Take a commit whose reply was lost for the last one, when it is found."""
    real = work.Staged._settle

    def settle(self: Any, link: Any, since: bytes, lost: Any) -> bytes:
        tid: bytes = real(self, link, since, lost)
        for oid, (_, record) in self.records.items():
            if oid not in self._made:
                link.cache.store(oid, record, tid, None)
        return tid

    with mock.patch.object(work.Staged, "_settle", settle):
        yield


@contextmanager
def backups_are_accepted() -> Iterator[None]:
    """Accept a server that was restored from a backup, and has later transactions."""
    with mock.patch.object(link.Link, "_is_missing", return_value=False):
        yield


@contextmanager
def oids_are_kept() -> Iterator[None]:
    """Go on with the oids that a server gave before it was started again."""
    kept = property(lambda self: self._link._open, lambda self, channel: None)
    with mock.patch.object(ClientStorage, "_oids_of", kept, create=True):
        yield


@contextmanager
def instances_are_alike() -> Iterator[None]:
    """Believe a server that was started again when it does not know of a commit."""
    real = outcomes.Outcomes.find

    def find(self: Any, name: Any) -> Any:
        return real(self, name)[0], NO_TID

    same = property(lambda self: b"the same", lambda self, value: None)
    with (
        mock.patch.object(outcomes.Outcomes, "find", find),
        mock.patch.object(served.Served, "instance", same, create=True),
    ):
        yield


@contextmanager
def turns_are_kept() -> Iterator[None]:
    """Leave the turn with a client that is gone."""
    with mock.patch.object(calls.Calls, "_drop", return_value=None):
        yield


def _created(transaction: Any) -> set[bytes]:
    return {oid for oid, (serial, _) in transaction._stores.items() if serial == NO_TID}


MUTANTS = {
    "descending": Mutant("order 1: tids ascend", invalidations_change_places),
    "own-reply": Mutant("order 1: an own reply has its place", own_replies_have_no_place),
    "late-load": Mutant(
        "order 2: a load from before is sent before", lambda: answering(looks_again=False)
    ),
    "unseen-load": Mutant(
        "order 2: a load begins when all that was announced is visible",
        lambda: answering(waits=False),
    ),
    "early-load": Mutant("order 3: a load from after is sent behind", announced_when_visible),
    "ping": Mutant("order 4: pings have a place", pings_have_no_place),
    "told-late": Mutant(
        "order 3: who asks is told before the reply", lambda: answering(catches_up=False)
    ),
    "replies-first": Mutant("messages are applied in order", replies_are_handled_first),
    "stored-late": Mutant("a reply is stored before the next message", stored_by_the_caller),
    "last-first": Mutant("lastTransaction() moves last", last_moves_first),
    "deleted": Mutant("deleted oids are told", lambda: left_out(lambda t: set(t._deletes))),
    "created": Mutant("created oids are told", lambda: left_out(_created)),
    "meanwhile": Mutant(
        "what arrives during verification counts", what_arrives_meanwhile_is_dropped
    ),
    "nothing-forgotten": Mutant("verification forgets what changed", nothing_is_forgotten),
    "lost-reply": Mutant("a lost reply is settled", lost_replies_are_refusals),
    "found-last": Mutant("a settled commit may be overtaken", found_is_last),
    "backup": Mutant("a restored backup is refused", backups_are_accepted),
    "oids": Mutant("new oids are new", oids_are_kept),
    "instance": Mutant("another instance is not believed", instances_are_alike),
    "turns": Mutant("nobody waits for who is gone", turns_are_kept),
}
