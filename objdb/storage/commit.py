"""The commit slot, and the phase of each transaction; shared by all storages.

           tpc_begin         tpc_vote                tpc_finish
    (none) ────────► BEGUN ───────────► VOTED ───────────────► (gone, committed)
                       │  slot taken      │  COMMITTED, slot freed
                       └── tpc_abort ─────┴───────► (gone, nothing happened)

Any number of transactions can be BEGUN: they stage their writes without a lock. One at a time
is VOTED: it holds the *commit slot* from the first conflict check until it is committed or aborted.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

from objdb.errors import (
    ReadOnlyError,
    StorageClosedError,
    StorageFailedError,
    StorageForkedError,
    StorageTransactionError,
    UsageError,
)
from objdb.ids import Oid, Tid
from objdb.storage.extension import dumps_extension, loads_extension
from objdb.storage.holding import held_for, hold, let_go


class TransactionMetaData:
    """The metadata of a transaction, for a storage.

    *user* and *description* are set as text or UTF-8 bytes, and read as bytes; *extension* is a
    dict of further facts, or its pickle, which is kept unchanged as long as the dict is.
    `data(key)` and `set_data(key, value)` keep a storage's or connection's own facts.

    `voted_tid` is set by a storage's vote, where that knows the tid already.
    `later` is a list if the caller itself waits for durability: then `tpc_finish` may return when
    the transaction is committed, after appending a function that returns when it is durable, or
    raises.
    `committed` is a function if nobody else takes part in the transaction: then `tpc_vote` may
    commit at once. A storage that does calls it as `tpc_finish` would call its callback, with the
    tid and the oids that the storage changed by itself; `tpc_finish` then returns the tid, and does
    no more.
    """

    def __init__(
        self, user: str | bytes = b"", description: str | bytes = b"",
        extension: dict[Any, Any] | bytes | None = None,
    ) -> None:
        self.user = user
        self.description = description
        self._pickled = b""
        self._extension: Any = None  # a dict, or None until first used
        self._as_pickled: dict[Any, Any] = {}  # the dict whose pickle is `_pickled`
        self.extension = extension
        self.later: list[Callable[[], None]] | None = None
        self.voted_tid: Tid | None = None  # the tid it will have, set by the vote
        self.committed: Callable[[Tid, list[Oid]], object] | None = None
        self._data: dict[Any, Any] = {}

    @property
    def user(self) -> bytes:
        """The user of the transaction."""
        return self._user

    @user.setter
    def user(self, user: str | bytes) -> None:
        """Set the user; `UsageError` for text that UTF-8 cannot encode."""
        self._user = _as_bytes("user", user)

    @property
    def description(self) -> bytes:
        """The description of the transaction."""
        return self._description

    @description.setter
    def description(self, description: str | bytes) -> None:
        """Set the description; `UsageError` for text that UTF-8 cannot encode."""
        self._description = _as_bytes("description", description)

    @property
    def extension(self) -> dict[Any, Any]:
        """Further facts, see `objdb.storage.extension`; `CorruptedDataError` if the bytes are not
        the pickle of a dict."""
        if self._extension is None:
            self._extension = loads_extension(self._pickled)
            self._as_pickled = dict(self._extension)
        found: dict[Any, Any] = self._extension
        return found

    @extension.setter
    def extension(self, extension: dict[Any, Any] | bytes | None) -> None:
        """Set the extension, as a dict or its pickle."""
        is_pickled = isinstance(extension, bytes)
        self._pickled = extension if isinstance(extension, bytes) else b""
        self._extension = None if is_pickled else extension or {}
        self._as_pickled = {}

    @property
    def extension_bytes(self) -> bytes:
        """The extension as storages keep it: pickled, b"" if there is none."""
        if self._extension is None or self._extension == self._as_pickled:
            return self._pickled
        self._pickled = dumps_extension(self._extension)
        self._as_pickled = dict(self._extension)
        return self._pickled

    def data(self, key: Any) -> Any:
        """Return the value that `set_data` kept for *key*, or raise KeyError."""
        return self._data[id(key)]

    def set_data(self, key: Any, value: Any) -> None:
        """Keep *value* for *key* for as long as the transaction lasts."""
        self._data[id(key)] = value


def _as_bytes(what: str, text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} of the transaction cannot be stored: {text[:80]!a} has half a surrogate "
            f"pair at {error.start}, as in file names that are not UTF-8. Give it as bytes, or "
            "replace these characters"
        ) from error


class Phase(enum.Enum):
    """The phase of a transaction."""

    BEGUN = "begun"
    VOTED = "voted"
    COMMITTED = "committed"
    UNKNOWN = "in an unknown state: committed or not"


class Access:
    """Whether the storage *name* can be used for reading or writing, in this process.

    `is_closed` is set when closing begins, `is_released` when the engine is closed too.
    """

    def __init__(self, name: str, is_read_only: bool) -> None:
        self._name = name
        self.is_read_only = is_read_only
        self.is_closed = False
        self.is_released = False
        self._pid = os.getpid()

    def __str__(self) -> str:
        state = ", closed" if self.is_closed else ", read only" if self.is_read_only else ""
        return f"{self._name}{state}"

    @property
    def is_limited(self) -> bool:
        """Whether the storage is closed or read-only; forks are not checked."""
        return self.is_read_only or self.is_closed

    @property
    def is_fork(self) -> bool:
        """Whether this process is a forked child of the one that opened the storage."""
        return self._pid != os.getpid()

    def require_open(self) -> None:
        """Raise `StorageClosedError` if the storage is closed."""
        if self.is_closed:
            raise StorageClosedError(f"{self._name} is closed. Open it again to use it")

    def require_writable(self) -> None:
        """Raise `StorageClosedError`, `ReadOnlyError` or `StorageForkedError` if nothing can be
        committed."""
        if self.is_closed:
            self.require_open()
        if self.is_read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only. Open it for writing")
        if self._pid != os.getpid():
            raise StorageForkedError(
                f"{self._name} was opened by process {self._pid}, and this is a forked child. "
                "Open the storage in the child"
            )


class CommitSlot:
    """Knows every transaction that has begun, and lets one at a time vote and commit.

    `_lock` is held from `take` to `release` by one transaction; `_staged` maps a
    transaction's identity to its staged writes (each entry is used by its own thread only).
    `resolving` is the thread that runs application code with the lock held, or 0. `failure` is
    the reason why the storage refuses to commit, or None.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._staged: dict[int, Any] = {}
        self.resolving = 0
        self.failure: str | None = None

    def begin(self, transaction: Any, staged: Any) -> None:
        """Register *transaction* with its staged writes. Raises `StorageTransactionError` if it
        has begun already, `StorageFailedError` after a failure."""
        self.require_not_failed()
        if id(transaction) in self._staged:
            raise StorageTransactionError(
                f"{self._name}: this transaction has begun already. Finish or abort it first"
            )
        self._staged[id(transaction)] = staged

    def fail(self, reason: str) -> None:
        """Refuse all further commits, since the outcome of a commit is unknown. A second reason
        is ignored."""
        if self.failure is None:
            self.failure = reason

    def require_not_failed(self) -> None:
        """Raise `StorageFailedError` after `fail`."""
        if self.failure is not None:
            raise StorageFailedError(
                f"{self._name} refuses to commit, since {self.failure}. Close the storage, check "
                "the disk, and reopen it: it then shows what was committed"
            )

    def staged(self, transaction: Any, phase: Phase = Phase.BEGUN) -> Any:
        """Return the staged writes of *transaction*, which must be in *phase*."""
        staged: Any = self._staged.get(id(transaction))
        if staged is None:
            raise StorageTransactionError(
                f"{self._name}: this transaction has not begun here, or has ended. Call tpc_begin "
                "first, and pass the same transaction to every call"
            )
        if staged.phase is not phase:
            raise StorageTransactionError(
                f"{self._name}: this transaction is {staged.phase.value}, but the call requires "
                f"one that is {phase.value}"
            )
        return staged

    def take(self, staged: Any) -> None:
        """Wait for the slot, and hold it: `staged.held` has the lock then. Raises
        `StorageFailedError` after a failure, and `StorageTransactionError` inside
        `_p_resolveConflict`, where waiting would never end."""
        self._require_outside()
        hold(self._lock, staged.held)
        if self.failure is not None:
            self.release(staged)
            self.require_not_failed()

    def is_held_by(self, staged: Any) -> bool:
        """Whether *staged* holds the slot."""
        return self._lock in staged.held

    def _require_outside(self) -> None:
        if self.resolving == get_ident():
            raise StorageTransactionError(
                f"{self._name}: a transaction cannot be committed, nor the storage packed, from "
                "inside _p_resolveConflict, which runs during the commit of another transaction"
            )

    def release(self, staged: Any) -> None:
        """Release the slot, if *staged* holds it."""
        if staged.held:
            let_go(staged.held)

    @contextmanager
    def resolving_in(self, staged: Any) -> Iterator[None]:
        """Note, if *staged* holds the slot, that this thread runs application code."""
        if not self.is_held_by(staged):
            yield
            return
        try:
            self.resolving = get_ident()
            yield
        finally:
            self.resolving = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the slot, without a transaction, so that nothing is committed meanwhile. Raises
        `StorageFailedError` after a failure."""
        self._require_outside()
        with self._lock:
            self.require_not_failed()
            try:
                yield
            except StorageFailedError as error:
                self.fail(str(error))
                self.require_not_failed()

    def quiet(self, seconds: float) -> AbstractContextManager[bool]:
        """Hold the slot, without a transaction, to close the storage; after *seconds*, go on
        without it (a transaction that voted may never be finished). Yields whether it is held."""
        return held_for(self._lock, seconds)

    def find(self, transaction: Any) -> Any:
        """Return the staged writes of *transaction*, or None if it never began, or has ended."""
        return self._staged.get(id(transaction))

    def close_unvoted(self) -> None:
        """Drop what transactions have staged that cannot vote any more: the storage is closed."""
        for staged in list(self._staged.values()):
            if not self.is_held_by(staged):
                staged.close()

    def end(self, transaction: Any) -> None:
        """Forget *transaction*."""
        self._staged.pop(id(transaction), None)
