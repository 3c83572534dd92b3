"""The contracts of databases and connections, and what storages and connections ask of a database.

Names in camelCase are ZODB's.
"""

# Methods in an interface have no self, and no bodies.
# mypy: ignore-errors

from zope.interface import Attribute, Interface


class IDatabaseForStorage(Interface):
    """The part of a database that a storage calls, once registered (`registerDB`)."""

    def resolve(oid, old, committed, new, serials):
        """Return the record that merges *committed* and *new*, both based on *old* (None if it
        was packed away); *serials* are the tids of *committed* and *old*. ConflictError."""

    def is_equal(oid, one, other):
        """Return whether two records of an object are equal; None stands for no object."""

    def invalidate(tid, oids, version=""):
        """Invalidate *oids*, which the transaction *tid* changed in *version*."""

    def invalidateCache():
        """Let every connection drop its cache when its next transaction begins."""

    def oldest_view():
        """Return the tid of the oldest view of a connection: revisions replaced up to then are
        visible in no view."""


class IDatabaseForConnection(Interface):
    """The part of a database that its connections call."""

    name = Attribute("The database's name in errors and logs.")
    options = Attribute("The options of the database: see objdb.database.options.Options.")
    invalidations = Attribute("Which transaction changed what: see InvalidationLog.")
    turns = Attribute("Whose commit goes first when attempts are repeated: see Turns.")
    committer = Attribute("Threads that commit on behalf of coroutines: see Workers.")
    workers = Attribute("Threads that wait on behalf of coroutines: see Workers.")
    transaction_ended = Attribute("Called when a transaction of a connection has ended, or None.")

    def current_tid():
        """Return the tid of a new view."""

    def connection_to(name, transaction_manager, isolation, past, version):
        """Return a connection to another database of the group, in the same transactions."""

    def holder_of(connection):
        """Return the pool's entry for a connection in use; None if it is not in use or pooled."""

    def return_connection(connection):
        """Take back a connection (called when it is closed)."""

    def storage_commit(txn):
        """Return the shared commit of the database's storage in a transaction."""

    def note_commit(tid, oids, versions=(), origin=None):
        """Note that the transaction *tid* changed *oids*, through the connection *origin*."""

    def count_conflict(error):
        """Count a conflict, and let the error look up the changes."""


class IDatabase(IDatabaseForStorage):
    """Hands out connections to one storage."""

    def references(record, oids=None):
        """Return the oids that a record refers to; added to *oids* if that is given."""

    storage = Attribute("The storage.")
    database_name = Attribute("The database's name among `databases`.")
    databases = Attribute("dict of name -> database: those that can refer to one another.")

    def open(version="", transaction=None, temporary=False, *, transaction_manager=None):
        """Return a connection. PoolTimeoutError when none becomes free in time."""

    def close():
        """Close all connections and the storage."""

    def lastTransaction():
        """Return the tid of the last transaction, 8 zero bytes if there is none."""

    def transaction(note=None, version=""):
        """Give a connection in a transaction of its own, for `with` and `async with`."""

    def attempts(tries=3, note=None, version=""):
        """Yield up to *tries* attempts at a transaction, until one succeeds."""

    def run(function, tries=3, note=None, version=""):
        """Call `function(connection)` in a transaction, again after a conflict; return its
        result."""

    def aopen(version="", *, temporary=False, transaction_manager=None):
        """Return a connection, for a coroutine that awaits it."""

    def arun(function, tries=3, note=None, version=""):
        """Do what `run` does, for a coroutine."""

    def supportsTransactionalUndo():
        """Return whether transactions can be undone."""

    def undo(transaction_id, txn=None):
        """Undo a transaction when *txn* (default: the current one) commits."""

    def undoMultiple(transaction_ids, txn=None):
        """Undo several, the newest first, when *txn* commits."""

    def undoLog(first=0, last=-20, filter=None):
        """Return the transactions that can be undone: see IStorageUndoable."""

    def undoInfo(first=0, last=-20, specification=None):
        """Return the undoable transactions with the items of *specification*: see
        IStorageUndoable."""

    def undo_preview(transaction_ids):
        """Return what undoing would change, and what prevents it; commit nothing."""

    def commitVersion(source, destination="", txn=None):
        """Commit a version, to another or outside any, when *txn* (default: the current one)
        commits."""

    def abortVersion(version, txn=None):
        """Drop the changes in a version when *txn* (default: the current one) commits."""

    def versions(max=None):
        """Return the names of the versions that are not empty: see IStorageVersions."""

    def versionEmpty(version):
        """Return whether nothing is changed in a version."""

    def modifiedInVersion(oid):
        """Return the version that an object is changed in, "" if in none."""

    def supportsVersions():
        """Return whether versions are supported."""

    def version_diff(version):
        """Return what a version changes in each object, and which transactions did it."""

    def getVersionPoolSize():
        """Return the maximum number of connections in use at once in each version."""

    def setVersionPoolSize(size):
        """Allow *size* connections in use at once in each version."""

    def getVersionCacheSize():
        """Return how many objects each connection in a version keeps loaded."""

    def setVersionCacheSize(size):
        """Let each connection in a version keep *size* objects loaded."""

    def removeVersionPool(version):
        """Drop the pool of a version, if none of its connections is in use."""

    def history(oid, size=1):
        """Return the last *size* revisions of an object: see IStorageHistory."""

    def pack(t=None, days=0):
        """Remove old revisions and unreachable objects: see IStoragePackable."""

class IDatabaseCaches(Interface):
    """ZODB's calls about the pool and the caches of a database. They set the database's options:
    see objdb.database.options.Options."""

    def getPoolSize():
        """Return the maximum number of connections in use at once."""

    def setPoolSize(size):
        """Allow *size* connections in use at once."""

    def getCacheSize():
        """Return how many objects each connection keeps loaded."""

    def setCacheSize(size):
        """Let each connection keep *size* objects loaded."""

    def getCacheSizeBytes():
        """Return how many bytes of records each connection keeps loaded (0: no limit)."""

    def setCacheSizeBytes(size):
        """Let each connection keep objects of *size* bytes of records loaded (0: no limit)."""

    def setCacheDeactivateAfter(seconds):
        """Set the default age of `cacheFullSweep`."""

    def cacheMinimize(age=0):
        """Make ghosts of unchanged objects not used for *age* seconds, in all connections."""

    def cacheFullSweep(age=None):
        """Make ghosts of unchanged objects not used for *age* seconds, one after the other."""

    def cacheSize():
        """Return the number of loaded objects in all connections."""

    def cacheDetail():
        """Return (class name, number of loaded objects), by class name."""

    def cacheDetailSize():
        """Return for each connection a dict: connection, ngsize (loaded objects), size (with
        ghosts)."""

    def cacheExtremeDetail():
        """Return for each loaded object a dict: conn_no, oid, klass, size, state."""


class IConnection(Interface):
    """Binds objects to one snapshot of a database in one transaction."""

    def root():
        """Return the root object, a PersistentMapping."""

    def getVersion():
        """Return the name of the connection's version, "" if it is in none."""

    def modifiedInVersion(oid):
        """Return the version that an object is changed in, "" if in none."""

    def get(oid):
        """Return the object with this oid, as a ghost if it was not in the cache."""

    def add(obj):
        """Give *obj* an oid, and store it with this transaction."""

    def history(obj, size=1):
        """Return the last *size* revisions of *obj*: see IStorageHistory."""

    def sync():
        """End the view, and begin a new one at the last transaction."""

    def db():
        """Return the database."""

    def get_connection(name):
        """Return the connection to another database of the group, in the same transaction."""

    def prefetch(*objects, depth=0):
        """Load objects, and those they refer to within *depth* steps."""

    def isReadOnly():
        """Return whether objects cannot be changed through this connection."""

    def readCurrent(obj):
        """Let the commit fail if *obj* is no longer current then."""

    def cacheMinimize():
        """Make ghosts of all loaded, unchanged objects."""

    def cacheFullSweep(age=None):
        """Make ghosts of unchanged objects not used for *age* seconds."""

    def cacheGC():
        """Reduce the cache to its target size, least recently used objects first."""

    def onCloseCallback(function):
        """Have *function* called when the connection is closed, once."""

    def setDebugInfo(*info):
        """Keep *info* with the connection until it is closed."""

    def getDebugInfo():
        """Return the info of `setDebugInfo`."""

    def close():
        """Give the connection back. ConnectionStateError with uncommitted changes."""
