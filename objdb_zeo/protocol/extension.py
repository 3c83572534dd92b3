"""What the server offers beyond ZEO's protocol, under the key `objdb` of `get_info()`.

A client that knows none of it never notices; see docs/formats/zeo.md for the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from objdb.ids import NO_TID, Oid, Tid, next_tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.foreign import provides
from objdb_zeo.protocol.calls import InOrder, id_from_wire
from objdb_zeo.protocol.driver import InThread, Steps, Turn
from objdb_zeo.protocol.questions import resolver
from objdb_zeo.protocol.staging import ClientTransaction
from objdb_zeo.shapes import OFFERED

if TYPE_CHECKING:
    from objdb_zeo.protocol.session import Session

VERSION = 1
_BATCH_BYTES = 1 << 20
_BATCH_TRANSACTIONS = 1000
LOADED = 50  # objects by one message: others wait meanwhile
_LOADED_BYTES = 1 << 18


class Extension:
    """The further calls of *session*."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def _storage(self) -> Any:
        return self._session.served.storage

    def offer(self) -> dict[str, Any]:
        """Return what is offered: the version, the interfaces of the storage, which instance of a
        server this is, and the largest message."""
        declared = [name for name, ours in OFFERED.items() if provides(self._storage, ours)]
        instance = self._session.served.instance
        return {
            "version": VERSION, "interfaces": tuple(declared), "instance": instance,
            "frame_bytes": self._session.limits.frame_bytes,
        }

    def call_iterate(self, start: Tid, stop: Tid | None) -> Steps:
        """Return transactions from *start* on, as (tid, status, user, description, extension's
        bytes, records), a megabyte or so; and the tid to go on from, None at the end."""
        return (yield InThread(partial(_batch, self._storage, start, stop)))

    def call_hello(self, client: bytes = b"") -> None:
        """Note that the client, whose key is *client*, knows the extension."""
        self._session.knows_extension = True
        if client:
            self._session.client = bytes(client)
            self._session.served.cut_off_others(self._session)

    def call_answer(self, number: int, is_known: bool, answer: Any) -> None:
        """Take the answer to a question."""
        self._session.answer(number, is_known, answer)

    def call_load(self, oids: Any, before: Tid) -> tuple[Any, ...]:
        """Return what `loadBefore` does, for each oid, None for an object that there is not; for
        the first oids, if that is much."""
        found: list[Any] = []
        size = 0
        for oid in oids[:LOADED]:
            try:
                revision = self._storage.loadBefore(oid, before)
            except KeyError:
                revision = None
            found.append(revision)
            size += 0 if revision is None else len(revision[0])
            if size > _LOADED_BYTES:
                break
        self._session.served.counts["loads"] += len(found)
        return tuple(found)

    def call_extension(self, id: Any, data: bytes) -> None:
        """Give a transaction its extension as a pickle, which keeps lists and tuples apart."""
        self._session.calls.transaction(id).extension = data

    def call_vote(self, id: Any) -> Steps:
        """Vote, as `vote`; return (what that returns, the tid that the transaction will have)."""
        return (yield from self._session.calls.vote(id))

    def call_commit(self, id: Any, begin: Any = None, stores: Any = ()) -> Steps:
        """Vote, and commit unless there are conflicts; return (what `vote` returns, the tid, or
        None). The client is told the tid before.

        *begin*: (user, description, extension's bytes, tid or None, status) of a transaction that
        has not begun; *stores*: (oid, serial, record) of each object to store before."""
        calls = self._session.calls
        if begin is not None:
            user, description, extension, tid, status = begin
            calls.call_tpc_begin(id, user, description, {}, tid, status)
            calls.transaction(id).extension = extension
        for oid, serial, record in stores:
            calls.call_storea(oid, serial, record, id)
        calls.limit_staged(self._session.limits.staged_bytes)
        return (yield from calls.vote(id, is_alone=True))

    def call_outcome(self, id: Any) -> Steps:
        """Return (the tid of a transaction of this client, None if it is not known to be committed;
        the tid up to which commits are not known here), when each commit that was under way has
        come to its end."""
        served = self._session.served
        nothing = ClientTransaction(("outcome", id), b"", b"", {}, None, " ")
        yield Turn(nothing)
        served.end_turn(nothing)
        yield InThread(served.wait_for_finishes)
        return InOrder(served.outcomes.find((self._session.client, id)))

    def call_preview_undo(self, transaction_ids: Any) -> Steps:
        """Return what undoing would do, as (oid, record, record then, obstacle)."""
        preview = partial(self._storage.preview_undo, list(transaction_ids))
        found = yield InThread(self._resolving(preview))
        return tuple(tuple(each) for each in found)

    def call_try_undo(self, transaction_ids: Any, oids: Any) -> Steps:
        """Return the oids that undoing would change, in a transaction that changes *oids* too."""
        ids = [id_from_wire(each) for each in transaction_ids]
        attempt = partial(_try_undo, self._storage, ids, oids)
        return tuple((yield InThread(self._resolving(attempt))))

    def _resolving(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return the function, with conflicts resolved by the client."""
        served, resolve = self._session.served, resolver(self._session.asks)

        def call() -> Any:
            with served.resolving(resolve):
                return function()

        return call

    def call_pack(
        self, moment: Any, gc: bool, keep_old: bool, dry_run: bool, has_roots: bool,
        has_elsewhere: bool,
    ) -> Steps:
        """Pack to a moment, with options; return the fields of the result. The client is asked
        whether to go on at each step, and what only it can know."""
        self._session.calls.require_writable()
        served, asks = self._session.served, self._session.asks
        options: dict[str, Any] = {"keep_old": keep_old, "dry_run": dry_run}
        if asks is not None:
            options["progress"] = partial(asks, "progress")
            if has_roots:
                options["roots"] = partial(asks, "roots")
            if has_elsewhere:
                options["elsewhere"] = partial(asks, "elsewhere")
        return tuple((yield InThread(partial(served.pack, moment, gc, **options))))

    def call_packed_tid(self) -> Tid:
        """Return the last transaction whose revisions may be gone."""
        tid: Tid = self._storage.packed_tid
        return tid

    def call_self_check(self) -> Steps:
        """Return the problems that the storage finds in itself."""
        return tuple((yield InThread(self._storage.self_check)))

    def call_checkReads(
        self, serials: Any, unchanged_since: Tid | None, id: Any
    ) -> None:
        """Stage checks of all that was read: (oid, tid) pairs."""
        transaction = self._session.calls.transaction(id)
        transaction.check(dict(serials))
        transaction.unchanged_since = unchanged_since


def _batch(storage: Any, start: Tid, stop: Tid | None) -> tuple[Any, Tid | None]:
    found, size = [], 0
    for transaction in storage.iterator(None if start == NO_TID else start, stop):
        records = tuple((r.oid, r.data, r.data_txn) for r in transaction)
        found.append((
            transaction.tid, str(transaction.status), bytes(transaction.user),
            bytes(transaction.description), bytes(transaction.extension_bytes), records,
        ))
        size += 100 + sum(100 + len(data or b"") for _, data, _ in records)
        if size > _BATCH_BYTES or len(found) == _BATCH_TRANSACTIONS:
            return tuple(found), next_tid(transaction.tid)
    return tuple(found), None


def _try_undo(storage: Any, transaction_ids: Any, oids: Any) -> list[Oid]:
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    try:
        for oid in oids:
            storage.store(oid, NO_TID, b"changed", "", metadata)
        found: set[Oid] = set()
        for transaction_id in transaction_ids:
            found.update(storage.undo(transaction_id, metadata)[1])
    finally:
        storage.tpc_abort(metadata)
    return sorted(found)
