"""Every error objdb raises, one class per thing the caller can do about it.

    ObjdbError
    ├── POSError                           (also the name that ZODB code catches)
    │   ├── POSKeyError (KeyError)         no such object; names the referrer where known
    │   ├── TransientError                 abort, and try the transaction again
    │   │   └── ConflictError
    │   │       ├── ReadConflictError      a revision that was read, or is needed, has moved
    │   │       └── UnresolvableConflictError  resolution was tried and failed
    │   ├── StorageError                   the storage cannot do this
    │   │   ├── StorageTransactionError    called with the wrong transaction, or none
    │   │   ├── ReadOnlyError              the storage was opened for reading only
    │   │   │   └── ReadOnlyHistoryError   the connection shows the past
    │   │   ├── StorageLockedError         the file is open elsewhere: pid and host
    │   │   ├── StorageClosedError         used after close
    │   │   ├── StorageFailedError         a write's outcome is unknown: close and reopen
    │   │   ├── StorageWriteError          a write failed, nothing was committed
    │   │   ├── StorageForkedError         a storage of the parent used in a forked child
    │   │   ├── StorageSpaceError          too little space on the disk: how much is needed
    │   │   ├── PackError                  the storage cannot be packed now
    │   │   ├── RecordTooLargeError        one object's state is over the limit
    │   │   ├── WrongKeyError              none of the keys given opens a record
    │   │   ├── NotEncryptedError          a plain record where all should be encrypted
    │   │   └── Unsupported                this kind of storage lacks the feature
    │   ├── UndoError                      a transaction cannot be undone; says why
    │   │   └── MultipleUndoErrors         for several objects; lists each
    │   ├── VersionError                   no name for a version, or not possible in one
    │   │   ├── VersionLockError           the object is changed in another version
    │   │   └── VersionCommitError         a version cannot be committed to there
    │   ├── FileFormatError                this is no database file objdb can open
    │   │   └── NeedsMigrationError        it is one, of an old kind: names the tool
    │   ├── CorruptedDataError             damage: path and position
    │   ├── SerializationError             an object cannot become a record
    │   │   ├── UnpicklableError (TypeError)  names the attribute path
    │   │   └── InvalidObjectReference     an object of another database or connection
    │   ├── DeserializationError           a record cannot become an object
    │   │   ├── PythonTwoRecordError       written under Python 2: migrate first
    │   │   └── BrokenObjectError          its class is missing; it can be kept, not changed
    │   ├── ConnectionStateError           open, close or use at the wrong time
    │   │   └── ConcurrentUseError         two threads on one connection
    │   ├── UnregisteredMutationError      changed without notice (detect_mutations)
    │   ├── PartialCommitError             several databases: committed in one, not in another
    │   ├── PoolTimeoutError               every connection is out; says who holds them
    │   └── SafeError                      a module safe cannot be opened, or used so
    │       └── MissingPackageError        its backend needs a package: names what to install
    └── UsageError (ValueError)            an argument that makes no sense: unknown URI scheme …

Facts are attributes (`oid`, `path`, `position`, `serials` …), the message says what happened,
where, and what to do. All errors survive pickling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transaction.interfaces import TransientError as _TransientError

from objdb.ids import Oid, Tid, format_oid, format_tid


class ObjdbError(Exception):
    """Base of all errors of objdb. Keyword arguments become attributes.

    A class lists its facts, with their defaults, in `facts`.
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
    """An argument that makes no sense; the message lists what there is."""


_LARGEST = 1 << 60  # what everybody who is given it can count to


def require_at_least(least: int, **values: Any) -> None:
    """Raise `UsageError` for a value that is no whole number, smaller than *least*, or beyond
    what can be counted."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}; it is a whole number, {least} or more")
        if value > _LARGEST:
            raise UsageError(f"{name} is {value!r}; it is at most {_LARGEST}")


class POSError(ObjdbError):
    """An error of the persistent object system."""


class POSKeyError(POSError, KeyError):
    """There is no object with this oid (or none visible in this snapshot).

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
        return text + ". Run a database check to see whether more is missing"


class TransientError(POSError, _TransientError):
    """The transaction may succeed when it is tried again."""


class ConflictError(TransientError):
    """Two transactions changed the same object; this one loses. Abort and try again.

    `oid`: the object; `class_name`: `module.Class` where known; `serials`: the tid of the
    committed revision and the tid of the revision ours started from; `record`: what this
    transaction would have stored, None for an object that it has only read.
    """

    facts = {"oid": None, "class_name": None, "serials": None, "record": None}
    oid: Oid | None
    class_name: str | None
    serials: tuple[Tid, Tid] | None
    record: bytes | None
    # Given by the connection that the error came to; not pickled.
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
            text += f": committed is {format_tid(committed)}, ours began from {format_tid(ours)}"
        return text + ". Abort and try the transaction again (db.run does so)"

    # What ZODB's errors are asked with.

    @property
    def message(self) -> str:
        """What happened, as `str()` has it."""
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
        """Return the tid of the revision that this transaction began from."""
        return None if self.serials is None else self.serials[1]

    @property
    def other(self) -> dict[str, Any] | None:
        """The transaction that committed the revision this one met: a dict with tid, time
        (seconds since 1970), user_name, description and more, as in a storage's history. None
        where the storage does not know, or the database is closed."""
        return None if self._look_up is None else self._look_up(self)[0]

    def explain(self) -> dict[str, tuple[Any, Any, Any]]:
        """Return the attributes that are not the same everywhere: by name, the values before
        both transactions, as committed, and as this one would have stored it.

        A missing attribute, and the third of an object that was only read, is `...`. References
        to persistent objects are `PersistentReference`. A state that is no dict is the attribute
        `""`. Empty where the revisions are gone, or the database is closed.
        """
        return {} if self._look_up is None else self._look_up(self)[1]


class UnresolvableConflictError(ConflictError):
    """The class's `_p_resolveConflict` was asked to merge the changes and could not."""

    _what = "was changed by another transaction, and the changes could not be merged"


class ReadConflictError(ConflictError):
    """A revision this transaction read, or needs to read, has moved or is gone."""

    _what = "was read in this transaction and has changed since"


class StorageError(POSError):
    """The storage cannot do what was asked."""


class StorageTransactionError(StorageError):
    """A storage was called with a transaction that did not begin, or in the wrong phase."""


class ReadOnlyError(StorageError):
    """The storage is open for reading only."""


class ReadOnlyHistoryError(ReadOnlyError):
    """A change through a connection that shows the past."""


class StorageLockedError(StorageError):
    """Another opener has the file. `path`, `pid` and `host` say who."""

    facts = {"path": None, "pid": None, "host": None}
    path: str
    pid: int | None
    host: str | None


class StorageClosedError(StorageError):
    """The storage, or the database, is closed."""


class StorageFailedError(StorageError):
    """A write's outcome is unknown, so the storage commits no more. Close and reopen it."""


class StorageWriteError(StorageError):
    """A write failed and was taken back: nothing was committed, the storage goes on."""


class StorageForkedError(StorageError):
    """A storage opened before a fork was used in the child. Open it in the child."""


class StorageSpaceError(StorageError):
    """There is too little space, and nothing was begun. `needed` and `free` in bytes, `path`."""

    facts = {"path": None, "needed": None, "free": None}
    path: str | None
    needed: int | None
    free: int | None


class PackError(StorageError):
    """The storage cannot be packed now: it is being packed, or what was to go comes back."""


class RecordTooLargeError(StorageError):
    """One object's state is larger than a record may be. `oid`, `size` and `limit` in bytes."""

    facts = {"oid": None, "size": None, "limit": None}
    oid: Oid | None
    size: int | None
    limit: int | None


class WrongKeyError(StorageError):
    """None of the keys that were given opens the record of the object `oid`."""

    facts = {"oid": None}
    oid: Oid | None


class NotEncryptedError(StorageError):
    """The record of the object `oid` is not encrypted, so anybody may have written it."""

    facts = {"oid": None}
    oid: Oid | None


class Unsupported(StorageError):
    """This kind of storage does not have the feature."""


class UndoError(POSError):
    """A transaction cannot be undone, and nothing was changed.

    `tid`: the transaction, where its id made sense; `oid`: the object that stands in the way, if
    it is one; `reason`: why.
    """

    facts = {"tid": None, "oid": None, "reason": ""}
    tid: Tid | None
    oid: Oid | None
    reason: str


class MultipleUndoErrors(UndoError):
    """Several objects stand in the way. `reasons` has (oid, reason) of each."""

    facts = {"reasons": ()}
    reasons: tuple[tuple[Oid, str], ...]


class VersionError(POSError):
    """The name of a version makes no sense, or what was asked cannot be done in a version.
    `version`: its name; `oid`: the object that stands in the way, if it is one."""

    facts = {"version": None, "oid": None}
    version: str | None
    oid: Oid | None


class VersionLockError(VersionError):
    """The object `oid` is changed in `version`, which locks it for everybody else until that
    version is committed or aborted."""


class VersionCommitError(VersionError):
    """A version cannot be committed to this destination."""


class FileFormatError(POSError):
    """The file is no database that objdb can open. `path` says which."""

    facts = {"path": None}
    path: str


class NeedsMigrationError(FileFormatError):
    """A database of an older kind; the message names the tool that converts it."""


class CorruptedDataError(POSError):
    """Damaged data, at `path` and `position` (bytes from the start), in object `oid` if known;
    `what` says only what is wrong there."""

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
    """Something in the state cannot be pickled; `attribute_path` leads to it."""

    facts = {"attribute_path": None}
    attribute_path: str | None


class InvalidObjectReference(SerializationError):
    """An object refers to one of another connection, or of a database it cannot refer to."""


class DeserializationError(POSError):
    """A record cannot be turned into an object. `oid` and `class_name` say which."""

    facts = {"oid": None, "class_name": None}
    oid: Oid | None
    class_name: str | None


class PythonTwoRecordError(DeserializationError):
    """The record was written under Python 2, whose strings are neither text nor bytes."""


class BrokenObjectError(DeserializationError):
    """The object's class cannot be imported. Its state is kept; it cannot be changed."""


class ConnectionStateError(POSError):
    """A connection was used, opened or closed at the wrong time."""


class ConcurrentUseError(ConnectionStateError):
    """Two threads used one connection at once. Open a connection per thread."""


class UnregisteredMutationError(POSError):
    """An object was changed inside one of its attributes, and nobody was told.

    `oid`, `class_name`: the (first) object; `attribute`: the path to what differs from what was
    loaded, as in `tags[2]`.
    """

    facts = {"oid": None, "class_name": None, "attribute": None}
    oid: Oid
    class_name: str
    attribute: str


class PartialCommitError(POSError):
    """A transaction across several databases, or other participants, ended halfway.

    `committed`, `unknown`, `not_committed`: names of the participants where it is committed, where
    it may be or not, and where it is not. The cause is in `__cause__`.
    """

    facts = {"committed": (), "unknown": (), "not_committed": ()}
    committed: tuple[str, ...]
    unknown: tuple[str, ...]
    not_committed: tuple[str, ...]


class PoolTimeoutError(POSError):
    """No connection became free in time. `holders` describes each one that is out."""

    facts = {"holders": ()}
    holders: tuple[str, ...]


class SafeError(POSError):
    """A module safe cannot be opened, or not be used in this way. `path`: its directory."""

    facts = {"path": None}
    path: str | None


class MissingPackageError(SafeError, StorageError):
    """What keeps the safe, or the storage, needs a package that is not installed. `package`
    names it, `extra` is what of objdb brings it."""

    facts = {"package": None, "extra": None}
    package: str
    extra: str
