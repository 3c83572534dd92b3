"""Every contract, declared with `zope.interface`.

Storage interfaces keep ZODB's names and signatures, so that storages and wrappers written for
either plug into the other. A storage declares its abilities beyond `IStorage` with the further
interfaces; test for them with `IStorageHistory.providedBy(storage)`.
"""

# Methods in an interface have no self, and no bodies.
# mypy: ignore-errors

from zope.interface import Attribute, Interface


class IBroken(Interface):
    """An object whose class is missing: `objdb.records.broken`. It is kept, but cannot change."""

    __Broken_newargs__ = Attribute("The arguments of `__new__`, a tuple.")
    __Broken_initargs__ = Attribute("None: `__init__` is not called for stored objects.")
    __Broken_state__ = Attribute("The state, as it was stored; None if it has none.")


class IStorage(Interface):
    """Keeps revisions, and commits them in two phases.

    oids and tids are 8 bytes; records are bytes of any meaning. The calls of one transaction
    come in the order tpc_begin, store …, tpc_vote, tpc_finish, with tpc_abort at any point
    before the end. A call with a transaction that has not begun, or out of order, raises
    StorageTransactionError (tpc_abort ignores it).
    """

    def close():
        """Close the storage; calling it again does nothing."""

    def getName():
        """Return a readable name: the path, if there is one."""

    def getSize():
        """Return the size in bytes, on disk if the storage has files."""

    def __len__():
        """Return the number of objects."""

    def isReadOnly():
        """Return whether the storage refuses transactions."""

    def lastTransaction():
        """Return the tid of the last transaction that others can see, 8 zero bytes if none."""

    def sortKey():
        """Return the text that orders storages in a commit of several databases."""

    def registerDB(db):
        """Register the database, for `db.resolve`."""

    def new_oid():
        """Return an oid that was never returned before. ReadOnlyError when read-only."""

    def load(oid, version=""):
        """Return (record, tid) of the current revision. POSKeyError if there is no object."""

    def loadBefore(oid, tid):
        """Return (record, tid, next tid or None) of the last revision before *tid*.

        None if the object had no revision then, POSKeyError if there is no such object.
        """

    def loadSerial(oid, serial):
        """Return the record that the transaction *serial* wrote. POSKeyError if there is none."""

    def getTid(oid):
        """Return the tid of the current revision. POSKeyError if there is no object."""

    def tpc_begin(transaction, tid=None, status=" "):
        """Begin a transaction; *tid* and *status* are given for copied transactions."""

    def store(oid, serial, data, version, transaction):
        """Stage a record based on the revision *serial* (8 zero bytes: a new object)."""

    def restore(oid, serial, data, version, prev_txn, transaction):
        """Stage a revision copied from another storage, without a conflict check."""

    def deleteObject(oid, serial, transaction):
        """Stage the deletion of the object."""

    def checkCurrentSerialInTransaction(oid, serial, transaction):
        """Let the vote raise ReadConflictError unless *serial* is still current."""

    def tpc_vote(transaction):
        """Do everything that can fail. Return the oids whose conflicts were resolved."""

    def tpc_finish(transaction, callback=None):
        """Commit; return the tid when the data is durable.

        `callback(tid)` runs before lastTransaction() moves and before anyone sees the data.
        """

    def tpc_abort(transaction):
        """Drop what is staged; ignored for a transaction that has not begun."""


class IStorageReadChecks(Interface):
    """A storage that checks all reads of a transaction at once."""

    def checkReads(serials, unchanged_since, transaction, version=""):
        """Let the vote raise ReadConflictError unless every tid in *serials* (oid: tid) is still
        current, as seen in *version*; and, if *unchanged_since* is a tid, unless it is the last
        transaction."""


class IStorageHistory(Interface):
    """A storage that can list an object's revisions."""

    def history(oid, size=1):
        """Return the last *size* revisions, newest first, as dicts.

        Keys: tid, serial, time (seconds since 1970), user_name, description (text), size
        (bytes), version, and the items of the transaction's extension.
        """


class IStorageIteration(Interface):
    """A storage whose transactions can be listed in order."""

    def iterator(start=None, stop=None):
        """Yield the transactions with start <= tid <= stop, oldest first.

        Each has tid, status, user, description, extension, extension_bytes, and yields its
        revisions: oid, tid, data (None: a tombstone), version, data_txn.
        """


class IStorageCurrentRecordIteration(Interface):
    """A storage whose objects and last transactions can be listed, as ZODB's tools do."""

    def record_iternext(next=None):
        """Return (oid, tid, record, next oid or None) of the object *next* (None: of the first
        object); pass the next oid to the next call. POSKeyError if there is no object."""

    def lastInvalidations(count):
        """Return [(tid, [oid, ...]), ...] of the last *count* transactions, the oldest first."""


class IStorageRestoreable(Interface):
    """A storage that takes transactions from another one as they are."""

    def restore(oid, serial, data, version, prev_txn, transaction):
        """See IStorage. *prev_txn* is the tid of a revision that has the same data."""

    def copyTransactionsFrom(other, progress=None):
        """Copy from *other*, a storage that can be iterated, the transactions that are missing
        here; return their number.

        `progress(so far)` is called after each, with transactions, revisions and tid. After an
        interruption, call it again. StorageError if the last transaction here is not in *other*.
        """


class IStorageUndoable(Interface):
    """A storage that can undo a transaction by a new one.

    Transactions are named by the id that undoLog gives, or by their tid.
    """

    def supportsUndo():
        """Return whether transactions can be undone."""

    def undo(transaction_id, transaction):
        """Stage the undo of the transaction *transaction_id*; return (tid, oids).

        *tid* is that of *transaction*, None if it gets one at the vote. Each object returns to
        the revision before, or is deleted; later changes are merged if the class can merge them.
        UndoError, or MultipleUndoErrors, when that is impossible, here or at the vote.
        """

    def preview_undo(transaction_ids):
        """Return what undoing these transactions, in this order, would do now, as a list of
        UndoneObject."""

    def undoLog(first, last, filter=None):
        """Return the transactions that can be undone, newest first, as dicts.

        Keys: id, time (seconds since 1970), user_name, description (text), size (bytes), and
        the items of the transaction's extension. *filter* is called with each entry, and returns
        whether to keep it.

        Integers are positions, 0 for the newest, *last* excluded; a negative *last* is a number
        of entries. Floats (seconds since 1970) and datetimes with a time zone are times, both
        included; with a time, 0 as *first* is the beginning, and a negative *last* is still a
        number of entries.
        """

    def undoInfo(first, last, specification=None):
        """Return the entries of undoLog that have all items of the dict *specification*."""


class IStorageVersions(Interface):
    """A storage with versions: named lines of work that lock the objects they change.

    An object's current revision is in at most one version. A connection in that version sees
    that revision, all others the one outside. The calls of IStorage that read and store take the
    name of a version; storing an object outside the version it is in raises VersionLockError at
    the vote. An unknown version is an empty one.
    """

    def supportsVersions():
        """Return whether there are versions."""

    def loadBefore(oid, tid, version=""):
        """See IStorage; as seen in *version*. POSKeyError for an object that was created in
        another version."""

    def checkCurrentSerialInTransaction(oid, serial, transaction, version=""):
        """See IStorage; as seen in *version*."""

    def commitVersion(source, destination, transaction):
        """Stage moving all changes in *source* to *destination* ("": outside any version); return
        the oids. VersionCommitError unless *source* is a version other than *destination*."""

    def abortVersion(version, transaction):
        """Stage returning all objects in *version* to their state outside; those created there
        are deleted. Return the oids. VersionError for a name that is not valid."""

    def versions(max=None):
        """Return the names of the versions that are not empty, at most *max*."""

    def versionEmpty(version):
        """Return whether no object is in *version*. VersionError for a name that is not valid."""

    def modifiedInVersion(oid):
        """Return the version that the current revision is in, "" if none. POSKeyError."""

    def objects_in_version(version):
        """Return the oids of the objects whose current revision is in *version*."""


class IStoragePacked(Interface):
    """A storage from which a pack, of any process, may have removed revisions."""

    packed_tid = Attribute(
        "The last transaction whose revisions may be gone: packed away since the storage was "
        "opened, or before. Zeros if none."
    )


class IStoragePackable(IStoragePacked):
    """A storage that can remove old revisions and unreachable objects."""

    def pack(
        time, referencesf, gc=True, *, progress=None, keep_old=False, dry_run=False, roots=None,
        elsewhere=None
    ):
        """Keep of each object the revision that was current at *time*, and everything later.

        *time*: seconds since 1970, or a tid. With *gc*, garbage is removed: objects reachable
        neither from the root at that time, nor from any object that a later transaction changed
        or refers to. `referencesf(record)` returns the oids that a record refers to; `roots()`
        further oids that stay. If a record refers to a missing object, and `elsewhere(oid)` does
        not say that it is in another storage, PackError is raised and nothing removed: the
        missing object could have referred to others. Transactions up to *time* cannot be undone
        any more; empty ones are removed, except the last.

        `progress(phase, done, total)` is called periodically; if it raises, the pack ends, with
        everything as it was. *keep_old*: keep the old data, if the storage has a place for it.
        *dry_run*: change nothing, and return an estimate. Others read and commit meanwhile.

        Returns a PackResult: bytes and objects before and after. PackError while another pack
        is running; StorageSpaceError, ReadOnlyError, UsageError for a time in the future.
        """


class IStorageSelfCheck(Interface):
    """A storage that can check its own structure."""

    def self_check():
        """Return a sentence for each problem that its iterator does not show."""


class IStoragePolling(Interface):
    """A storage that other processes, or other storages, can commit to."""

    def poll():
        """Take in transactions committed elsewhere: send the invalidations to the database, then
        move lastTransaction()."""


class IStoragePrefetch(Interface):
    """A storage on which many loads together take less time than one after the other."""

    def prefetch(oids, before):
        """Bring the revisions that `loadBefore(oid, before)` returns to where it finds them
        quickly. Objects that there are not are left out."""


class IStorageSync(Interface):
    """A storage on which `poll` may not see what was committed elsewhere a moment ago."""

    def sync():
        """Take in all that was acknowledged to anybody before the call."""


class IStorageShared(IStoragePolling):
    """A storage that several processes can have open at once, each seeing what others commit."""

    def again():
        """Open another storage on the same files, with the same options: for a forked child, in
        which this one cannot be used."""
