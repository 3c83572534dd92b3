"""The engine contract. An engine keeps rows; `Storage` makes a storage of any engine.

    database ─► Storage ─► engine ─► medium
                two phases, conflicts, versions,      rows of revisions, by oid and tid
                undo, history, packs, copies          rows of transactions, by tid

An engine knows no two-phase protocol, no conflicts and no versions: it finds rows, and writes the
rows of one transaction at a time. `memory` is the plainest one; read that next. A transaction goes
through an engine in three steps:

    vote     write(transaction, rows) ─► token               everything that can fail
    finish   commit(token)                                   the transaction is decided
             publish(token)                                  others see it
    abort    rollback(token)                                 it never was

Rows may be on the medium before their transaction is committed: `Storage` bounds every search by
`visibility`. Reading methods are called by any thread at any time. Writing methods are called by
one thread at a time; a transaction may be written while the one before it is not published yet.

An engine that cannot go on raises `StorageFailedError` with the reason, as in "the disk said no":
`Storage` then commits no more, and says so.

What else an engine can do it declares with one of the further interfaces.
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
    """How far the transactions of the engine *name* have come.

    committed_tid   the last transaction that is committed, whether others see it or not
    tid             the last one that others see
    before          the tid after that: what bounds every search
    """

    __slots__ = ("_name", "before", "committed_tid", "tid")

    def __init__(self, name: str) -> None:
        self._name = name
        self.committed_tid: Tid = NO_TID
        self.tid: Tid = NO_TID
        self.before: Tid = next_tid(NO_TID)

    def show(self, tid: Tid) -> None:
        """Let others see everything up to the transaction *tid*. Raises `CorruptedDataError` for
        a tid that no transaction can have."""
        if tid > LAST_TID:
            raise CorruptedDataError(
                f"{self._name} is damaged: its last transaction has the tid {format_tid(tid)}, "
                "which is beyond the range of tids. Restore a backup", path=self._name,
            )
        if tid > self.tid:
            self.before = next_tid(tid)
            self.tid = tid
        self.committed_tid = max(self.committed_tid, tid)


class IEngine(Interface):
    """Keeps rows (see `objdb.storage.rows`). Oids and tids are 8 bytes."""

    name = Attribute("What messages call it: its path, where it has one.")
    path = Attribute("The file or directory, an absolute path; None without one.")
    visibility = Attribute("A `Visibility`, which shows the last transaction from the beginning.")
    max_oid = Attribute("The largest oid in it when it was opened, as an int.")
    keeps_history = Attribute("Whether old revisions stay; else see `IPrunable`.")
    has_checksums = Attribute("Whether rows have checksums; None without a medium.")

    def row(oid, tid):
        """Return the `Row` of *oid* that the transaction *tid* wrote, or None."""

    def before(oid, tid):
        """Return the last row of *oid* with a smaller tid than *tid*, or None."""

    def after(oid, tid):
        """Return the first row of *oid* with a larger tid than *tid*, or None."""

    def current(oids):
        """Return {oid: `Current` of its last committed row, or None} for *oids*, an iterable."""

    def in_versions():
        """Return {oid: `Current`} of the objects whose last committed row is in a version."""

    def had_versions():
        """Return whether any row, old or new, may be in a version: a pack without is faster."""

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

        Everything that can fail fails here: `StorageWriteError` for a full disk, say."""

    def commit(token):
        """Commit what was written. After `StorageFailedError` or OSError the outcome is unknown:
        the storage commits no more. After anything else, which came from outside, `is_committed`
        is asked, and `commit` is called again to do what is left."""

    def is_committed(token):
        """Return whether what was written is committed."""

    def publish(token):
        """Let others see it: `visibility.show(tid)`. Called in the order of the tids, and again
        where it was interrupted."""

    def rollback(token):
        """Take back what was written; *token* is None if `write` raised, or was not called.
        Called again where it was interrupted."""

    def amend(rows, transactions):
        """Replace rows, a dict by (oid, tid), and transactions, a dict by tid, for a pack; where
        a value is None, remove it. All of it is done, or nothing."""

    def size():
        """Return the size of all rows in bytes, about."""

    def count():
        """Return the number of objects."""

    def close():
        """Release the medium. In a process that was forked, release only what is its own."""


class ICurrentLoad(IEngine):
    """An engine with a fast way to load what is loaded most."""

    def load_current(oid, tid, version):
        """Return (record, its tid, None) if the last row of *oid* is visible, smaller than *tid*,
        in no other version than *version*, and no tombstone; else, or in doubt, None."""


class ISynced(IEngine):
    """An engine whose `commit` does not wait for the medium: several transactions share a sync."""

    def sync():
        """Put everything committed on the medium. Whatever this raises, the outcome is unknown."""

    def after_commit():
        """Do what is due when a transaction is visible; called by the thread that committed."""


class IChained(IEngine):
    """An engine whose rows lead to each other. `write` takes rows that have a back pointer and no
    data: a transaction that brings old data back does not copy it. It finds by itself what is
    `outside`."""


class IReadChecks(IEngine):
    """An engine with a fast way to compare many tids."""

    def changed(serials):
        """Return {oid: current tid} of those in *serials*, {oid: tid}, that have another one."""


class IPrunable(IEngine):
    """An engine that may keep no history: old revisions stay while they are being read."""

    keep_seconds = Attribute("How long revisions stay for readers in other processes.")

    def prune(horizon):
        """Remove the rows that were replaced up to the transaction *horizon*, and the transactions
        up to then but the last one; or a part of that. Return up to which transaction."""


class ISelfChecking(IEngine):
    """An engine that can check its own structure."""

    def self_check():
        """Return a sentence for each problem."""


class IMaintained(IEngine):
    """An engine with something to do now and then."""

    tick_seconds = Attribute("How often: a number of seconds; 0 for never.")

    def tick():
        """Do it. Called by a thread; what it raises is logged."""


class IOidRanges(IEngine):
    """An engine that has to be asked which oids are free."""

    def reserve_oids(least, count):
        """Reserve *count* oids larger than *least*; return the last one."""


class IPackedTid(IEngine):
    """An engine that knows up to where revisions may be gone."""

    def note_packed(tid):
        """Tell all processes that revisions up to *tid* may be gone."""

    def packed_tid():
        """Return the largest tid that was noted, by any process."""


class IOwnHistory(IEngine):
    """An engine that finds what is old in a way of its own."""

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
        manager, nobody commits or plans, and all that was committed is visible: there the rows
        change."""


class IShared(IOidRanges, IPackedTid):
    """An engine on a medium that several processes write."""

    def begin_vote():
        """Keep other processes from writing until `commit` or `rollback`, and take in what they
        have committed. What this thread reads until `end_vote` is what is committed."""

    def end_vote():
        """Let this thread read as others do again."""

    def exclusive():
        """Return a context manager: inside it no process writes but this thread, which may call
        `amend`, `prune`, `reserve_oids` and `note_packed`."""

    def is_foreign(tid):
        """Whether another process committed *tid*, which is not visible here yet."""


def declared(kind: type, engine: Any, without: tuple[Any, ...]) -> Iterable[Any]:
    """Return the interfaces that a storage over *engine*, of the class *kind*, declares besides
    those of the class; none where the class says by itself that it is a storage."""
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
    """Stands for the fast way to load, where an engine has none."""

    def load_current(self, oid: Oid, tid: Tid, version: str) -> None:
        """See `ICurrentLoad`: always in doubt."""
