"""Every error objdb raises, one class per thing the caller can do about it.

    ObjdbError
    ├── POSError                           (also the name that ZODB code catches)
    │   ├── POSKeyError (KeyError)         no such object; names the referrer where known
    │   ├── TransientError                 abort and retry the transaction
    │   │   └── ConflictError
    │   │       ├── ReadConflictError      a revision that was read, or is needed, changed
    │   │       └── UnresolvableConflictError  resolution was tried and failed
    │   ├── StorageError                   the storage cannot do this
    │   │   ├── StorageTransactionError    called with a transaction that has not begun
    │   │   ├── ReadOnlyError              the storage is read-only
    │   │   │   └── ReadOnlyHistoryError   the connection is historical
    │   │   ├── StorageLockedError         the file is open elsewhere: pid and host
    │   │   ├── StorageClosedError         used after close
    │   │   ├── StorageFailedError         a write's outcome is unknown: close and reopen
    │   │   ├── StorageWriteError          a write failed, nothing was committed
    │   │   ├── StorageForkedError         a storage of the parent used in a forked child
    │   │   ├── StorageSpaceError          too little disk space: how much is needed
    │   │   ├── PackError                  the storage cannot be packed now
    │   │   ├── RecordTooLargeError        one object's state is over the limit
    │   │   ├── WrongKeyError              no given key decrypts a record
    │   │   ├── NotEncryptedError          a plain record where all should be encrypted
    │   │   └── Unsupported                the storage does not support this
    │   ├── UndoError                      a transaction cannot be undone; says why
    │   │   └── MultipleUndoErrors         for several objects; lists each
    │   ├── VersionError                   not a valid version name, or not possible in one
    │   │   ├── VersionLockError           the object is changed in another version
    │   │   └── VersionCommitError         a version cannot be committed to there
    │   ├── FileFormatError                not a database file that objdb can open
    │   │   └── NeedsMigrationError        an old format: names the tool
    │   ├── CorruptedDataError             damage: path and position
    │   ├── SerializationError             an object cannot become a record
    │   │   ├── UnpicklableError (TypeError)  names the attribute path
    │   │   └── InvalidObjectReference     an object of another database or connection
    │   ├── DeserializationError           a record cannot become an object
    │   │   ├── PythonTwoRecordError       written under Python 2: migrate first
    │   │   └── BrokenObjectError          its class is missing; it can be kept, not changed
    │   ├── ConnectionStateError           open, close or use at the wrong time
    │   │   └── ConcurrentUseError         two threads on one connection
    │   ├── UnregisteredMutationError      a change not registered (detect_mutations)
    │   ├── PartialCommitError             several databases: committed in one, not in another
    │   ├── PoolTimeoutError               every connection is in use; names the holders
    │   └── SafeError                      a module safe cannot be opened or used this way
    │       └── MissingPackageError        its backend needs a package: names what to install
    └── UsageError (ValueError)            an invalid argument: unknown URI scheme …

Facts are attributes (`oid`, `path`, `position`, `serials` …); the message says what happened,
where, and what to do. All errors can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transaction.interfaces import TransientError as _TransientError

from objdb.ids import Oid, Tid, format_oid, format_tid


class ObjdbError(Exception):
    """Base class of all errors of objdb. Keyword arguments become attributes.

    `facts` lists a class's attributes with their defaults.
    """

    facts: dict[str, Any] = {}

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        unknown = facts.keys() - self._all_facts().keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no attribute {sorted(unknown)}")
        self.__dict__.update(self._all_facts() | facts)

    @classmethod
    def _all_facts(cls) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            merged |= base.__dict__.get("facts", {})
        return merged

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: value for name, value in self.__dict__.items() if name[0] != "_"}
        # A POSKeyError has its oid there.
        message = self.args[0] if self.args and isinstance(self.args[0], bytes) else str(self)
        return _rebuild, (type(self), message, kept)


def _rebuild(cls: type[ObjdbError], message: Any, attributes: dict[str, Any]) -> ObjdbError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class UsageError(ObjdbError, ValueError):
    """An invalid argument; the message lists the valid ones."""


_LARGEST = 1 << 60  # every library that receives such a number can represent it


def require_at_least(least: int, **values: Any) -> None:
    """Raise `UsageError` for a value that is not an integer, is smaller than *least*, or is too
    large."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}; it must be an integer, {least} or more")
        if value > _LARGEST:
            raise UsageError(f"{name} is {value!r}; it must be at most {_LARGEST}")


class POSError(ObjdbError):
    """An error of the persistent object system."""


class POSKeyError(POSError, KeyError):
    """No object has this oid, or none is visible in this snapshot.

    `oid`: the missing object; `referrer`: oid of an object that refers to it, where known;
    `database`: name or path of the database.
    """

    facts = {"oid": None, "referrer": None, "database": None}
    oid: Oid
    referrer: Oid | None
    database: str | None

    def __init__(self, oid: Oid | str = b"", **facts: Any) -> None:
        if isinstance(oid, str):
            super().__init__(oid, **facts)
            return
        super().__init__("", **{"oid": oid, **facts})
        self.args = (oid,)  # as ZODB's has

    def __str__(self) -> str:
        if self.args and isinstance(self.args[0], str) and self.args[0]:
            return self.args[0]
        text = f"no object {format_oid(self.oid)}"
        if self.database:
            text += f" in {self.database}"
        if self.referrer is not None:
            text += f"; object {format_oid(self.referrer)} refers to it"
        return text + ". Run a database check to see whether more objects are missing"


class TransientError(POSError, _TransientError):
    """The transaction may succeed when it is retried."""


class ConflictError(TransientError):
    """Two transactions changed the same object; this one fails. Abort and retry it.

    `oid`: the object; `class_name`: `module.Class` where known; `serials`: the tid of the
    committed revision and the tid of the revision that ours is based on; `record`: the record
    that this transaction would have stored, None for an object that it only read.
    """

    facts = {"oid": None, "class_name": None, "serials": None, "record": None}
    oid: Oid | None
    class_name: str | None
    serials: tuple[Tid, Tid] | None
    record: bytes | None
    # Set by the connection that caught the error; not pickled.
    _look_up: Callable[[ConflictError], tuple[dict[str, Any] | None, dict[str, Any]]] | None = None
    _what = "was changed by another transaction"

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message, **facts)
        if not message:
            self.args = (self._describe(),)

    def _describe(self) -> str:
        text = f"object {format_oid(self.oid)}"
        if self.class_name:
            text += f" ({self.class_name})"
        text += f" {self._what}"
        if self.serials:
            committed, ours = self.serials
            text += f": committed is {format_tid(committed)}, ours is based on {format_tid(ours)}"
        return text + ". Abort and retry the transaction (db.run does so)"

    # The methods of ZODB's errors.

    @property
    def message(self) -> str:
        """The message, as from `str()`."""
        return str(self)

    def get_oid(self) -> Oid | None:
        """Return `oid`."""
        return self.oid

    def get_class_name(self) -> str | None:
        """Return `class_name`."""
        return self.class_name

    def get_serials(self) -> tuple[Tid, Tid] | None:
        """Return `serials`."""
        return self.serials

    def get_new_serial(self) -> Tid | None:
        """Return the tid of the committed revision."""
        return None if self.serials is None else self.serials[0]

    def get_old_serial(self) -> Tid | None:
        """Return the tid of the revision that this transaction's change is based on."""
        return None if self.serials is None else self.serials[1]

    @property
    def other(self) -> dict[str, Any] | None:
        """The transaction that committed the conflicting revision: a dict with tid, time
        (seconds since 1970), user_name, description and more, as in a storage's history. None
        if the storage cannot tell, or the database is closed."""
        return None if self._look_up is None else self._look_up(self)[0]

    def explain(self) -> dict[str, tuple[Any, Any, Any]]:
        """Return the attributes that differ: by name, the values before both transactions, as
        committed, and as this one would have stored them.

        A missing attribute, and the third value of an object that was only read, is `...`.
        References to persistent objects are `PersistentReference`. A state that is not a dict
        is the attribute `""`. Empty if the revisions are gone, or the database is closed.
        """
        return {} if self._look_up is None else self._look_up(self)[1]


class UnresolvableConflictError(ConflictError):
    """The class's `_p_resolveConflict` was called to merge the changes and failed."""

    _what = "was changed by another transaction, and the changes could not be merged"


class ReadConflictError(ConflictError):
    """A revision this transaction read, or needs to read, was replaced or is gone."""

    _what = "was read in this transaction and has changed since"


class StorageError(POSError):
    """The storage cannot do what was requested."""


class StorageTransactionError(StorageError):
    """A storage was called with a transaction that has not begun, or in the wrong phase."""


class ReadOnlyError(StorageError):
    """The storage is read-only."""


class ReadOnlyHistoryError(ReadOnlyError):
    """A change was made through a historical connection."""


class StorageLockedError(StorageError):
    """The file is locked by another opener: `path`, `pid` and `host`."""

    facts = {"path": None, "pid": None, "host": None}
    path: str
    pid: int | None
    host: str | None


class StorageClosedError(StorageError):
    """The storage, or the database, is closed."""


class StorageFailedError(StorageError):
    """A write's outcome is unknown, so the storage refuses to commit. Close and reopen it."""


class StorageWriteError(StorageError):
    """A write failed and was rolled back: nothing was committed, the storage stays usable."""


class StorageForkedError(StorageError):
    """A storage opened before a fork was used in the child. Open it in the child."""


class StorageSpaceError(StorageError):
    """There is too little disk space; nothing was begun. `needed` and `free` in bytes, `path`."""

    facts = {"path": None, "needed": None, "free": None}
    path: str | None
    needed: int | None
    free: int | None


class PackError(StorageError):
    """The storage cannot be packed now: another pack is running, or garbage became reachable
    again."""


class RecordTooLargeError(StorageError):
    """One object's state is larger than a record may be. `oid`, `size` and `limit` in bytes."""

    facts = {"oid": None, "size": None, "limit": None}
    oid: Oid | None
    size: int | None
    limit: int | None


class WrongKeyError(StorageError):
    """None of the given keys decrypts the record of the object `oid`."""

    facts = {"oid": None}
    oid: Oid | None


class NotEncryptedError(StorageError):
    """The record of the object `oid` is not encrypted, so it may be forged."""

    facts = {"oid": None}
    oid: Oid | None


class Unsupported(StorageError):
    """This kind of storage does not support the feature."""


class UndoError(POSError):
    """A transaction cannot be undone, and nothing was changed.

    `tid`: the transaction, if its id is valid; `oid`: the object that prevents the undo, if
    there is one; `reason`: why.
    """

    facts = {"tid": None, "oid": None, "reason": ""}
    tid: Tid | None
    oid: Oid | None
    reason: str


class MultipleUndoErrors(UndoError):
    """Several objects prevent the undo. `reasons` has (oid, reason) of each."""

    facts = {"reasons": ()}
    reasons: tuple[tuple[Oid, str], ...]


class VersionError(POSError):
    """The name of a version is not valid, or the operation is not possible in a version.
    `version`: its name; `oid`: the object that prevents it, if there is one."""

    facts = {"version": None, "oid": None}
    version: str | None
    oid: Oid | None


class VersionLockError(VersionError):
    """The object `oid` is changed in `version`, which locks it until that version is committed
    or aborted."""


class VersionCommitError(VersionError):
    """A version cannot be committed to this destination."""


class FileFormatError(POSError):
    """The file at `path` is not a database that objdb can open."""

    facts = {"path": None}
    path: str


class NeedsMigrationError(FileFormatError):
    """A database in an older format; the message names the tool that converts it."""


class CorruptedDataError(POSError):
    """Damaged data, at `path` and `position` (bytes from the start), in object `oid` if known;
    `what` says only what is damaged there."""

    facts = {"path": None, "position": None, "oid": None, "what": None}
    path: str | None
    position: int | None
    oid: Oid | None
    what: str | None


class SerializationError(POSError):
    """An object cannot be turned into a record. `oid` and `class_name` say which."""

    facts = {"oid": None, "class_name": None}
    oid: Oid | None
    class_name: str | None


class UnpicklableError(SerializationError, TypeError):
    """Part of the state cannot be pickled; `attribute_path` is the path to it."""

    facts = {"attribute_path": None}
    attribute_path: str | None


class InvalidObjectReference(SerializationError):
    """An object refers to an object of another connection, or of a database outside its group."""


class DeserializationError(POSError):
    """A record cannot be turned into an object. `oid` and `class_name` say which."""

    facts = {"oid": None, "class_name": None}
    oid: Oid | None
    class_name: str | None


class PythonTwoRecordError(DeserializationError):
    """The record was written under Python 2, whose strings are neither text nor bytes."""


class BrokenObjectError(DeserializationError):
    """The object's class cannot be imported. Its state is kept, but cannot be changed."""


class ConnectionStateError(POSError):
    """A connection was used, opened or closed at the wrong time."""


class ConcurrentUseError(ConnectionStateError):
    """Two threads used one connection at once. Open a connection per thread."""


class UnregisteredMutationError(POSError):
    """An object was changed inside one of its attributes, and the change was not registered.

    `oid`, `class_name`: the (first) object; `attribute`: the path to the difference from the
    loaded state, as in `tags[2]`.
    """

    facts = {"oid": None, "class_name": None, "attribute": None}
    oid: Oid
    class_name: str
    attribute: str


class PartialCommitError(POSError):
    """A transaction across several databases, or other participants, was partially committed.

    `committed`, `unknown`, `not_committed`: names of the participants where it is committed, where
    its outcome is unknown, and where it is not committed. The cause is in `__cause__`.
    """

    facts = {"committed": (), "unknown": (), "not_committed": ()}
    committed: tuple[str, ...]
    unknown: tuple[str, ...]
    not_committed: tuple[str, ...]


class PoolTimeoutError(POSError):
    """No connection became free in time. `holders` describes each one in use."""

    facts = {"holders": ()}
    holders: tuple[str, ...]


class SafeError(POSError):
    """A module safe cannot be opened or used this way. `path`: its directory."""

    facts = {"path": None}
    path: str | None


class MissingPackageError(SafeError, StorageError):
    """The safe's backend, or the storage, needs a package that is not installed. `package`
    names it, `extra` is the extra of objdb that installs it."""

    facts = {"package": None, "extra": None}
    package: str
    extra: str
