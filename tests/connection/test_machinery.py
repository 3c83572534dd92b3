"""What the machinery does to objects of whatever class: oids, attributes, memory, errors on the
way."""

from __future__ import annotations

import copyreg
import functools
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import transaction
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob

import objdb
from objdb.errors import InvalidObjectReference, UnpicklableError, UsageError
from objdb.ids import ROOT_OID
from objdb.records.differences import changed_attributes
from tests.conftest import Databases
from tests.models import Person
from tests.storages import STORAGES

KINDS = ("memory", "file", "sqlite")


@pytest.mark.parametrize("oid", [b"short", b"much longer", b"", ROOT_OID, "textual!", 7, "taken"])
@pytest.mark.parametrize("way", ["reachable", "added", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_oids_of_a_programs_own(tmp_path: Path, kind: str, way: str, oid: Any) -> None:
    """A new object with what is no oid, or another object's, is refused, and nothing stored."""
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        with db.transaction() as connection:
            connection.root()["precious"] = PersistentMapping(value=1)
        with db.transaction() as connection:
            taken = connection.root()["precious"]._p_oid
        own = Person("own") if way != "first" else PersistentMapping(name="own")
        own._p_oid = taken if oid == "taken" else oid
        last = db.storage.lastTransaction()
        with pytest.raises(InvalidObjectReference, match="oid"), db.transaction() as connection:
            if way == "added":
                connection.add(own)
            connection.root()["own"] = own
        assert db.storage.lastTransaction() == last
        assert own._p_jar is None
        with db.transaction() as connection:
            connection.root()["next"] = PersistentMapping()
        with db.transaction() as connection:
            connection.cacheMinimize()
            assert connection.root()["precious"]["value"] == 1
            assert set(connection.root()) == {"precious", "next"}


def test_two_new_objects_with_one_oid(databases: Databases) -> None:
    """Of two new objects to which a program gives one free oid, the second is refused."""
    db = databases.open()
    first, second = Person("first"), Person("second")
    first._p_oid = second._p_oid = b"free oid"
    with pytest.raises(InvalidObjectReference, match="another"), db.transaction() as connection:
        connection.root()["both"] = [first, second]
    first = Person("first")
    first._p_oid = b"free oid"
    with db.transaction() as connection:
        connection.root()["one"] = first
    with db.transaction() as connection:
        assert connection.get(b"free oid").name == "first"


class Reads(Persistent):
    """Looks at another attribute whenever one is set."""

    helper: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self.helper is not None:
            self.helper.get("rules")


class Refuses(Persistent):
    """Refuses the machinery's attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_p_"):
            raise AttributeError(f"{name} is not for you")
        super().__setattr__(name, value)


class Raises(Persistent):
    """Fails at the machinery's attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_p_"):
            raise RuntimeError("no")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize("has_savepoint", [False, True])
@pytest.mark.parametrize("cls", [Reads, Refuses, Raises])
@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_not_asked(
    tmp_path: Path, kind: str, cls: type, has_savepoint: bool
) -> None:
    """The machinery sets its attributes whatever the class's __setattr__ does: an object is
    stored, loaded, changed, taken back and made a ghost."""
    manager = transaction.TransactionManager()
    with objdb.DB(STORAGES[kind](tmp_path), cache_size_bytes=100_000) as db:
        connection = db.open(transaction_manager=manager)
        obj: Any = cls()
        obj.helper = PersistentMapping(rules=[])
        connection.root()["it"] = obj
        if has_savepoint:
            manager.savepoint()
            connection.cacheMinimize()
        manager.commit()
        assert obj._p_serial == db.storage.lastTransaction()
        obj.value = 1
        manager.commit()
        assert obj._p_serial == db.storage.lastTransaction()
        obj.value = 2
        manager.abort()
        connection.cacheMinimize()
        assert connection.root()["it"].value == 1
        fresh: Any = cls()
        fresh.helper = PersistentMapping()
        connection.add(fresh)
        manager.abort()
        assert fresh._p_jar is None and fresh._p_oid is None
        connection.close()


class Frozen(Persistent):
    """Refuses every attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")


def test_class_that_refuses_everything(databases: Databases) -> None:
    """An object that takes no attribute at all is told with the path to it."""
    db = databases.open()
    expected = pytest.raises(UnpicklableError, match=r"data\['bad'\].*cannot assign")
    with expected, db.transaction() as connection:
        connection.root()["bad"] = Frozen()


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_nothing_alive(tmp_path: Path, kind: str) -> None:
    """A weak reference gives None when what it referred to was packed away, whatever was stored
    last."""

    def fill(connection: Any) -> None:
        connection.root()["person"] = PersistentMapping(name="Ann")
        connection.root()["latest"] = objdb.WeakRef(connection.root()["person"])

    def remove(connection: Any) -> None:
        del connection.root()["person"]

    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        db.run(fill)
        db.run(remove)
        db.pack()
        with db.transaction() as connection:
            connection.cacheMinimize()
            gc.collect()
            assert connection.root()["latest"]() is None


class Wordless:
    """Cannot be pickled, and has a __repr__ that fails."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Slots:
    """Keeps its attribute in a slot."""

    __slots__ = ("lock",)


def in_slot() -> Any:
    """Something that cannot be stored, in a slot."""
    value = Slots()
    value.lock = Wordless()
    return value


def deep(levels: int) -> Any:
    """A list in a list in a list …"""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (Wordless, "data['bad']"), (lambda: {Wordless(): 1}, "data['bad'].keys()[0]"),
        (lambda: {(1, 2): [Wordless()]}, "data['bad'][(1, 2)][0]"), (in_slot, "data['bad'].lock"),
        (lambda: deep(1000), "data['bad'][0]"), (lambda: deep(100_000), "data['bad'][0]"),
        (lambda: functools.partial(int, Wordless()), "data['bad']"),
    ],
)
def test_what_cannot_be_stored_is_told(databases: Databases, make: Any, path: str) -> None:
    """The error names the path, in few words, whatever the value is."""
    db = databases.open()
    with pytest.raises(UnpicklableError) as caught, db.transaction() as connection:
        connection.root()["bad"] = make()
    assert path in str(caught.value)
    assert len(str(caught.value)) < 1500


class Hungry:
    """Raises the error that it is given when it is pickled."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Busy(transaction.interfaces.TransientError):
    """May be tried again."""


@pytest.mark.parametrize("kind", [MemoryError, Busy])
def test_errors_that_pickling_passes(databases: Databases, kind: type[Exception]) -> None:
    """An error that is not about the value comes out as it is."""
    db = databases.open()
    with pytest.raises(kind), db.transaction() as connection:
        connection.root()["bad"] = Hungry(kind())
    with db.transaction() as connection:
        connection.root()["good"] = 1


class Waits(Persistent):
    """Cannot be loaded just now."""

    def __setstate__(self, state: Any) -> None:
        raise Busy("database is locked")


def test_error_to_be_tried_again_when_loading(databases: Databases) -> None:
    """An error that may be tried again, out of a __setstate__, comes out as it is."""
    db = databases.open()
    with db.transaction() as connection:
        connection.root()["it"] = waits = Waits()
        waits.x = 1
    with pytest.raises(Busy), db.transaction() as connection:
        connection.cacheMinimize()
        _ = connection.root()["it"].x


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_that_cannot_be_stored(tmp_path: Path, kind: str) -> None:
    """An extension or a note that cannot be stored is told by its name, and nothing is held."""
    with objdb.DB(STORAGES[kind](tmp_path)) as db:
        for name, value in (("callback", lambda: 0), ("deep", deep(100_000)), ("w", Wordless())):
            manager = transaction.TransactionManager()
            connection = db.open(transaction_manager=manager)
            connection.root()["x"] = 1
            manager.get().setExtendedInfo(name, value)
            with pytest.raises(UnpicklableError, match=name):
                manager.commit()
            manager.abort()
            connection.close()
        expected = pytest.raises(UsageError, match=r"description.*udcff")
        with expected, db.transaction(note="a\udcff.txt imported") as connection:
            connection.root()["x"] = 1
        with db.transaction() as connection:
            connection.root()["x"] = 2


@pytest.mark.parametrize("way", ["reachable", "added"])
def test_zodb_blobs_are_refused(databases: Databases, way: str) -> None:
    """A ZODB blob is not stored without its bytes."""
    db = databases.open()
    with pytest.raises(UnpicklableError, match="blob"), db.transaction() as connection:
        blob = Blob(b"precious")
        if way == "added":
            connection.add(blob)
        else:
            connection.root()["blob"] = blob


class Handle:
    """Is pickled by a reducer."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot be pickled without the reducer")


class Computes(Persistent):
    """Keeps what it has computed."""

    @functools.cached_property
    def answer(self) -> list[int]:
        return [42]


def test_looking_is_no_mutation(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`detect_mutations` tells nothing about values that were only looked at."""
    monkeypatch.setitem(copyreg.dispatch_table, Handle, lambda h: (Handle, (h.number,)))
    values = [int | str, Handle(3), list[int], len, deep, Person, "text".join, deep(300)]
    db = databases.open(detect_mutations=True)
    with db.transaction() as connection:
        connection.root()["all"] = PersistentMapping(values=values)
        connection.root()["computes"] = Computes()
    with db.transaction() as connection:
        connection.cacheMinimize()
        _ = connection.root()["all"]["values"]
        assert connection.root()["computes"].answer == [42]
        connection.root()["other"] = 1
    with pytest.raises(objdb.UnregisteredMutationError), db.transaction() as connection:
        connection.cacheMinimize()
        connection.root()["all"]["values"][1].number = 4




def test_reference_to_a_connection_of_another_transaction(databases: Databases) -> None:
    """An object of another database is referred to if it is in the same transaction, else
    refused: it might never be stored."""
    group: dict[str, Any] = {}
    one = databases.open(databases=group, database_name="one")
    two = databases.open(databases=group, database_name="two")
    stranger = two.open(transaction_manager=transaction.TransactionManager())
    strange = Person("strange")
    stranger.add(strange)
    refused = pytest.raises(InvalidObjectReference, match="get_connection")
    with refused, one.transaction() as connection:
        connection.root()["it"] = strange
    stranger.transaction_manager.abort()
    stranger.close()
    with one.transaction() as connection:
        own = Person("own")
        connection.get_connection("two").add(own)
        connection.root()["it"] = own
    with one.transaction() as connection:
        assert connection.root()["it"].name == "own"


def test_pack_of_a_damaged_length(tmp_path: Path) -> None:
    """A pack compares a record's length with the file before it asks for memory."""
    with objdb.DB(tmp_path / "data.fs") as db, db.transaction() as connection:
        connection.root()["m"] = PersistentMapping(text="some text")
    content = bytearray((tmp_path / "data.fs").read_bytes())
    content[content.rindex(b"\x80\x03cpersistent.mapping") - 6] ^= 1  # 2**40 bytes more
    (tmp_path / "data.fs").write_bytes(content)
    with pytest.raises(objdb.CorruptedDataError), objdb.DB(tmp_path / "data.fs") as db:
        db.pack()


def test_differences_of_what_is_nested_deeply(databases: Databases) -> None:
    """A state that is nested too deeply to be compared is told with its attribute."""
    record = pickle.dumps(PersistentMapping, 3) + b"\x80\x03}X\x04\x00\x00\x00deep"
    states = [
        record + b"]" * 50_000 + end + b"a" * 50_000 + b"s." for end in (b"K\x01", b"K\x02")
    ]
    with pytest.raises(objdb.DeserializationError, match="deep"):
        changed_attributes(bytes(8), *states)
