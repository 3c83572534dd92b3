"""A transaction's extension: a pickled dict of further facts about it, read without running code.

Listing, checking or copying transactions reads extensions, also those of untrusted files. So
they are never unpickled as objects are. Plain values are read: None, numbers, text, bytes, lists,
tuples, dicts, sets, dates and times. An `Unreadable` replaces any other value, and names the
global that the pickle asks for; nothing is imported or called. Copies of the transaction keep the
bytes unchanged.
"""

from __future__ import annotations

import datetime
import io
import pickle
from typing import Any, ClassVar

from objdb.errors import CorruptedDataError, UnpicklableError

# Items about the bytes of a transaction in its file (see `file/format`). They are not copied to
# other storages.
INTEGRITY_KEYS = ("_objdb_position", "_crc32")
UNREADABLE = "unreadable"  # the key of the value that stands for an extension that is not a dict
_LONGEST_NAME = 80


class Unreadable:
    """Stands for a value in an extension that is not plain; `name` is that of the class or function
    that would have made the value."""

    def __init__(self, name: str) -> None:
        self.name = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"

    def __repr__(self) -> str:
        return f"<unreadable: {self.name}>"


def _bytes_of(text: str, encoding: str) -> bytes:
    """Do what `_codecs.encode` does in pickles of protocol 2: make bytes from text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes are written as latin1, not as {encoding!r}")
    return text.encode("latin-1")


def _bytearray_of(data: bytes = b"") -> bytearray:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a bytearray is made of bytes")
    return bytearray(data)


# The globals that make plain values, under each module name that occurs in pickles.
_PLAIN: dict[tuple[str, str], Any] = {
    (module, name): make
    for module, names in {
        "builtins": {"set": set, "frozenset": frozenset, "bytearray": _bytearray_of,
                     "complex": complex},
        "datetime": {name: getattr(datetime, name) for name in
                     ("date", "time", "datetime", "timedelta", "timezone")},
        "_codecs": {"encode": _bytes_of},
    }.items()
    for name, make in names.items()
}
_PLAIN |= {("__builtin__", name): make for (at, name), make in _PLAIN.items() if at == "builtins"}
_MAKERS = set(map(id, _PLAIN.values()))


class _Reader(pickle._Unpickler):
    """The Python unpickler, with opcodes that call only the constructors of plain values."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        return _PLAIN.get((module, name)) or Unreadable(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(Unreadable(f"copyreg extension {code}"))  # type: ignore[attr-defined]

    def load_reduce(self) -> None:
        """REDUCE, NEWOBJ: function or class, arguments ─► value."""
        stack = self.stack  # type: ignore[attr-defined]
        arguments = stack.pop()
        make = stack[-1]
        if id(make) in _MAKERS:
            stack[-1] = make(*arguments)
        elif not isinstance(make, Unreadable):
            stack[-1] = Unreadable(type(make).__name__)

    def load_newobj_ex(self) -> None:
        """NEWOBJ_EX: class, arguments, keywords ─► value."""
        stack = self.stack  # type: ignore[attr-defined]
        del stack[-2:]
        if not isinstance(stack[-1], Unreadable):
            stack[-1] = Unreadable(type(stack[-1]).__name__)

    def load_inst(self) -> None:
        """INST: a class named here, with the items after the mark ─► value."""
        name = b".".join(self.readline()[:-1] for _ in range(2))  # type: ignore[attr-defined]
        self.pop_mark()  # type: ignore[attr-defined]
        self.append(Unreadable(name.decode("ascii", "replace")))  # type: ignore[attr-defined]

    def load_obj(self) -> None:
        """OBJ: after the mark a class, then arguments ─► value."""
        found = self.pop_mark()  # type: ignore[attr-defined]
        made = found[0] if found and isinstance(found[0], Unreadable) else Unreadable("OBJ")
        self.append(made)  # type: ignore[attr-defined]

    def load_build(self) -> None:
        """BUILD: value, state ─► value."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.INST[0]] = load_inst
    dispatch[pickle.OBJ[0]] = load_obj
    dispatch[pickle.BUILD[0]] = load_build


def loads_extension(data: bytes) -> dict[Any, Any]:
    """Return the extension dict pickled in *data*, with an `Unreadable` for each value that is
    not plain; `CorruptedDataError` if *data* is not the pickle of a dict."""
    if not data:
        return {}
    try:
        extension = _Reader(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except Exception as error:
        raise CorruptedDataError(f"a transaction's extension cannot be read: {error!r}") from error
    if not isinstance(extension, dict):
        if isinstance(extension, Unreadable):
            return {UNREADABLE: extension}
        raise CorruptedDataError("a transaction's extension is a pickle, but not of a dict")
    return extension


def dumps_extension(extension: dict[Any, Any]) -> bytes:
    """Return the pickle of an extension; `UnpicklableError` naming the unpicklable item."""
    try:
        return pickle.dumps(extension, 3)
    except MemoryError:
        raise
    except Exception as error:
        name, reason = _unpicklable_item(extension) or ("", error)
        path = f"extension[{name!r}]" if name else "extension"
        raise UnpicklableError(
            f"{path} of the transaction cannot be stored ({type(reason).__name__}: "
            f"{str(reason)[:200]}). Give plain values to setExtendedInfo: texts, numbers, lists",
            attribute_path=path,
        ) from error


def _unpicklable_item(extension: dict[Any, Any]) -> tuple[str, Exception] | None:
    for name, value in extension.items():
        try:
            pickle.dumps(value, 3)
        except MemoryError:
            raise
        except Exception as error:
            return str(name)[:80], error
    return None


def without_integrity(extension: dict[Any, Any]) -> dict[Any, Any]:
    """Return the extension without its integrity items, as applications see it."""
    return {key: value for key, value in extension.items() if key not in INTEGRITY_KEYS}
