"""Unpickling states, quickly: what every load goes through.

Nearly every record begins with a class pickle that is a constant for its class. So there is,
per such prefix, a C unpickler that has read that prefix once, and thereafter skips it:

    record   80 03 c app\\n Person\\n .  80 03 } ...
             └─ compared, skipped ─┘   └─ handed to the unpickler in one piece

The unpickler is handed the whole state at its first `peek`, so that it reads from memory from
then on. States written by ZODB may refer back to the class as memo entry 0; reading the prefix
put it there, and it stays, since such states put nothing at 0 (one that does is read the long
way, with an unpickler of its own).

What is here is the reference. Where the accelerator was built, its functions and its class of
the same names take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Records larger than this get an unpickler of their own, so that what its memo holds on to is
# freed at once.
_LARGE_BYTES = 64 * 1024


class StateLoader:
    """The file that an unpickler reads states of one class from, over and over.

    *prefix* is the class pickle, *keeps_class* whether states may refer back to its memo. `load`
    is the unpickler's; its first call reads the prefix.
    """

    def __init__(self, prefix: bytes, keeps_class: bool) -> None:
        self.prefix = prefix
        self.keeps_class = keeps_class
        self.load: Callable[[], Any]
        self.waiting = prefix
        self.given = -1
        self.busy = False

    def peek(self, size: int) -> bytes:
        """Return all there is, once."""
        waiting, self.waiting = self.waiting, b""
        return waiting

    def read(self, size: int) -> None:
        """Skip what was peeked. (Called for more data only when a record is cut off: then the
        unpickler refuses the None.)"""
        self.given = size

    def readline(self) -> bytes:
        """Nothing is read by lines."""
        raise EOFError

    def takes(self, record: bytes) -> bool:
        """Whether this unpickler can read the record."""
        length = len(self.prefix)
        return (
            not self.busy
            and record.startswith(self.prefix)
            and len(record) <= _LARGE_BYTES
            # Protocols above 3 number their memo entries by how many there are.
            and record[length : length + 1] == b"\x80"
            and record[length + 1 : length + 2] <= b"\3"
            and not (self.keeps_class and record.find(b"q\x00", length) >= 0)
        )


def state_reader(
    loaders: dict[type, StateLoader], long_way: Callable[[type, bytes], Any],
    again: Callable[[type, bytes], Any],
) -> Callable[[type, bytes], Any]:
    """Return the function `state(cls, record)`.

    It reads with the class's loader. What that does not take goes the *long_way*; what it failed
    to read, or not to the end, is read *again*, to say what is wrong.
    """

    def state(cls: type, record: bytes) -> Any:
        loader = loaders.get(cls)
        if loader is None or not loader.takes(record):
            return long_way(cls, record)
        loader.waiting = pickled = record[len(loader.prefix) :]
        loader.given = -1
        # Unpickling can load other objects, of the same class too: not with this unpickler.
        loader.busy = True
        try:
            state = loader.load()
        except Exception:
            return again(cls, record)
        finally:
            loader.busy = False
        return state if loader.given == len(pickled) else again(cls, record)

    return state


def reference_loader(
    in_cache: Callable[[Any], Any], new_ghost: Callable[[bytes, Any], None], plain: set[type],
    load_unusual: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    """Return the function that turns a reference into an object: from the cache, or a new ghost.

    *plain* has the classes whose `__new__` takes nothing; all else goes to *load_unusual*.
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


try:
    from objdb._accelerator import StateLoader, reference_loader, state_reader  # type: ignore
except ImportError:
    pass
