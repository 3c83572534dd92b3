"""Loading one object: storage, then reader, then the object's `__setstate__`.

The class is the reference. Where the accelerator was built, its class of the same name takes
its place.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from objdb.records.attributes import set_serial

if TYPE_CHECKING:
    from objdb.ids import Oid, Tid


class LoadPath:
    """The part of a connection that loads an object.

    `_load_before` finds a record, `_read_state` unpickles it; `_before` is the tid that the
    snapshot ends before; `_user` is the thread that is loading just now, or 0; `_loaded` has the
    oids and tids of what was loaded, in turns, where that is to be known, else it is None. The
    unusual is asked of the connection: `_is_gone`, `_load_failed`, `_note_size`,
    `_refuse_thread`.
    """

    _load_before: Callable[[Oid, Tid], Any]
    _read_state: Callable[[type, bytes], Any]
    _before: Tid
    _user = 0
    _counts_bytes = False
    _loaded: bytearray | None = None
    load_count = 0

    def setstate(self, obj: Any) -> None:
        """Load the state of the ghost *obj* (called when it is first touched).

        Raises `POSKeyError`, `ReadConflictError`, `DeserializationError`, or
        `ConnectionStateError` after the connection was closed.
        """
        user, thread = self._user, get_ident()
        if user and user != thread:
            self._refuse_thread()
        self._user = thread
        oid = obj._p_oid
        try:
            record, tid, _ = self._load_before(oid, self._before) or self._is_gone(oid)
            obj.__setstate__(self._read_state(type(obj), record))
            set_serial(obj, tid)
            if self._loaded is not None:
                self._loaded += oid + tid
            if self._counts_bytes:
                self._note_size(oid, obj, record)
        except Exception as error:
            self._load_failed(obj, error)
        finally:
            self._user = user
        self.load_count += 1

    if TYPE_CHECKING:

        def _is_gone(self, oid: Oid) -> Any: ...
        def _load_failed(self, obj: Any, error: BaseException) -> None: ...
        def _note_size(self, oid: Oid, obj: Any, record: bytes) -> None: ...
        def _refuse_thread(self) -> None: ...


try:
    from objdb._accelerator import LoadPath  # type: ignore
except ImportError:
    pass
