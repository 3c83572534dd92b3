"""What databases and connections provide, and what is asked of a database from below.

Names in camelCase are ZODB's.
"""

# Methods in an interface have no self, and no bodies.
# mypy: ignore-errors

from zope.interface import Attribute, Interface


class IDatabaseForStorage(Interface):
    """What a storage asks of the database that it is registered with (`registerDB`)."""

    def resolve(oid, old, committed, new, serials):
        """Return the record that merges *committed* and *new*, both made from *old* (None where it
        was packed away); *serials* are the tids of *committed* and *old*. ConflictError."""

    def is_equal(oid, one, other):
        """Return whether two records of an object, or None for no object, are the same."""

    def references(record, oids=None):
        """Return the oids that a record refers to; added to *oids* if that is given."""

    def invalidate(tid, oids, version=""):
        """Tell that the transaction *tid* changed *oids*, in *version*."""

    def invalidateCache():
        """Let every connection drop its cache when its next transaction begins."""

    def oldest_view():
        """Return the tid of the oldest view that a connection has: what was replaced up to then is
        seen by nobody."""


class IDatabaseForConnection(Interface):
    """What a connection asks of its database."""

    name = Attribute("What errors and logs call the database.")
    options = Attribute("The options of the database: see objdb.database.options.Options.")
    invalidations = Attribute("Which transaction changed what: see InvalidationLog.")
    turns = Attribute("Whose commit goes first when attempts are repeated: see Turns.")
    committer = Attribute("Threads that commit in the place of coroutines: see Workers.")
    workers = Attribute("Threads that wait in the place of coroutines: see Workers.")
    transaction_ended = Attribute("Called when a transaction of a connection has ended, or None.")

    def current_tid():
        """Return the tid that a new view is at."""

    def connection_to(name, transaction_manager, isolation, past, version):
        """Return a connection to another database of the group, in the same transactions."""

    def holder_of(connection):
        """Return what stands for who has a connection of a pool; None if nobody, or no pool."""

    def return_connection(connection):
        """Take back a connection (called when it is closed)."""

    def storage_commit(txn):
        """Return the part that the database's storage has in a transaction, for all who ask."""

    def note_commit(tid, oids, versions=(), origin=None):
        """Note that the transaction *tid* changed *oids*, through the connection *origin*."""

    def count_conflict(error):
        """Note a conflict, and let the error look up what changed."""


class IDatabase(IDatabaseForStorage):
    """Hands out connections to one storage."""

    storage = Attribute("The storage.")
    database_name = Attribute("The database's name among `databases`.")
    databases = Attribute("dict of name -> database: those that can refer to one another.")

    def open(version="", transaction=None, temporary=False, *, transaction_manager=None):
        """Return a connection. PoolTimeoutError when none becomes free in time."""

    def close():
        """Close all connections and the storage."""

    def lastTransaction():
        """Return the tid of the last transaction, zeros if there is none."""

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
        """Return those that have the items of *specification*: see IStorageUndoable."""

    def undo_preview(transaction_ids):
        """Return what undoing would change, and what stands in the way; commit nothing."""

    def commitVersion(source, destination="", txn=None):
        """Commit a version, to another or to none, when *txn* (default: the current one) does."""

    def abortVersion(version, txn=None):
        """Drop what a version changes, when *txn* (default: the current one) commits."""

    def versions(max=None):
        """Return the names of the versions that are not empty: see IStorageVersions."""

    def versionEmpty(version):
        """Return whether nothing is changed in a version."""

    def modifiedInVersion(oid):
        """Return the version that an object is changed in, "" if in none."""

    def supportsVersions():
        """Return whether there are versions."""

    def version_diff(version):
        """Return what a version changes in each object, and which transactions did it."""

    def getVersionPoolSize():
        """Return how many connections can be out at once in each version."""

    def setVersionPoolSize(size):
        """Let *size* connections be out at once in each version."""

    def getVersionCacheSize():
        """Return how many objects each connection in a version keeps loaded."""

    def setVersionCacheSize(size):
        """Let each connection in a version keep *size* objects loaded."""

    def removeVersionPool(version):
        """Let go of the connections kept for a version, if none is out."""

    def history(oid, size=1):
        """Return the last *size* revisions of an object: see IStorageHistory."""

    def pack(t=None, days=0):
        """Forget what is older, and what nothing leads to any more: see IStoragePackable."""

class IDatabaseCaches(Interface):
    """ZODB's calls about the pool and the caches of a database. What they set are the database's
    options: see objdb.database.options.Options."""

    def getPoolSize():
        """Return how many connections can be out at once."""

    def setPoolSize(size):
        """Let *size* connections be out at once."""

    def getCacheSize():
        """Return how many objects each connection keeps loaded."""

    def setCacheSize(size):
        """Let each connection keep *size* objects loaded."""

    def getCacheSizeBytes():
        """Return how many bytes of records each connection keeps loaded (0: no limit)."""

    def setCacheSizeBytes(size):
        """Let each connection keep objects of *size* bytes of records loaded (0: no limit)."""

    def setCacheDeactivateAfter(seconds):
        """Set the age that `cacheFullSweep` goes by."""

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
        """Return the name of the version that the connection works in, "" if in none."""

    def modifiedInVersion(oid):
        """Return the version that an object is changed in, "" if in none."""

    def get(oid):
        """Return the object with this oid, as a ghost if it was not in the cache."""

    def add(obj):
        """Give *obj* an oid, and store it with this transaction."""

    def history(obj, size=1):
        """Return the last *size* revisions of *obj*: see IStorageHistory."""

    def sync():
        """End the view of the data, and begin a new one at the last transaction."""

    def db():
        """Return the database."""

    def get_connection(name):
        """Return the connection to another database of the group, in the same transaction."""

    def prefetch(*objects, depth=0):
        """Load objects, and what they refer to in *depth* steps."""

    def isReadOnly():
        """Return whether objects cannot be changed through this connection."""

    def readCurrent(obj):
        """Let the commit fail unless *obj* is then still as it is now."""

    def cacheMinimize():
        """Make ghosts of all loaded, unchanged objects."""

    def cacheFullSweep(age=None):
        """Make ghosts of those that were not used for *age* seconds."""

    def cacheGC():
        """Bring the cache down to its target, least recently used objects first."""

    def onCloseCallback(function):
        """Have *function* called when the connection is closed, once."""

    def setDebugInfo(*info):
        """Keep *info* with the connection until it is closed."""

    def getDebugInfo():
        """Return what `setDebugInfo` was given."""

    def close():
        """Give the connection back. ConnectionStateError with uncommitted changes."""
