"""The connection as its parts see it: a protocol for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from objdb.ids import Oid, Tid


class Jar(Protocol):
    """A connection, as its parts see it.

    `view` is a `View`, `cache` an `ObjectCache` over the table `_cache`, `work` the `Work` of the
    transaction, or None. `load_committed(oid, before)` asks the storage, in the connection's
    version; `_load_before` what loads ask, and `_before` the tid that they end before.
    """

    is_open: bool
    token: object
    version: str
    committed_tid: Tid | None
    store_count: int
    load_count: int
    transaction_manager: Any
    view: Any
    cache: Any
    work: Any
    reader: Any
    writer: Any
    mutations: Any
    load_committed: Callable[[Oid, Tid], Any]
    _cache: Any
    _load_before: Callable[[Oid, Tid], Any]
    _read_state: Callable[[type, bytes], Any]
    _before: Tid
    _loaded: bytearray | None
    _counts_bytes: bool
    _user: int

    def db(self) -> Any:
        """Return the database."""

    def get(self, oid: Oid) -> Any:
        """Return the object *oid*."""

    def isReadOnly(self) -> bool:
        """Whether objects cannot be changed."""

    def require_usable(self) -> None:
        """Raise unless this thread can use it."""

    def cacheMinimize(self, age: float = 0) -> None:
        """Make ghosts of unchanged objects."""

    def cacheGC(self) -> None:
        """Bring the cache down to its target."""

    def _refuse_thread(self) -> Any: ...
