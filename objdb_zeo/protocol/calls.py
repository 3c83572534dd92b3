"""What a client can call: ZEO's protocol 5, blobs excepted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from objdb.errors import ConflictError, ReadOnlyError, StorageError, StorageTransactionError
from objdb.ids import Oid, Tid
from objdb.interfaces import (
    IStorageCurrentRecordIteration,
    IStorageIteration,
    IStorageRestoreable,
    IStorageUndoable,
)
from objdb.storage.foreign import provides
from objdb.storage.times import pack_moment
from objdb_zeo.errors import to_wire
from objdb_zeo.limits import ITERATORS, TRANSACTIONS, sparing_logger
from objdb_zeo.messages import ProtocolError, as_bytes, plain
from objdb_zeo.protocol.driver import InThread, Steps, Turn
from objdb_zeo.protocol.questions import resolver
from objdb_zeo.protocol.served import Resolve, Served
from objdb_zeo.protocol.staging import ClientTransaction, Phase

if TYPE_CHECKING:
    from objdb_zeo.protocol.session import Session

logger = sparing_logger(__name__)
MAX_OIDS = 100
# What a ZEO client may declare of ZODB's interfaces.
_ZODB_INTERFACES = {
    "IStorageRestoreable": IStorageRestoreable, "IStorageIteration": IStorageIteration,
    "IStorageUndoable": IStorageUndoable,
    "IStorageCurrentRecordIteration": IStorageCurrentRecordIteration,
}
# Calls whose answers depend on which transactions are visible.
READS = frozenset({
    "lastTransaction", "loadBefore", "loadSerial", "getTid", "getInvalidations", "history", "ping",
    "record_iternext", "get_info", "objdb.load",
})


class InPlace(NamedTuple):
    """A reply that has the place of a transaction."""

    tid: Tid
    result: Any
    is_error: bool


class InOrder(NamedTuple):
    """A reply that is sent behind the invalidations of all that is visible."""

    result: Any


ANSWERED = object()  # what a call returns that has no answer


class Calls:
    """The calls of *session*, and what it has begun."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._transactions: dict[Any, ClientTransaction] = {}
        self._iterators: dict[int, Any] = {}
        self._last_iterator = 0

    def drop_all(self) -> None:
        """Drop all that the client has begun: the connection is closed."""
        for transaction in list(self._transactions.values()):
            self._drop(transaction)
        self._iterators.clear()

    def _drop(self, transaction: ClientTransaction) -> None:
        """Abort a transaction whose client is gone, now or when its vote ends."""
        transaction.is_dropped = True
        if transaction.phase is Phase.VOTED:
            self._run_abort(transaction)
        elif transaction.phase is Phase.STAGED:
            self._forget(transaction)
            self._session.served.end_turn(transaction)  # if it waits

    def _run_abort(self, transaction: ClientTransaction) -> None:
        self._forget(transaction)
        transaction.phase = Phase.FINISHING
        served = self._session.served

        def end(_: Any, error: BaseException | None) -> None:
            served.end_turn(transaction)
            if error is not None:
                logger.error("%s: aborting failed: %r", self._session.label, error)

        abort = partial(transaction.abort, served.storage)
        self._session.driver.run(InThread(abort, is_commit=True), end)

    def call_get_info(self) -> dict[str, Any]:
        """Return what the storage can do."""
        storage = self._session.served.storage
        declared = [name for name, ours in _ZODB_INTERFACES.items() if provides(storage, ours)]
        return {
            **self._session.served.info(), "name": str(storage.getName()),
            "supportsUndo": provides(storage, IStorageUndoable),
            "supports_record_iternext": provides(storage, IStorageCurrentRecordIteration),
            "interfaces": tuple(("ZODB.interfaces", name) for name in declared),
            "objdb": self._session.extension.offer(),
        }

    def call_ping(self) -> None:
        """Answer, behind the invalidations of all that anybody knows to be committed."""

    def call_server_status(self) -> dict[str, Any]:
        """Return counts."""
        return status_of(self._session.served)

    # -- calls: reading

    def call_lastTransaction(self) -> Tid:
        """Return the last tid."""
        tid: Tid = self._session.served.storage.lastTransaction()
        return tid

    def call_loadBefore(self, oid: Oid, tid: Tid) -> Any:
        """Return (record, tid, next tid or None), or None."""
        self._session.served.counts["loads"] += 1
        return self._session.served.storage.loadBefore(oid, tid)

    def call_loadSerial(self, oid: Oid, tid: Tid) -> Any:
        """Return the record that a transaction wrote."""
        return self._session.served.storage.loadSerial(oid, tid)

    def call_getTid(self, oid: Oid) -> Any:
        """Return the tid of the current revision."""
        return self._session.served.storage.getTid(oid)

    def call_getInvalidations(self, tid: Tid) -> Any:
        """Return (last tid, oids changed after *tid*); None if that is not known any more."""
        with self._session.served.order:
            return self._session.served.changes_since(tid)

    def call_history(self, oid: Oid, size: int = 1) -> Any:
        """Return the last revisions of an object."""
        return tuple(map(entry_to_wire, self._session.served.storage.history(oid, size)))

    def call_record_iternext(self, oid: Oid | None = None) -> Any:
        """Return (oid, tid, record, next oid or None)."""
        return self._session.served.storage.record_iternext(oid)

    def call_undoLog(self, first: Any, last: Any) -> Steps:
        """Return the transactions that can be undone."""
        return self._log(lambda storage: storage.undoLog(first, last))

    def call_undoInfo(self, first: Any, last: Any, specification: Any = None) -> Steps:
        """Return those with certain items."""
        return self._log(lambda storage: storage.undoInfo(first, last, specification))

    def _log(self, ask: Callable[[Any], Any]) -> Steps:
        storage = self._session.served.storage
        if not provides(storage, IStorageUndoable):
            return ()
        found = yield InThread(partial(ask, storage))
        return tuple(map(entry_to_wire, found))

    def call_iterator_start(self, start: Tid | None, stop: Tid | None) -> int:
        """Begin to list transactions; return the iterator's number."""
        return self._keep(iter(self._session.served.storage.iterator(start, stop)))

    def call_iterator_next(self, number: int) -> Any:
        """Return the next transaction; None at the end."""
        entry = self._iterators[number]
        transaction = next(entry[0], None)
        entry[1] = transaction
        if transaction is None:
            del self._iterators[number]
            return None
        return (
            transaction.tid, str(transaction.status), as_bytes(transaction.user),
            as_bytes(transaction.description), plain(dict(transaction.extension or {})),
        )

    def call_iterator_record_start(self, number: int, tid: Tid) -> int:
        """Begin to list the records of the transaction given last; return a number."""
        transaction = self._iterators[number][1]
        if transaction is None or transaction.tid != tid:
            raise KeyError(tid)
        return self._keep(iter(transaction))

    def call_iterator_record_next(self, number: int) -> Any:
        """Return the next record; None at the end."""
        record = next(self._iterators[number][0], None)
        if record is None:
            del self._iterators[number]
            return None
        return record.oid, record.tid, record.data, record.data_txn

    def call_iterator_gc(self, numbers: Any) -> None:
        """Forget iterators."""
        for number in numbers:
            self._iterators.pop(number, None)

    def _keep(self, iterator: Any) -> int:
        if len(self._iterators) >= ITERATORS:
            raise ProtocolError(f"it has {ITERATORS} iterators, and gave none of them back")
        self._last_iterator += 1
        self._iterators[self._last_iterator] = [iterator, None]
        return self._last_iterator

    # -- calls: writing

    def require_writable(self) -> None:
        """Raise `ReadOnlyError` for a client that registered for reading."""
        if self._session.is_read_only:
            raise ReadOnlyError(f"{self._session.title} was registered for reading only")

    def call_new_oids(self, count: int = MAX_OIDS) -> Any:
        """Return new oids."""
        self.require_writable()
        storage = self._session.served.storage
        return tuple(storage.new_oid() for _ in range(max(1, min(int(count), MAX_OIDS))))

    def call_tpc_begin(
        self, id: Any, user: Any, description: Any, extension: Any, tid: Tid | None = None,
        status: str = " ",
    ) -> None:
        """Begin a transaction. The same id again does nothing."""
        self.require_writable()
        if id not in self._transactions:
            if len(self._transactions) >= TRANSACTIONS:
                raise ProtocolError(f"it has begun {TRANSACTIONS} transactions, and ended none")
            self._transactions[id] = ClientTransaction(
                id, as_bytes(user), as_bytes(description), dict(extension or {}), tid, status
            )

    def transaction(self, id: Any, phase: Phase = Phase.STAGED) -> ClientTransaction:
        """Return a transaction, which must be in *phase*."""
        transaction = self._transactions.get(id)
        if transaction is None:
            raise StorageTransactionError(f"there is no transaction {id!r} of this client")
        transaction.require(phase)
        return transaction

    def limit_staged(self, limit: int) -> None:
        """Drop what the largest transaction has staged, if all together have staged more than
        *limit*, in bytes; its vote says so."""
        transactions = self._transactions.values()
        if sum(each.size for each in transactions) <= limit:
            return
        staged = [each for each in transactions if each.phase is Phase.STAGED]
        if staged:
            largest = max(staged, key=lambda each: each.size)
            largest.drop(limit)
            logger.warning(
                "%s: what it has staged is dropped: %s", self._session.label, largest.excess,
                extra={"host": self._session.host},
            )

    def call_storea(self, oid: Oid, serial: Tid, record: bytes, id: Any) -> None:
        """Stage a record."""
        self.transaction(id).store(oid, serial, record)
        self._session.served.counts["stores"] += 1

    def call_restorea(
        self, oid: Oid, tid: Tid, record: bytes | None, prev_txn: Tid | None, id: Any
    ) -> None:
        """Stage a copied revision."""
        self.transaction(id).restore(oid, tid, record, prev_txn)

    def call_deleteObject(self, oid: Oid, serial: Tid, id: Any) -> None:
        """Stage a deletion."""
        self.transaction(id).delete(oid, serial)

    def call_checkCurrentSerialInTransaction(self, oid: Oid, serial: Tid, id: Any) -> None:
        """Stage a check of what was read."""
        self.transaction(id).check({oid: serial})

    def call_undoa(self, transaction_id: Any, id: Any) -> None:
        """Stage an undo."""
        self.transaction(id).undo(id_from_wire(transaction_id))

    def call_vote(self, id: Any) -> Steps:
        """Vote; return the oids that the server changed, or the conflicts."""
        made, _ = yield from self.vote(id)
        return made

    def vote(self, id: Any, *, is_alone: bool = False) -> Steps:
        """Vote; return (the oids that the server changed, or the conflicts; the tid that the
        transaction will have, if it is known). *is_alone*: nobody else takes part in the
        transaction: if there are no conflicts, commit; the tid is the one it has."""
        transaction, served = self.transaction(id), self._session.served
        asks = self._session.asks
        if transaction.excess:
            self._forget(transaction)
            raise StorageError(transaction.excess)
        transaction.phase = Phase.VOTING
        yield Turn(transaction)
        resolve = resolver(asks, served.vote_seconds)
        made, error = (), None
        if not transaction.is_dropped:
            act = self._vote_and_finish if is_alone else served.vote
            try:
                made = yield InThread(partial(act, transaction, resolve), is_commit=True)
            except Exception as failure:  # noqa: BLE001  raised below
                error = failure
        if transaction.announced is not None:
            return self._end(transaction, (tuple(made), transaction.committed), error)
        conflicts = tuple(served.conflicts) if error is None else ()
        if error is None and not conflicts and not transaction.is_dropped:
            transaction.phase = Phase.VOTED
            self._limit(transaction)
            metadata = transaction.metadata
            return tuple(made), None if metadata is None else metadata.voted_tid
        if conflicts and not transaction.is_dropped:
            transaction.phase = Phase.STAGED  # what is staged is kept
            served.end_turn(transaction)
            served.counts["conflicts"] += len(conflicts)
            return conflicts, None
        if error is None and transaction.metadata is not None:  # the client is gone
            yield InThread(partial(transaction.abort, served.storage), is_commit=True)
        self._forget(transaction)
        served.end_turn(transaction)
        if error is not None:
            served.counts["conflicts"] += isinstance(error, ConflictError)
            raise error
        return (), None  # nobody is there to read it

    def _limit(self, transaction: ClientTransaction) -> None:
        """Cut the client off if the transaction does not end in time."""
        seconds = self._session.served.vote_seconds
        if seconds is not None:
            end = partial(self._time_out, transaction)
            transaction.stop_timer = self._session.driver.later(seconds, end)

    def _time_out(self, transaction: ClientTransaction) -> None:
        if transaction.phase is Phase.VOTED:
            seconds = self._session.served.vote_seconds
            self._session.cut_off(
                f"its transaction has voted, and was not finished for {seconds} seconds, in which "
                "nobody else could commit"
            )
            self._session.closed()

    def call_tpc_finish(self, id: Any) -> Steps:
        """Commit; return the tid."""
        transaction, served = self.transaction(id, Phase.VOTED), self._session.served
        transaction.phase = Phase.FINISHING
        self._forget(transaction)
        served.begin_finish()
        tid, failure = None, None
        try:
            tid = yield InThread(partial(self._finish, transaction), is_commit=True)
        except Exception as error:
            if transaction.announced is None:
                raise
            failure = error
        finally:
            served.end_finish()
        return self._end(transaction, tid, failure)

    def _end(
        self, transaction: ClientTransaction, result: Any, error: BaseException | None
    ) -> InPlace:
        """Return the reply of a transaction that others were told of."""
        self._forget(transaction)
        tid = transaction.announced
        assert tid is not None
        if error is not None:
            return InPlace(tid, to_wire(error), True)
        self._session.served.counts["commits"] += 1
        return InPlace(tid, result, False)

    def _vote_and_finish(
        self, transaction: ClientTransaction, resolve: Resolve | None
    ) -> list[Oid]:
        """Vote, and commit unless there are conflicts, or the client is gone. It is told the tid
        before, so that it can look for it if it does not get the reply."""
        served = self._session.served
        served.begin_finish()
        try:
            made = served.vote(transaction, resolve)
            if not served.conflicts and not transaction.is_dropped:
                transaction.phase = Phase.FINISHING
                assert transaction.metadata is not None
                self._session.tell_now(
                    "objdb.voted", transaction.id, transaction.metadata.voted_tid
                )
                self._finish(transaction)
            return made
        finally:
            served.end_finish()

    def _finish(self, transaction: ClientTransaction) -> Tid:
        """Commit in the storage; return when it is durable. The next one may vote as soon as it is
        decided, so that several share a sync."""
        served, metadata = self._session.served, transaction.metadata
        assert metadata is not None
        metadata.later = []

        def announce(tid: Tid) -> None:
            served.announce(tid, sorted(transaction.changed), self._session)
            transaction.announced = tid

        try:
            tid: Tid = served.storage.tpc_finish(metadata, announce)
            served.end_turn(transaction)
            for wait in metadata.later:
                wait()
            served.outcomes.note((self._session.client, transaction.id), tid)
            transaction.committed = tid
        except BaseException:
            if transaction.announced is not None:
                served.retract(transaction.announced)
                served.outcomes.give_up()
            served.end_turn(transaction)
            raise
        return tid

    def call_tpc_abort(self, id: Any) -> Any:
        """Abort; a transaction that is not known is none."""
        self.require_writable()
        transaction = self._transactions.get(id)
        if transaction is None:
            return None
        self._session.served.counts["aborts"] += 1
        if transaction.phase is Phase.VOTED:
            return self._abort(transaction)
        transaction.is_dropped = True
        if transaction.phase is Phase.STAGED:
            self._forget(transaction)
        return None

    def _abort(self, transaction: ClientTransaction) -> Steps:
        self._forget(transaction)
        transaction.phase = Phase.FINISHING
        try:
            abort = partial(transaction.abort, self._session.served.storage)
            yield InThread(abort, is_commit=True)
        finally:
            self._session.served.end_turn(transaction)

    def _forget(self, transaction: ClientTransaction) -> None:
        self._transactions.pop(transaction.id, None)
        if transaction.stop_timer is not None:
            transaction.stop_timer()
            transaction.stop_timer = None

    def call_pack(self, seconds: float, wait: bool = True) -> Steps:
        """Pack up to a time."""
        served = self._session.served
        pack = partial(served.pack, pack_moment(seconds, 0, served.storage.lastTransaction()))
        if wait:
            yield InThread(pack)
        else:
            self._session.run(InThread(pack), self._packed)

    def _packed(self, _: Any, error: BaseException | None) -> None:
        if error is not None:
            logger.error("%s: packing failed: %r", self._session.label, error)


def id_from_wire(transaction_id: Any) -> Any:
    """Return the id of a transaction, which may come in either alphabet of base64."""
    is_bytes = isinstance(transaction_id, bytes)
    return transaction_id.translate(_URL_SAFE) if is_bytes else transaction_id


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def entry_to_wire(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of an undo log or a history as ZEO's clients expect it: texts as bytes."""
    texts = ("id", "user_name", "description")
    return {
        name: as_bytes(value) if name in texts else value
        for name, value in plain(entry).items()
    }


def status_of(served: Served) -> dict[str, Any]:
    """Return the status of a storage, under ZEO's names."""
    return {
        **served.counts, "connections": len(served.sessions), "waiting": served.waiting,
        "last-transaction": served.announced.hex(),
    }
