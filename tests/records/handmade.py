"""Records made by hand, as ZODB, Python 2 or a damaged disk could have left them."""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from persistent import Persistent
from persistent.mapping import PersistentMapping

import objdb
from objdb.errors import POSKeyError
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage

GONE = "gone_application"


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Ref:
    """Is pickled as a persistent id: *form*, whatever that is."""

    def __init__(self, form: Any) -> None:
        self.form = form


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.form if isinstance(obj, Ref) else None


def record(metadata: Any, state: Any, *, zodb: bool = False, protocol: int = 3) -> bytes:
    """A record of two pickles; with *zodb* both are of one pickler, whose memo goes on."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.dump(metadata)
    if not zodb:
        pickler = _Pickler(file, protocol)
    pickler.dump(state)
    return file.getvalue()


def prefix(module: str, name: str) -> bytes:
    """The class pickle that objdb writes."""
    return b"\x80\x03c" + f"{module}\n{name}\n.".encode()


def state_pickle(state: Any, protocol: int = 3) -> bytes:
    """A state with a memo of its own."""
    file = io.BytesIO()
    _Pickler(file, protocol).dump(state)
    return file.getvalue()


def storage_with(*records: bytes, storage: Any = None) -> Any:
    """A storage whose root holds a list of references, by oid alone, to objects with *records*:
    oid 1, 2, 3 …"""
    storage = MappingStorage() if storage is None else storage
    references = [Ref(oid(i)) for i in range(1, len(records) + 1)]
    put(storage, 0, record(PersistentMapping, {"data": {"all": references}}))
    for i, content in enumerate(records, 1):
        put(storage, i, content)
    return storage


def put(storage: Any, number: int, content: bytes) -> None:
    """Commit *content* as the current record of oid *number*."""
    txn = TransactionMetaData()
    try:
        current = storage.getTid(oid(number))
    except POSKeyError:
        current = bytes(8)
    storage.tpc_begin(txn)
    storage.store(oid(number), current, content, "", txn)
    storage.tpc_vote(txn)
    storage.tpc_finish(txn)


@contextmanager
def loaded(*records: bytes) -> Iterator[list[Any]]:
    """The objects with *records*, as ghosts of a connection whose changes are dropped."""
    with objdb.DB(storage_with(*records)) as db, db.open() as connection:
        yield list(connection.root()["all"])
        connection.transaction_manager.abort()


def persistent_ids(content: bytes) -> list[Any]:
    """The persistent ids in the state of a record, as a plain unpickler finds them."""
    found: list[Any] = []

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            found.append(reference)

    unpickler = Unpickler(io.BytesIO(content))
    unpickler.load()
    unpickler.load()
    return found


@contextmanager
def application() -> Iterator[ModuleType]:
    """A module that can be imported inside the block, and is missing after it."""
    sys.modules[GONE] = _application_module()
    try:
        yield sys.modules[GONE]
    finally:
        del sys.modules[GONE]


@functools.cache
def _application_module() -> ModuleType:
    module = ModuleType(GONE)
    for name in ("Thing", "Other", "Made"):
        body = {"__module__": GONE, "__qualname__": name}
        if name == "Made":
            body |= {"__new__": _new_made, "__getnewargs__": lambda self: self.made_with}
        setattr(module, name, type(name, (Persistent,), body))
    for name, base in (("Inline", object), ("Items", list), ("Pairs", dict)):
        attributes = {"__module__": GONE, "__qualname__": name, "__eq__": _same}
        setattr(module, name, type(name, (base,), attributes))
    for made in (_WithNew, _Called, _Keywords, make):
        made.__module__, made.__qualname__ = GONE, made.__name__.strip("_")
        setattr(module, made.__qualname__, made)
    # Some Pythons pickle a __new__ that takes keywords as a function of its own.
    new = _Keywords.__new__
    new.__module__, new.__qualname__ = GONE, "Keywords.__new__"
    return module


def _new_made(cls: Any, *arguments: Any) -> Any:
    instance = Persistent.__new__(cls)
    instance.__dict__["made_with"] = arguments
    return instance


def _same(self: Any, other: Any) -> bool:
    return (
        type(self) is type(other)
        and vars(self) == vars(other)
        and (not isinstance(self, list) or list(self) == list(other))
        and (not isinstance(self, dict) or dict(self) == dict(other))
    )


class _WithNew:
    """Made by `__new__` with arguments (NEWOBJ), then given a state (BUILD)."""

    def __new__(cls, *arguments: Any) -> Any:
        instance = object.__new__(cls)
        instance.arguments = arguments
        return instance

    def __getnewargs__(self) -> Any:
        return self.arguments

    __eq__ = _same
    __hash__ = None  # type: ignore[assignment]


class _Called:
    """Made by a call (REDUCE), with a state that is no dict."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.kept: Any = None

    def __reduce__(self) -> Any:
        return type(self), self.arguments, ("state", self.kept)

    def __setstate__(self, state: Any) -> None:
        self.kept = state[1]

    __eq__ = _same
    __hash__ = None  # type: ignore[assignment]


class _Keywords:
    """Made by `__new__` with keyword arguments."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        instance = object.__new__(cls)
        instance.made_with = arguments, keywords
        return instance

    def __getnewargs_ex__(self) -> Any:
        return self.made_with

    def __getstate__(self) -> Any:
        return None

    __eq__ = _same
    __hash__ = None  # type: ignore[assignment]


def make(*arguments: Any) -> Any:
    """A function that makes something."""
    return ["made", *arguments]


class MadeBy:
    """Is pickled as a call of `make`."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return make, self.arguments
