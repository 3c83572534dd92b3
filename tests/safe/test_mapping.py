"""A safe is a dict: what is put in comes out, under keys that a dict takes for equal."""

from __future__ import annotations

import enum
import os
import pickle
import shelve
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from objdb.errors import (
    BrokenObjectError,
    DeserializationError,
    SafeError,
    SerializationError,
    StorageClosedError,
    UnpicklableError,
)
from objdb.safe import Safe, open_safe
from objdb.safe.keys import decode, encode, original_of
from tests.safe.conftest import Open

Point = namedtuple("Point", "x y")


class Number(enum.IntEnum):
    """Equal to a number, as a dict's key too."""

    ONE = 1


class Word(str):
    """Equal to the text."""


class Caseless(str):
    """Text that compares in its own way, so it is a key of another kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Caseless) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


@dataclass(frozen=True)
class Frozen:
    """An object of an application as a key."""

    name: str
    number: int


class Strange:
    """Has a state that it does not take back."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.complex_numbers(allow_nan=False) | st.binary()
    | st.decimals(allow_nan=False, min_value=-10**9, max_value=10**9)
    | st.fractions() | st.sampled_from([Number.ONE, Word("a"), Frozen("a", 1), UUID(int=7)])
    # likely to meet
    | st.sampled_from([0, 1, -1, 0.0, -0.0, 1.0, True, False, 1 + 0j, 0.5, Fraction(1, 2)])
    | st.sampled_from([Decimal("0.5"), Decimal(1), "a", b"a", float("inf"), Decimal("inf")])
)
keys = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)


@given(one=keys, other=keys)
@settings(max_examples=500, deadline=None)
def test_keys_are_equal_as_in_a_dict(one: Any, other: Any) -> None:
    """Two keys have the same bytes exactly if a dict takes them for the same."""
    assert (encode(one) == encode(other)) == (one in {other: 0})


@given(key=keys)
@settings(deadline=None)
def test_keys_come_back(key: Any) -> None:
    """A key is given back as it was, with its type."""
    again = decode(encode(key), original_of(key))
    assert again == key and type(again) is type(key)


def test_large_numbers() -> None:
    """A number of more digits than Python writes as decimals is a key."""
    assert decode(encode(-(10**5000)), b"") == -(10**5000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), (1, 1 + 0j), (0.0, -0.0), (1, Number.ONE), ("a", Word("a")),
        ((1, 2), Point(1, 2)), ((1, (True,)), (1.0, (1,))), (0.5, Fraction(1, 2)),
        (Decimal("0.50"), 0.5), (frozenset([1, 2]), frozenset([2.0, True])), (2**70, 2.0**70),
        (float("inf"), Decimal("inf")), (Frozen("a", 1), Frozen("".join(["a"]), 1)),
        (1j, complex(-0.0, 1)),
    ],
)
def test_equal_keys(one: Any, other: Any) -> None:
    """Keys of other types that a dict takes for the same have the same bytes."""
    assert one in {other: 0}
    assert encode(one) == encode(other)


def test_keys_that_are_not_equal() -> None:
    """Text and bytes, nested and flat, and a subclass that compares otherwise, are different."""
    different = ["a", b"a", ("a",), (("a",),), Caseless("a"), frozenset(["a"]), 1, "1", None, ()]
    assert len({encode(key) for key in different}) == len(different)
    same = "text" * 3
    assert encode(Frozen(same, 1)) != encode(Frozen(same, 2))
    nan = float("nan")
    assert encode(nan) == encode(-nan) == encode(Decimal("nan")) != encode("nan")


class Model(RuleBasedStateMachine):
    """Random accesses to a safe, beside a dict."""

    backend = ""
    folder: Path
    made = 0

    @initialize()
    def begin(self) -> None:
        type(self).made += 1
        self.path = self.folder / str(self.made)
        self.safe = open_safe(self.path, backend=self.backend)
        self.model: dict[Any, Any] = {}

    @rule(key=keys, value=st.integers())
    def store(self, key: Any, value: int) -> None:
        self.safe[key] = self.model[key] = value

    @rule(key=keys)
    def remove(self, key: Any) -> None:
        assert self.safe.pop(key, "none") == self.model.pop(key, "none")

    @rule(key=keys)
    def delete(self, key: Any) -> None:
        if key in self.model:
            del self.safe[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.safe[key]

    @rule(key=keys, value=st.integers())
    def set_default(self, key: Any, value: int) -> None:
        assert self.safe.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(pairs=st.dictionaries(keys, st.integers(), max_size=4))
    def update(self, pairs: dict[Any, int]) -> None:
        self.safe.update(pairs)
        self.model.update(pairs)

    @rule(key=keys)
    def change(self, key: Any) -> None:
        changed = self.safe.change(key, lambda value: value + 1, 0)
        self.model[key] = self.model.get(key, 0) + 1
        assert changed == self.model[key]

    @rule()
    def pop_item(self) -> None:
        if self.model:
            key, value = self.safe.popitem()
            assert self.model.pop(key) == value
        else:
            with pytest.raises(KeyError):
                self.safe.popitem()

    @rule()
    def clear(self) -> None:
        self.safe.clear()
        self.model.clear()

    @rule()
    def reopen(self) -> None:
        self.safe.close()
        self.safe = open_safe(self.path)

    @rule(key=keys)
    def look(self, key: Any) -> None:
        assert (key in self.safe) == (key in self.model)
        assert self.safe.get(key, "none") == self.model.get(key, "none")

    @invariant()
    def is_the_same(self) -> None:
        if not hasattr(self, "safe"):
            return
        assert dict(self.safe.items()) == self.model == self.safe
        assert len(self.safe) == len(self.model) and bool(self.safe) == bool(self.model)
        # As in a dict, a key stays the one that was first.
        forms = {encode(key): (type(key), repr(key)) for key in self.model if _is_plain(key)}
        for key in self.safe:
            if encode(key) in forms:
                assert (type(key), repr(key)) == forms[encode(key)]

    def teardown(self) -> None:
        if hasattr(self, "safe"):
            self.safe.close()


def _is_plain(key: Any) -> bool:
    return not isinstance(key, frozenset | tuple)


def test_model(tmp_path: Path, backend: str) -> None:
    """Whatever is done to a safe, it is what a dict would be, closed in between or not."""

    class BackendModel(Model):
        pass

    BackendModel.backend, BackendModel.folder = backend, tmp_path
    machine: Any = BackendModel.TestCase
    machine.settings = settings(
        max_examples=15, stateful_step_count=20, deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()


def test_it_stays(opened: Open, backend: str) -> None:
    """What was put in is there when the safe is opened again, with the backend that made it."""
    with opened(backend) as safe:
        safe["list"] = [1, {"a": b"b"}]
        safe[1] = Frozen("f", 2)
    again = opened(None)
    assert again is not safe and again.backend == backend
    assert again == {"list": [1, {"a": b"b"}], 1: Frozen("f", 2)}


def test_values_are_copies(safe: Safe) -> None:
    """What is read is a copy, and changes when it is stored again."""
    safe["list"] = [1]
    value = safe["list"]
    value.append(2)
    assert safe["list"] == [1]
    safe["list"] = value
    assert safe["list"] == [1, 2]


def test_dict_methods(safe: Safe) -> None:
    """The accesses of a dict, with its errors."""
    safe.update({"a": 1}, b=2)
    safe.update([("c", 3)])
    assert sorted(safe) == sorted(safe.keys()) == ["a", "b", "c"]
    assert sorted(safe.values()) == [1, 2, 3]
    assert ("a", 1) in safe.items() and ("a", 2) not in safe.items() and 4 not in safe.values()
    assert safe.pop("a") == 1 and safe.pop("a", None) is None
    for wrong in (lambda: safe["a"], lambda: safe.pop("a"), lambda: safe.__delitem__("a")):
        with pytest.raises(KeyError, match="'a'"):
            wrong()
    with pytest.raises(KeyError):
        safe.change("a", str)
    for unhashable in ([], ([],), {}):
        with pytest.raises(TypeError, match="unhashable"):
            safe[unhashable] = 1  # type: ignore[index]
        with pytest.raises(TypeError, match="unhashable"):
            unhashable in safe  # noqa: B015
    assert dict(safe) == {"b": 2, "c": 3}


def test_many(safe: Safe) -> None:
    """Iterating goes over more than is read at once, while others change it."""
    safe.update((number, str(number)) for number in range(500))
    seen = set()
    for key, value in safe.items():
        assert value == str(key)
        seen.add(key)
        del safe[key]
    assert seen == set(range(500)) and not safe


def test_large_values(safe: Safe) -> None:
    """Values and keys of some megabytes, more than the log and the cache hold at once."""
    for number in range(12):
        safe["k" * 10_000 + str(number)] = bytes([number]) * 2_000_000
    assert [safe["k" * 10_000 + str(number)][-1] for number in range(12)] == list(range(12))


def test_update_is_all_or_nothing(safe: Safe) -> None:
    """When one of several values cannot be stored, none is."""
    with pytest.raises(UnpicklableError):
        safe.update([("a", 1), ("b", threading.Lock())])
    assert dict(safe) == {}


def test_unpicklable_values(safe: Safe) -> None:
    """The error says which key, and what was there stays."""
    safe["good"] = 1
    for method in (
        lambda: safe.__setitem__("good", lambda: 1),
        lambda: safe.setdefault("other", lambda: 1),
        lambda: safe.change("good", lambda value: threading.Lock()),
    ):
        match = r"at '(good|other)' cannot be pickled"
        with pytest.raises(UnpicklableError, match=match) as caught:
            method()
        assert isinstance(caught.value, SerializationError) and caught.value.class_name
    with pytest.raises(UnpicklableError, match=r"the key .* cannot be pickled"):
        safe[lambda: 1] = 1
    assert dict(safe) == {"good": 1}


def test_missing_class(opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value whose class is gone is an error that says so; it stays, and can be removed."""
    module = ModuleType("gone_module")
    exec("class Gone:\n    def __hash__(self): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "gone_module", module)
    safe = opened(backend)
    safe.update({"here": module.Gone(), "other": 1})
    safe[module.Gone()] = 2
    monkeypatch.delitem(sys.modules, "gone_module")
    for access in (
        lambda: safe["here"], lambda: safe.pop("here"), lambda: list(safe.items()),
        lambda: safe.setdefault("here", 1), lambda: list(safe),
    ):
        with pytest.raises(BrokenObjectError, match="gone_module"):
            access()
    assert len(safe) == 3 and safe["other"] == 1
    monkeypatch.setitem(sys.modules, "gone_module", module)
    assert isinstance(safe["here"], module.Gone)
    monkeypatch.delitem(sys.modules, "gone_module")
    del safe["here"]
    assert "here" not in safe


def test_value_that_is_not_taken(safe: Safe) -> None:
    """A value whose class refuses its state is an error of its own."""
    safe["strange"] = Strange()
    with pytest.raises(DeserializationError, match=r"'strange'.*ValueError"):
        safe["strange"]


def test_closed(opened: Open, backend: str) -> None:
    """A closed safe says so; closing again does nothing; opening again gives another one."""
    safe = opened(backend)
    assert "open" in repr(safe) and backend in repr(safe) and opened() is safe
    safe.close()
    safe.close()
    assert safe.is_closed and "closed" in repr(safe)
    for access in (
        lambda: safe["a"], lambda: safe.__setitem__("a", 1), lambda: len(safe), lambda: list(safe),
        lambda: safe.update(a=1),
    ):
        with pytest.raises(StorageClosedError, match="is closed"):
            access()
    assert opened() is not safe


def test_change_when_another_was_faster(safe: Safe) -> None:
    """The function is called again with what was stored meanwhile, and with a fresh default."""
    calls = []

    def change(value: list[int]) -> list[int]:
        calls.append(list(value))
        value.append(1)
        if len(calls) == 1:
            safe["list"] = [7]
        return value

    assert safe.change("list", change, []) == [7, 1] == safe["list"]
    assert calls == [[], [7]]


def test_pop_when_another_was_faster(safe: Safe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Popping returns what it removes: a value that was stored meanwhile is not lost."""
    loaded = safe._loaded

    def load_slowly(key: str, value: Any) -> Any:
        found = loaded(key, value)
        if found == "old":
            safe[key] = "new"
        return found

    safe["key"] = "old"
    monkeypatch.setattr(safe, "_loaded", load_slowly)
    assert safe.pop("key") == "new"
    assert "key" not in safe


def test_threads(safe: Safe) -> None:
    """Threads that change the same value lose nothing, and one of them pops each key."""
    safe.update((("todo", number), number) for number in range(40))
    popped: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(40):
                safe.change("count", lambda value: value + 1, 0)
                found = safe.pop(("todo", number), None)
                if found is not None:
                    popped.append(found)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert safe["count"] == 160 and sorted(popped) == list(range(40))


def _make_shelf(path: Path, pairs: dict[str, Any]) -> None:
    with shelve.open(os.fspath(path)) as shelf:
        shelf.update(pairs)


def test_import_shelf(safe: Safe, tmp_path: Path) -> None:
    """A shelf's pairs are stored, those that are there already too; the shelf stays."""
    path = tmp_path / "shelf"
    pairs = {f"key {number}": [number, Frozen("x", number)] for number in range(100)}
    _make_shelf(path, pairs)
    safe["key 1"] = pairs["key 1"]
    safe["mine"] = 1
    assert safe.import_shelf(path) == 100
    assert safe == pairs | {"mine": 1}
    assert safe.import_shelf(path) == 100
    with shelve.open(os.fspath(path)) as shelf:
        assert dict(shelf) == pairs


def test_import_shelf_does_not_overwrite(safe: Safe, tmp_path: Path) -> None:
    """Another value at one of the keys is an error, and nothing is stored, unless told."""
    _make_shelf(tmp_path / "shelf", {"a": 1, "b": 2})
    safe["b"] = 3
    with pytest.raises(SafeError, match=r"another value at 'b'.*overwrite=True"):
        safe.import_shelf(tmp_path / "shelf")
    assert safe == {"b": 3}
    assert safe.import_shelf(tmp_path / "shelf", overwrite=True) == 2
    assert safe == {"a": 1, "b": 2}


def test_import_no_shelf(safe: Safe, tmp_path: Path) -> None:
    """What is no shelf, and a shelf with a value that cannot be loaded, is an error."""
    with pytest.raises(SafeError, match="cannot be opened as a shelf"):
        safe.import_shelf(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(SafeError, match="cannot be opened as a shelf"):
        safe.import_shelf(tmp_path / "text")
    _make_shelf(tmp_path / "shelf", {"a": 1, "s": Strange()})
    with pytest.raises(SafeError, match="'s'"):
        safe.import_shelf(tmp_path / "shelf")
    assert not safe


def test_errors_survive_pickling(safe: Safe) -> None:
    """As all errors of objdb do."""
    with pytest.raises(UnpicklableError) as caught:
        safe["a"] = lambda: 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_iterators_are_lazy(safe: Safe) -> None:
    """Iterating takes what it needs, and holds no lock."""
    safe.update(a=1, b=2)
    pairs: Iterator[Any] = iter(safe.items())
    next(pairs)
    safe["c"] = 3
    safe.close()
