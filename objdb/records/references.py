"""The references and the class of a record, without importing application classes.

The record is unpickled with every class replaced by a stand-in that accepts anything, so this
works in servers, checks and packing, where the application's code is not available.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

from objdb.errors import CorruptedDataError
from objdb.ids import Oid
from objdb.records.format import class_and_arguments, plain_prefix_length
from objdb.records.showing import shown


class Reference(NamedTuple):
    """One reference in a record; `database` is None for the record's own database."""

    oid: Oid
    weak: bool
    database: str | None


class _Anything(type):
    """Lets one class stand in for every class, function and instance: calling it returns itself,
    so that the result can be a class again (`getattr(Outer, "Inner")`)."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _StandIn

    def __setstate__(cls, state: Any) -> None:
        pass

    def append(cls, item: Any) -> None:
        pass

    def extend(cls, items: Any) -> None:
        pass

    def add(cls, item: Any) -> None:
        pass

    def __setitem__(cls, key: Any, value: Any) -> None:
        pass


class _StandIn(metaclass=_Anything):
    """Any class, any function, any instance."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _StandIn


def _encode(text: Any, codec: Any = "utf-8", *more: Any) -> Any:
    """Do what `_codecs.encode` does for the bytes that protocols 1 and 2 write with it."""
    if type(text) is str and codec in ("latin1", "latin-1"):
        return text.encode("latin-1")
    return _StandIn


def _stand_in(module: str, name: str) -> Any:
    """Return the stand-in for a class or function."""
    return _encode if (module, name) == ("_codecs", "encode") else _StandIn


class _Scanner(pickle.Unpickler):
    """Collects persistent ids; `classes` keeps one stand-in per name."""

    classes: dict[tuple[str, str], type] = {}

    def __init__(self, record: bytes) -> None:
        # Latin-1, so that records of Python 2 can be scanned as well.
        super().__init__(io.BytesIO(record), encoding="latin-1")
        self.found: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if name == "getattr" and module in ("builtins", "__builtin__"):
            return self._inner
        stand_in = self.classes.get((module, name))
        if stand_in is None:
            attributes = {"__module__": module, "__qualname__": name}
            stand_in = self.classes[module, name] = type(name, (_StandIn,), attributes)
        return stand_in

    def _inner(self, owner: Any, name: Any, *more: Any) -> Any:
        """Return the stand-in for a nested class."""
        if not isinstance(owner, type) or owner is _StandIn or type(name) is not str:
            return _StandIn
        return self.find_class(owner.__module__, f"{owner.__qualname__}.{name}")

    def persistent_load(self, reference: Any) -> Any:
        self.found.append(reference)
        return _StandIn


class _StateScanner(pickle.Unpickler):
    """Reads one state after the other from memory, handing its references to *found*."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found
        self._waiting = b""
        self._given = 0
        super().__init__(self, encoding="latin-1")  # type: ignore[arg-type]

    def peek(self, size: int) -> bytes:
        waiting, self._waiting = self._waiting, b""
        return waiting

    def read(self, size: int) -> None:
        self._given = size

    def readline(self) -> bytes:
        raise EOFError

    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)

    def persistent_load(self, reference: Any) -> Any:
        self._found.append(reference)

    def scan(self, state: bytes) -> None:
        """Read *state*, discarding the result; ValueError unless it is one pickle."""
        self._waiting, self._given = state, -1
        self.load()
        if self._given != len(state):
            raise ValueError("bytes follow the state")


class ReferenceScanner:
    """Finds the oids that records refer to, like `references`, for many records one after the
    other: with one unpickler for all states.

    For one thread. Called as `scanner(record)`, or with a list to append the oids to.
    """

    def __init__(self) -> None:
        self._found: list[Any] = []
        self._scanner = _StateScanner(self._found)
        self._prefix = b"\0"  # the class pickle of the last record

    def __call__(self, record: bytes, oids: list[Oid] | None = None) -> list[Oid]:
        # Text is pickled with the opcode P up to protocol 1, which begins without b"\x80".
        has_any = b"Q" in record or record[:1] != b"\x80"
        found = self._scan(record) if has_any else []
        if oids is None:
            return found
        oids += found
        return oids

    def _scan(self, record: bytes) -> list[Oid]:
        if not record.startswith(self._prefix):
            self._prefix = record[: plain_prefix_length(record)] or b"\0"
        length = len(self._prefix)
        # Protocols above 3 number their memo entries by how many there are.
        protocol = record[length + 1 : length + 2]
        if length < 2 or len(record) > _LARGE_BYTES or protocol > b"\3":
            return references(record)
        found, scanner = self._found, self._scanner
        found.clear()
        try:
            scanner.memo = _AFTER_PREFIX
            scanner.scan(record[length:])
            oids = [reference[0] for reference in found if type(reference) is tuple]
            if len(oids) == len(found) and all(map(_is_oid, oids)):
                return oids
        except Exception:  # the slow path raises the error, if there is one
            self._scanner = _StateScanner(found)
        return references(record)


def _is_oid(value: Any) -> bool:
    return type(value) is bytes and len(value) == 8


# The memo after ZODB's class pickle, with which the state continues.
_AFTER_PREFIX: Any = {0: _StandIn}
_LARGE_BYTES = 64 * 1024


def references(record: bytes) -> list[Oid]:
    """Return the oids of this record's strong references in its own database."""
    return [r.oid for r in all_references(record) if not r.weak and r.database is None]


def all_references(record: bytes) -> list[Reference]:
    """Return every reference in the record, including weak ones and those to other databases.

    A damaged record raises `CorruptedDataError`.
    """
    if b"Q" not in record and b"P" not in record:
        return []
    scanner = _Scanner(record)
    try:
        scanner.load()
        scanner.load()
        return [parse_reference(reference) for reference in scanner.found]
    except Exception as error:
        raise CorruptedDataError(f"the record cannot be read: {error!r}") from error


def parse_reference(reference: Any) -> Reference:
    """Return the meaning of a persistent id in any of the forms of `objdb.records.format`."""
    if isinstance(reference, tuple):
        return Reference(_as_oid(reference[0]), False, None)
    if not isinstance(reference, list):
        return Reference(_as_oid(reference), False, None)
    if len(reference) == 1:
        return Reference(_as_oid(reference[0]), True, None)
    oid, is_weak, database = parts_of(reference)
    return Reference(_as_oid(oid), is_weak, database)


def parts_of(reference: list[Any]) -> tuple[Any, bool, str | None]:
    """Return the oid, as it is written, of a reference that is a list of two; whether it is weak,
    and the database. `ValueError` for one that is not valid."""
    kind, arguments = reference
    if kind == "w":
        if type(arguments) is not tuple:  # as zodbupdate writes it
            return arguments, True, None
        return arguments[0], True, arguments[1] if arguments[1:] else None
    if kind in ("n", "m"):
        return arguments[1], False, arguments[0]
    raise ValueError(f"{shown(reference)} is not a known form of reference")


def _as_oid(value: Any) -> Oid:
    if isinstance(value, str):  # a Python 2 string, read as Latin-1
        value = value.encode("latin-1")
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError(f"{shown(value)} is not an oid")
    return value


def record_class_name(record: bytes) -> str:
    """Return `module.Class` of this record's object, or `?` if the record is damaged."""
    length = plain_prefix_length(record)
    if length:
        module, name = record[3:length].decode("utf-8", "replace").split("\n")[:2]
        return f"{module}.{name}"
    try:
        cls, _ = class_and_arguments(_Scanner(record).load())
    except Exception:
        return "?"
    if isinstance(cls, tuple):
        return ".".join(map(str, cls))
    is_named = isinstance(cls, type) and cls is not _StandIn
    return f"{cls.__module__}.{cls.__qualname__}" if is_named else "?"
