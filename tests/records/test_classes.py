"""Classes that are nested, renamed, defined anew, made at run time, or known by older names."""

from __future__ import annotations

import collections
import copyreg
import enum
import gc
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from persistent import Persistent
from persistent.mapping import PersistentMapping

import objdb
from objdb.check import check
from objdb.records.broken import is_broken
from objdb.records.references import Reference, all_references
from tests.records.handmade import Ref, oid, put, record, state_pickle
from tests.storages import STORAGES

KINDS = ("memory", "file", "sqlite")
MODEL = """
import enum
import objdb
class Order(objdb.Persistent):
    class Status(enum.Enum):
        OPEN = 1
    class Line(objdb.Persistent):
        quantity = 1
    class Note:
        text = "x"
    class Items(list):
        class Deeper:
            pass
"""
RENAMED = "import objdb\nclass Order(objdb.Persistent):\n    pass\n"
VALUES: dict[str, Callable[[Any], Any]] = {
    "enum": lambda model: model.Order.Status.OPEN,
    "plain": lambda model: model.Order.Note(),
    "persistent": lambda model: model.Order.Line(),
    "class": lambda model: model.Order.Note,
    "list": lambda model: model.Order.Items([1, 2]),
    "deeper": lambda model: [model.Order.Items.Deeper()],
}


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """A function that defines the module of an application anew; None: the module is gone."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def defined(text: str | None) -> ModuleType | None:
        sys.modules.pop("shop_model", None)
        path = tmp_path / "shop_model.py"
        path.unlink(missing_ok=True)
        importlib.invalidate_caches()
        if text is None:
            return None
        path.write_text(text)
        return importlib.import_module("shop_model")

    yield defined
    sys.modules.pop("shop_model", None)


@pytest.mark.parametrize("after", [RENAMED, None])
@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("kind", KINDS)
def test_missing_class_in_a_class(
    tmp_path: Path, define: Callable[[str | None], Any], kind: str, what: str, after: str | None
) -> None:
    """What holds an instance of a class that is missing in another can be read, changed, checked
    and packed, and the instance is whole when its class is back."""
    model = define(MODEL)
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        with db.transaction() as connection:
            value = VALUES[what](model)
            connection.root()["box"] = PersistentMapping(
                value=value, more=PersistentMapping(), keep=1
            )
        define(after)
        db.invalidateCache()
        del value
        gc.collect()
        with db.transaction() as connection:
            connection.cacheMinimize()
            box = connection.root()["box"]
            assert box["keep"] == 1
            assert is_broken(box["value"]) or "broken" in repr(box["value"])
            box["keep"] = 2
        assert not check(db.storage).problems
        db.pack()
        model = define(MODEL)
        del box
        gc.collect()
        with db.transaction() as connection:
            connection.cacheMinimize()
            box = connection.root()["box"]
            assert box["keep"] == 2
            expected = VALUES[what](model)
            found = box["value"]
            assert type(found) is type(expected)
            assert what not in ("list", "enum", "class") or found == expected


class Kind(type):
    """Makes classes at run time."""


made: dict[str, Any] = {}


def make(name: str) -> Any:
    """Return the class of this name."""
    if name not in made:
        made[name] = Kind(name, (), {})
    return made[name]


class PersistentKind(type(Persistent)):  # type: ignore[misc]
    """Makes persistent classes at run time."""


persistent_made: dict[str, Any] = {}


def make_persistent(name: str) -> Any:
    """Return the persistent class of this name."""
    if name not in persistent_made:
        persistent_made[name] = PersistentKind(name, (Persistent,), {})
    return persistent_made[name]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_made_by_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A class that its metaclass's reducer makes again is one of instances that are loaded,
    checked and packed, persistent or not."""
    monkeypatch.setitem(copyreg.dispatch_table, Kind, lambda cls: (make, (cls.__name__,)))
    monkeypatch.setitem(
        copyreg.dispatch_table, PersistentKind, lambda cls: (make_persistent, (cls.__name__,))
    )
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        with db.transaction() as connection:
            persistent = make_persistent("Blue")()
            persistent.inner = PersistentMapping(x=1)
            connection.root()["box"] = PersistentMapping(red=make("Red")(), blue=persistent)
            del persistent
        db.pack()
        assert not check(db.storage).problems
        gc.collect()
        with db.transaction() as connection:
            connection.cacheMinimize()
            box = connection.root()["box"]
            assert type(box["red"]) is make("Red")
            assert type(box["blue"]) is make_persistent("Blue")
            assert box["blue"].inner["x"] == 1


@pytest.mark.parametrize("empty", ["cacheMinimize", "invalidateCache"])
def test_class_defined_anew(
    tmp_path: Path, define: Callable[[str], Any], empty: str
) -> None:
    """When the cache was emptied, objects are of the class as it is defined now, and what refers
    to them is stored."""
    text = "import objdb\nclass Item(objdb.Persistent):\n    number = {}\n"
    model = define(text.format(1))
    with objdb.DB(STORAGES["file"](tmp_path)) as db:
        with db.transaction() as connection:
            connection.root()["item"] = model.Item()
            connection.root()["box"] = PersistentMapping(item=connection.root()["item"])
        with db.transaction() as connection:
            assert connection.root()["box"]["item"].number == 1
        define(text.format(2))
        if empty == "invalidateCache":
            db.invalidateCache()
        with db.transaction() as connection:
            if empty == "cacheMinimize":
                connection.cacheMinimize()
        gc.collect()
        with db.transaction() as connection:
            assert connection.root()["box"]["item"].number == 2
            connection.root()["box"]["more"] = 1


class Colour(enum.Enum):
    """Is pickled by its value."""

    RED = 1


OLD = {
    "set": {1, 2},
    "range": range(3),
    "defaultdict": collections.defaultdict(list, {1: [2]}),
    "error": KeyError("x"),
    "userdict": collections.UserDict(a=1),
    "enum": Colour.RED,
    "bytes": b"\x00\xff",
}


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("name", OLD)
def test_names_of_old_protocols(tmp_path: Path, name: str, protocol: int) -> None:
    """Records of protocols 1 and 2 are read, with the names that Python 2 had."""
    value = OLD[name]
    with objdb.DB(STORAGES["file"](tmp_path)) as db:
        with db.transaction() as connection:
            connection.root()["box"] = PersistentMapping()
        content = pickle.dumps(PersistentMapping, protocol)
        put(db.storage, 1, content + pickle.dumps({"data": {"value": value}}, protocol))
        with db.transaction() as connection:
            connection.cacheMinimize()
            found = connection.root()["box"]["value"]
            assert type(found) is type(value)
            assert repr(found) == repr(value)


@pytest.mark.parametrize("protocol", [1, 2, 3])
@pytest.mark.parametrize(
    ("data", "is_weak"),
    [
        (oid(2), False), (["w", (oid(2),)], True), (["w", oid(2)], True), ([oid(2)], True),
        ((oid(2), PersistentMapping), False), (["m", ("unnamed", oid(2))], False),
        (["n", ("unnamed", oid(2))], False),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_references_as_other_tools_write_them(
    tmp_path: Path, kind: str, data: Any, is_weak: bool, protocol: int
) -> None:
    """References by every tool, in every protocol, are followed, checked, packed and copied."""
    with objdb.DB(STORAGES[kind](tmp_path), databases={}) as db:
        with db.transaction() as connection:
            connection.root()["holder"] = PersistentMapping()
            connection.root()["person"] = PersistentMapping(name="Ann")
        holder, person = (
            connection_oid(db, name) for name in ("holder", "person")
        )
        assert (holder, person) == (oid(1), oid(2))
        state = state_pickle({"data": {"it": Ref(data)}}, protocol)
        put(db.storage, 1, pickle.dumps(PersistentMapping, protocol) + state)
        database = data[1][0] if type(data) is list and data[0] in ("m", "n") else None
        assert all_references(db.storage.load(oid(1))[0]) == [Reference(oid(2), is_weak, database)]
        assert not check(db.storage).problems
        db.pack()
        with db.transaction() as connection:
            connection.cacheMinimize()
            it = connection.root()["holder"]["it"]
            assert (it() if is_weak else it)["name"] == "Ann"
            connection.root()["holder"]["more"] = 1
        assert not check(db.storage).problems


def connection_oid(db: objdb.DB, name: str) -> Any:
    """Return the oid of what the root has under a name."""
    with db.transaction() as connection:
        return connection.root()[name]._p_oid


class Rebuilt:
    """Is pickled as ZODB pickles an instance whose class it misses."""

    def __init__(self, module: str, name: str, state: Any) -> None:
        self.parts = (module, name), state

    def __reduce__(self) -> Any:
        return zodb_rebuild, *self.parts


def zodb_rebuild() -> None:
    """Stands for ZODB's function."""


zodb_rebuild.__module__, zodb_rebuild.__qualname__ = "ZODB.broken", "rebuild"


@pytest.mark.parametrize(("module", "broken"), [("tests.models", False), ("gone_away", True)])
def test_rebuilt_by_zodb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, broken: bool
) -> None:
    """What ZODB wrote without its class is an instance of it, or a broken one."""
    fake = ModuleType("ZODB.broken")
    fake.rebuild = zodb_rebuild  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ZODB.broken", fake)
        content = record(PersistentMapping, {"data": {"it": Rebuilt(module, "Plain", {"a": 1})}})
    with objdb.DB(STORAGES["file"](tmp_path)) as db:
        with db.transaction() as connection:
            connection.root()["box"] = PersistentMapping()
        put(db.storage, 1, content)
        with db.transaction() as connection:
            connection.cacheMinimize()
            it = connection.root()["box"]["it"]
            assert it.a == 1
            assert ("broken" in repr(it)) is broken
        db.pack()
