"""What a record refers to, and of what class it is, without importing application classes.

The record is unpickled with every class replaced by a stand-in that accepts anything, so this
runs in servers, checks and packing, where the application's code is not at hand.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

from objdb.errors import CorruptedDataError
from objdb.ids import Oid
from objdb.records.format import class_and_arguments, plain_prefix_length


class Reference(NamedTuple):
    """One reference in a record; `database` is None for the record's own database."""

    oid: Oid
    weak: bool
    database: str | None


class _StandIn:
    """Any class, any function, any instance."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _StandIn:
        return _StandIn()

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Scanner(pickle.Unpickler):
    """Collects persistent ids; `classes` keeps one stand-in per name."""

    classes: dict[tuple[str, str], type] = {}

    def __init__(self, record: bytes) -> None:
        # Latin-1, so that records of Python 2 can be scanned as well.
        super().__init__(io.BytesIO(record), encoding="latin-1")
        self.found: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self.classes.get((module, name))
        if stand_in is None:
            attributes = {"__module__": module, "__qualname__": name}
            stand_in = self.classes[module, name] = type(name, (_StandIn,), attributes)
        return stand_in

    def persistent_load(self, reference: Any) -> Any:
        self.found.append(reference)
        return _StandIn()


def references(record: bytes) -> list[Oid]:
    """Return the oids this record keeps alive in its own database: its strong references."""
    return [r.oid for r in all_references(record) if not r.weak and r.database is None]


def all_references(record: bytes) -> list[Reference]:
    """Return every reference in the record, weak ones and those to other databases included.

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
    kind, arguments = reference
    if kind == "w":
        return Reference(_as_oid(arguments[0]), True, arguments[1] if arguments[1:] else None)
    if kind in ("n", "m"):
        return Reference(_as_oid(arguments[1]), False, arguments[0])
    raise ValueError(f"unknown kind of reference {reference!r}")


def _as_oid(value: Any) -> Oid:
    if isinstance(value, str):  # a Python 2 string, read as Latin-1
        value = value.encode("latin-1")
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError(f"{value!r} is no oid")
    return value


def record_class_name(record: bytes) -> str:
    """Return `module.Class` of the object this record belongs to, or `?` where it is damaged."""
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
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else "?"
