"""The engine contract. An engine keeps rows; `Storage` makes a storage of any engine.

    database ─► Storage ─► engine ─► disk
                two phases, conflicts, versions,      rows of revisions, by oid and tid
                undo, history, packs, copies          rows of transactions, by tid

An engine does not implement the two-phase protocol, conflicts or versions: it finds rows, and
writes the rows of one transaction at a time. `memory` is the simplest one; read that next. A
transaction passes an engine in three steps:

    vote     write(transaction, rows) ─► token               everything that can fail
    finish   commit(token)                                   the transaction is committed
             publish(token)                                  it is visible
    abort    rollback(token)                                 nothing of it remains

Rows may be on disk before their transaction is committed: `Storage` bounds every search by
`visibility`. Any thread calls reading methods at any time. One thread at a time calls writing
methods; a transaction may be written before the previous one is published.

An engine that cannot go on raises `StorageFailedError` with the reason, as in "the disk said no":
`Storage` then refuses to commit, with that reason.

An engine declares further abilities with the further interfaces.
"""

# Methods in an interface have no self, and no bodies.
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zope.interface import Attribute, Interface

from objdb import interfaces
from objdb.errors import CorruptedDataError
from objdb.ids import LAST_TID, NO_TID, Oid, Tid, format_tid, next_tid


class Visibility:
    """Which transactions of the engine *name* are committed, and which are visible.

    committed_tid   the last committed transaction, visible or not
    tid             the last visible transaction
    before          the tid after that: the bound of every search
    """

    __slots__ = ("_name", "before", "committed_tid", "tid")

    def __init__(self, name: str) -> None:
        self._name = name
        self.committed_tid: Tid = NO_TID
        self.tid: Tid = NO_TID
        self.before: Tid = next_tid(NO_TID)

    def show(self, tid: Tid) -> None:
        """Make everything up to the transaction *tid* visible. Raises `CorruptedDataError` for a
        tid beyond the range of tids."""
        if tid > LAST_TID:
            raise CorruptedDataError(
                f"{self._name} is damaged: its last transaction has the tid {format_tid(tid)}, "
                "which is beyond the range of tids. Restore a backup", path=self._name,
            )
        if tid > self.tid:
            self.before = next_tid(tid)
            self.tid = tid
        if tid > self.committed_tid:
            self.committed_tid = tid


class IEngine(Interface):
    """Keeps rows (see `objdb.storage.rows`). Oids and tids are 8 bytes."""

    name = Attribute("The engine's name in messages: its path, if it has one.")
    path = Attribute("The file or directory, an absolute path; None without one.")
    visibility = Attribute("A `Visibility`, which shows the last transaction from the beginning.")
    max_oid = Attribute("The largest oid in it when it was opened, as an int.")
    keeps_history = Attribute("Whether old revisions stay; else see `IPrunable`.")
    has_checksums = Attribute("Whether rows have checksums; None for an engine in memory.")

    def row(oid, tid):
        """Return the `Row` of *oid* written by the transaction *tid*, or None."""

    def before(oid, tid):
        """Return the last row of *oid* with a smaller tid than *tid*, or None."""

    def after(oid, tid):
        """Return the first row of *oid* with a larger tid than *tid*, or None."""

    def current(oids):
        """Return {oid: `Current` of its last committed row, or None} for *oids*, an iterable."""

    def in_versions():
        """Return {oid: `Current`} of the objects whose last committed row is in a version."""

    def had_versions():
        """Return whether any row, old or new, may be in a version: if not, a pack is faster."""

    def transaction(tid):
        """Return the `TransactionRow` of *tid*, or None."""

    def transactions(start, stop, newest_first=False):
        """Yield the committed transactions with *start* <= tid <= *stop*, the oldest first."""

    def chains():
        """Yield (oid, [(tid, size of the record in bytes), …]) of every object; tids ascend."""

    def write(transaction, rows):
        """Write a `TransactionRow` and its rows, an iterable of (oid, `Row`), without committing
        them; return a token. `rows.replaced` are the oids that have a row already: see
        `objdb.storage.staging.StagedRows`.

        Everything that can fail fails here, with `StorageWriteError` for a full disk."""

    def commit(token):
        """Commit the written transaction. After `StorageFailedError` or OSError the outcome is
        unknown: the storage refuses to commit. After any other exception, which came from outside,
        the storage calls `is_committed`, and `commit` again for the remaining steps."""

    def is_committed(token):
        """Return whether the written transaction is committed."""

    def publish(token):
        """Make the transaction visible: `visibility.show(tid)`. Called in tid order, and again if
        it was interrupted."""

    def rollback(token):
        """Roll back the written transaction; *token* is None if `write` raised, or was not called.
        Called again if it was interrupted."""

    def amend(rows, transactions):
        """Replace rows, a dict by (oid, tid), and transactions, a dict by tid, for a pack; remove
        those whose value is None. All is done, or nothing."""

    def size():
        """Return the approximate size of all rows in bytes."""

    def count():
        """Return the number of objects."""

    def close():
        """Close the files. In a forked child, release only its own resources."""


class ICurrentLoad(IEngine):
    """An engine with a fast path for loading current revisions."""

    def load_current(oid, tid, version):
        """Return (record, its tid, None) if the last row of *oid* is visible, smaller than *tid*,
        in *version* or outside any, and not a tombstone; else, or in doubt, None."""


class ISynced(IEngine):
    """An engine whose `commit` does not sync: several transactions share a sync."""

    def sync():
        """Make all committed transactions durable. After any exception the outcome is unknown."""

    def after_commit():
        """Do periodic work once a transaction is visible; called by the thread that committed."""


class IChained(IEngine):
    """An engine whose rows refer to each other. `write` takes rows that have a back pointer and no
    data: a transaction that restores old data does not copy it. The engine itself finds the
    revision `outside`."""


class IReadChecks(IEngine):
    """An engine with a fast path for comparing many tids."""

    def changed(serials):
        """Return {oid: current tid} of the objects whose tid in *serials*, {oid: tid}, differs."""


class IPrunable(IEngine):
    """An engine that may keep no history: old revisions stay while a view needs them."""

    keep_seconds = Attribute("How long revisions stay for readers in other processes.")

    def prune(horizon):
        """Remove the rows that were replaced up to the transaction *horizon*, and the transactions
        up to then except the last one; or a part of that. Return the transaction reached."""


class ISelfChecking(IEngine):
    """An engine that can check its own structure."""

    def self_check():
        """Return a sentence for each problem."""


class IMaintained(IEngine):
    """An engine with periodic work."""

    tick_seconds = Attribute("The period in seconds; 0 for never.")

    def tick():
        """Do the work. Called by a thread; exceptions are logged."""


class IOidRanges(IEngine):
    """An engine that hands out ranges of free oids."""

    def reserve_oids(least, count):
        """Reserve *count* oids larger than *least*; return the last one."""


class IPackedTid(IEngine):
    """An engine that knows the last transaction whose revisions may be packed away."""

    def note_packed(tid):
        """Note, for all processes, that revisions up to *tid* may be gone."""

    def packed_tid():
        """Return the largest tid that any process noted."""


class IOwnHistory(IEngine):
    """An engine that finds old revisions and transactions itself."""

    def load_before(oid, tid, version):
        """See `IStorageVersions.loadBefore`."""

    def list_revisions(oid, size):
        """See `IStorageHistory.history`."""

    def oids():
        """Yield the oids of all objects."""

    def load_serial(oid, serial):
        """See `IStorage.loadSerial`."""

    def iterate(start, stop):
        """See `IStorageIteration.iterator`; None leaves that end open."""

    def undoable(stop):
        """Yield the visible transactions that can be undone, with tid <= *stop* (None: all), the
        newest first, up to the first packed one."""


class IOwnPack(IEngine):
    """An engine that is not packed row by row."""

    def pack(options, alone):
        """Pack as `PackOptions` say, and return a `PackResult`. Inside `alone()`, a context
        manager, no thread commits or plans, and all committed transactions are visible: there the
        rows change."""


class IShared(IOidRanges, IPackedTid):
    """An engine whose files several processes write."""

    def begin_vote():
        """Keep other processes from writing until `commit` or `rollback`, and take in their
        commits. Until `end_vote` this thread reads all committed data."""

    def end_vote():
        """Let this thread read visible data only again."""

    def exclusive():
        """Return a context manager: inside it only this thread, of all processes, writes; it may
        call `amend`, `prune`, `reserve_oids` and `note_packed`."""

    def is_foreign(tid):
        """Whether another process committed *tid*, which is not visible here yet."""


def declared(kind: type, engine: Any, without: tuple[Any, ...]) -> Iterable[Any]:
    """Return the interfaces that a storage over *engine*, of the class *kind*, declares besides
    those of the class; none if the class itself declares that it is a storage."""
    if interfaces.IStorage.implementedBy(kind):
        return ()
    names = [
        "", "ReadChecks", "Iteration", "CurrentRecordIteration", "Restoreable", "Packed",
        "Packable",
    ]
    if engine.keeps_history:
        names += ["History", "Undoable", "Versions"]
    if ISelfChecking.providedBy(engine):
        names.append("SelfCheck")
    found = (getattr(interfaces, f"IStorage{name}") for name in names)
    return (interface for interface in found if interface not in without)


class NoFastLoad:
    """Stands for the fast path, for an engine without one."""

    def load_current(self, oid: Oid, tid: Tid, version: str) -> None:
        """See `ICurrentLoad`: always in doubt."""
