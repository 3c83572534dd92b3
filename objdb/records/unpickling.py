"""Unpickling states, quickly: the path of every load.

Nearly every record begins with a class pickle that is a constant for its class. So each such
prefix has a C unpickler that has read it once, and skips it thereafter:

    record   80 03 c app\\n Person\\n .  80 03 } ...
             └─ compared, skipped ─┘   └─ handed to the unpickler in one piece

The unpickler is handed the whole state at its first `peek`, so that it reads from memory from
then on. States written by ZODB may refer back to the class as memo entry 0; reading the prefix
put it there.

If the accelerator was built, it unpickles nearly all states itself, and calls this module for
the others.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

# Records larger than this get an unpickler of their own, so that the objects in its memo are
# freed at once.
_LARGE_BYTES = 64 * 1024


class StateLoader:
    """An unpickler for the states after one class pickle, *prefix*, which it has read; and the
    file that it reads from, again and again.

    *make_unpickler* receives that file. `memo` is the memo after the prefix: empty, or with the
    class as entry 0.
    """

    def __init__(self, prefix: bytes, make_unpickler: Callable[[Any], pickle.Unpickler]) -> None:
        self.prefix = prefix
        self._waiting = prefix
        self._given = 0
        self._is_busy = False
        self._unpickler = make_unpickler(self)
        self._unpickler.load()
        self.memo = self._unpickler.memo.copy()

    def peek(self, size: int) -> bytes:
        """Return the whole record, once."""
        waiting, self._waiting = self._waiting, b""
        return waiting

    def read(self, size: int) -> None:
        """Skip the peeked bytes. (Called for more data only when a record is truncated: then the
        unpickler refuses the None.)"""
        self._given = size

    def readline(self) -> bytes:
        """Return nothing: states are not read by lines."""
        raise EOFError

    def takes(self, record: bytes) -> bool:
        """Whether this unpickler can read a record that begins with the prefix."""
        length = len(self.prefix)
        return (
            not self._is_busy
            and len(record) <= _LARGE_BYTES
            # Protocols above 3 number their memo entries by how many there are.
            and record[length : length + 1] == b"\x80"
            and record[length + 1 : length + 2] <= b"\3"
        )

    def state(self, record: bytes) -> Any:
        """Return the state in *record*, which it takes. Raises the errors of unpickling, ValueError
        if the state does not end where the record does; then it must not be used again."""
        self._waiting = pickled = record[len(self.prefix) :]
        self._given = -1
        # Unpickling can load other objects, of the same class too: not with this unpickler.
        self._is_busy = True
        try:
            state = self._unpickler.load()
        finally:
            self._is_busy = False
        if self._given != len(pickled):
            raise ValueError("bytes follow the state")
        if self.memo:
            self._unpickler.memo = self.memo
        else:
            self._unpickler.memo.clear()
        return state


def reference_loader(
    in_cache: Callable[[Any], Any], new_ghost: Callable[[bytes, Any], None], plain: set[type],
    load_unusual: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    """Return the function that turns a reference into an object: from the cache, or a new ghost.

    *plain* has the classes whose `__new__` takes no arguments; all else goes to *load_unusual*.
    """

    def persistent_load(reference: Any) -> Any:
        if type(reference) is not tuple or len(reference) != 2:
            return load_unusual(reference)
        oid, cls = reference
        obj = in_cache(oid)
        if obj is not None:
            return obj
        if cls not in plain or type(oid) is not bytes or len(oid) != 8:
            return load_unusual(reference)
        obj = cls.__new__(cls)
        new_ghost(oid, obj)
        return obj

    return persistent_load


def plain_reader(
    known: dict[type, tuple[bytes, Any]], read: Callable[[type, bytes], Any],
    known_globals: dict[bytes, Any], find_global: Callable[[bytes], Any],
    persistent_load: Callable[[Any], Any], explain: Callable[[Exception, bytes], Exception],
) -> Callable[[type, bytes], Any]:
    """Return the function `state(cls, record)`; in Python, *read*.

    The accelerator's function does the same, but unpickles the usual records itself: those of
    *known* classes (by class pickle, and its memo entry or None). It takes classes and functions
    from *known_globals*, by `b"module\\nname\\n"`, or from *find_global*, and raises the error
    that *explain* returns for an error and the record.
    """
    return read


try:
    from objdb._accelerator import plain_reader, reference_loader  # type: ignore
except ImportError:
    pass
