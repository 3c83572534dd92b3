"""Changing rows of committed transactions: for packs, and to prune old revisions.

Commits and planning wait meanwhile, and iterators go on showing the old rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import get_ident
from typing import Any
from weakref import WeakSet

from objdb.errors import PackError, StorageFailedError
from objdb.ids import NO_TID, Oid, Tid, tid_after
from objdb.storage.commit import CommitSlot
from objdb.storage.engine import IOwnPack, IPackedTid, IPrunable, IShared
from objdb.storage.history import View
from objdb.storage.holding import held_for
from objdb.storage.rows import Row, TransactionRow

Rows = dict[tuple[Oid, Tid], "Row | None"]
Transactions = dict[Tid, "TransactionRow | None"]


class Amender:
    """Amends the rows of *engine*, whose commits go through *slot*. `count` is the number of times
    it has removed revisions. `lock` is held while requests are planned; amending takes it first,
    then the slot."""

    def __init__(self, engine: Any, slot: CommitSlot) -> None:
        self.engine = engine
        self.lock = threading.RLock()
        self.count = 0
        self.pruned_tid: Tid = NO_TID
        self._pack_lock = threading.Lock()
        self._packer = 0  # the id of the packing thread
        self._slot = slot
        self._is_shared = IShared.providedBy(engine)
        self._notes_packs = IPackedTid.providedBy(engine)
        self._views: WeakSet[View] = WeakSet()
        self._packed_tid = NO_TID  # since the storage was opened
        self._packed_earlier: Tid | None = None  # before that; looked up on first use

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads from committing and planning."""
        exclusive = self.engine.exclusive if self._is_shared else nullcontext
        with self.lock, self._slot.held(), exclusive():
            yield

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Exclude other packs. Raises `PackError` if one is running."""
        with held_for(self._pack_lock, 0) as is_held:
            if not is_held:
                raise PackError(
                    f"{self.engine.name} is being packed already. Wait until that pack has ended"
                )
            try:
                self._packer = get_ident()
                yield
            finally:
                self._packer = 0

    def wait_for_pack(self, seconds: float) -> None:
        """Wait, at most *seconds*, for a pack in another thread to end."""
        if self._packer != get_ident():
            with held_for(self._pack_lock, seconds):
                pass

    @contextmanager
    def rewriting(self, get_ready: Callable[[], None]) -> Iterator[None]:
        """Exclude commits and planning while an engine that packs itself changes its rows: see
        `IOwnPack`. *get_ready* is called first."""
        with self.alone():
            get_ready()
            try:
                yield
            finally:  # an interrupt may come after the pack took effect
                self.count += 1

    def amend(self, rows: Rows, transactions: Transactions) -> None:
        """Change rows: see `IEngine.amend`. Called inside `alone`."""
        if not rows and not transactions:
            return
        engine, views = self.engine, list(self._views)
        if views:
            old_rows = {key: row for key in rows if (row := engine.row(*key)) is not None}
            found = ((tid, engine.transaction(tid)) for tid in transactions)
            old_transactions = {tid: row for tid, row in found if row is not None}
            for view in views:
                view.keep(old_rows, old_transactions)
        engine.amend(rows, transactions)

    def watch(self, view: View) -> None:
        """Let *view* keep the old rows of all changes from now on."""
        with self.lock:
            self._views.add(view)

    def tick(self, db: Any, *, may_prune: bool) -> None:
        """Maintain the engine, and prune it for the database *db* (called now and then)."""
        if self._slot.failure is None:
            try:
                self.engine.tick()
            except StorageFailedError as error:
                self._slot.fail(str(error))
                self._slot.require_not_failed()
            if IPrunable.providedBy(self.engine) and may_prune and not self.engine.keeps_history:
                self.prune(db, self.engine.keep_seconds)

    def prune(self, db: Any, keep_seconds: float) -> None:
        """Remove old revisions that no view needs, of an engine without history (called
        periodically).

        A view is one of the connections of *db*, this process's database; or, in another process,
        one that is at most *keep_seconds* old.
        """
        horizon: Tid = self.engine.visibility.tid
        if keep_seconds:
            horizon = min(horizon, tid_after(NO_TID, time.time() - keep_seconds))
        horizon = min(horizon, db.oldest_view())
        while horizon > self.pruned_tid:
            with self.alone():
                self.note_packed(horizon)
                self.pruned_tid = self.engine.prune(horizon)

    # -- up to where revisions may be gone

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`."""
        if self._packed_earlier is None:
            self._packed_earlier = self._last_packed()
        noted = self.engine.packed_tid() if self._notes_packs else NO_TID
        return max(self._packed_tid, self._packed_earlier, noted)

    def _last_packed(self) -> Tid:
        """Return the tid of the last packed transaction, zeros if none is packed; the packed ones
        are the first ones."""
        engine = self.engine
        if IOwnPack.providedBy(engine):
            return NO_TID
        first = next(engine.transactions(NO_TID, engine.visibility.tid), None)
        if first is None or first.status != "p":
            return NO_TID
        found = engine.transactions(NO_TID, engine.visibility.tid, newest_first=True)
        return next((row.tid for row in found if row.status == "p"), NO_TID)

    def note_packed(self, tid: Tid) -> None:
        """Note, in advance, that revisions up to *tid* may be gone. Called inside `alone`."""
        self._packed_tid = max(self._packed_tid, tid)
        if self._notes_packs:
            self.engine.note_packed(tid)
