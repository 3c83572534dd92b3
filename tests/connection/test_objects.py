"""Objects through a connection: stored by reachability, loaded as they are touched."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import transaction
from BTrees.OOBTree import OOBTree

import objdb
from objdb import ObjectState, object_state
from objdb.ids import NO_TID
from tests.conftest import Databases
from tests.models import Custom, Fussy, HashingByName, Person, Plain, Point


def reload(db: objdb.DB) -> objdb.Connection:
    """A connection that has nothing in its cache."""
    connection = db.open(temporary=True)
    connection.cacheMinimize()
    return connection


def test_reachability(db: objdb.DB) -> None:
    """What can be reached from the root is stored; what cannot is not."""
    with db.transaction() as connection:
        person = Person("Anna", friend=Person("Ben", data=[Plain(inner=Person("Carl"))]))
        connection.root()["anna"] = person
        loose = Person("nobody")
    assert loose._p_oid is None
    assert len(db.storage) == 4
    with db.transaction() as connection:
        anna = connection.root()["anna"]
        assert anna.friend.data[0].inner.name == "Carl"


def test_one_object_per_oid(db: objdb.DB) -> None:
    """In one connection an oid is always the same object, however it is reached."""
    with db.transaction() as connection:
        shared = Person("shared")
        connection.root()["a"] = Person("a", to=shared)
        connection.root()["b"] = Person("b", to=[shared])
    with db.transaction() as connection:
        root = connection.root()
        assert root["a"].to is root["b"].to[0] is connection.get(root["a"].to._p_oid)


def test_four_states(db: objdb.DB) -> None:
    """An object passes through unsaved, up-to-date, changed and ghost, as drawn."""
    connection = db.open()
    person = Person("Anna")
    assert object_state(person) is ObjectState.UNSAVED
    connection.root()["p"] = person
    transaction.commit()
    assert object_state(person) is ObjectState.UP_TO_DATE
    person.name = "Berta"
    assert object_state(person) is ObjectState.CHANGED
    transaction.abort()
    assert object_state(person) is ObjectState.GHOST
    assert person.name == "Anna"
    assert object_state(person) is ObjectState.UP_TO_DATE
    person._p_deactivate()
    assert object_state(person) is ObjectState.GHOST
    connection.close()


def test_changes_are_noticed_and_stored(db: objdb.DB) -> None:
    """Setting and deleting attributes is stored; a changed list only with _p_changed."""
    with db.transaction() as connection:
        connection.root()["p"] = Person("Anna", tags=[], extra=1)
    with db.transaction() as connection:
        person = connection.root()["p"]
        person.name = "Berta"
        del person.extra
        person.tags.append("unnoticed")
        person._p_changed = True
    with db.transaction() as connection:
        person = connection.root()["p"]
        assert (person.name, person.tags) == ("Berta", ["unnoticed"])
        assert not hasattr(person, "extra")


def test_volatile_attributes_vanish(db: objdb.DB) -> None:
    """_v_ attributes are not stored, do not mark the object changed, and go with a ghost."""
    connection = db.open()
    connection.root()["p"] = person = Person("Anna")
    transaction.commit()
    person._v_cached = object()
    assert object_state(person) is ObjectState.UP_TO_DATE
    person._p_deactivate()
    assert person.name == "Anna"
    assert not hasattr(person, "_v_cached")
    connection.close()


def test_classes_of_every_kind(db: objdb.DB) -> None:
    """__getstate__, __setstate__ and __getnewargs__ are honoured; __init__ is not called."""
    with db.transaction() as connection:
        root = connection.root()
        root["custom"], root["point"] = Custom([1, 2]), Point(3, 4)
        root["point"].label = "here"
        root["tree"] = OOBTree({i: Person(str(i)) for i in range(100)})
    with db.transaction() as connection:
        root = connection.root()
        assert root["custom"].items == [1, 2]
        assert (root["point"].made_with, root["point"].label) == ((3, 4), "here")
        assert [person.name for person in root["tree"].values()][7] == "7"


def test_add_gives_an_oid_early(db: objdb.DB) -> None:
    """add gives an oid, get finds the object, commit stores it even if nothing refers to it."""
    connection = db.open()
    person = Person("Anna")
    connection.add(person)
    assert connection.get(person._p_oid) is person
    assert person._p_serial == NO_TID
    transaction.commit()
    assert person._p_serial == db.storage.lastTransaction()
    fresh = reload(db)
    assert fresh.get(person._p_oid).name == "Anna"
    fresh.close()
    connection.close()


def test_added_then_aborted(db: objdb.DB) -> None:
    """After an abort a new object is unsaved again, keeps its state, and can be added anew."""
    connection = db.open()
    person = Person("Anna")
    connection.add(person)
    connection.root()["p"] = person
    transaction.abort()
    assert object_state(person) is ObjectState.UNSAVED
    assert person._p_oid is None
    connection.root()["p"] = person
    transaction.commit()
    assert reload_name(db) == "Anna"
    connection.close()


def reload_name(db: objdb.DB) -> str:
    with db.transaction() as connection:
        return connection.root()["p"].name


def test_add_refuses_what_is_not_its_own(db: objdb.DB) -> None:
    """add takes persistent objects only, and none of another connection."""
    connection, other = db.open(), db.open()
    with pytest.raises(TypeError, match=r"objdb\.Persistent"):
        connection.add(object())
    with pytest.raises(objdb.InvalidObjectReference, match="another connection"):
        connection.add(other.root())
    connection.add(connection.root())
    connection.close()
    other.close()


def test_failed_commit_leaves_new_objects_unsaved(db: objdb.DB) -> None:
    """When a commit fails half-way, every new object it met is unsaved again."""
    connection = db.open()
    first, second = Person("first"), Person("second", bad=open)
    second.bad = lambda: None
    connection.root()["first"], connection.root()["second"] = first, second
    with pytest.raises(objdb.UnpicklableError):
        transaction.commit()
    transaction.abort()
    assert first._p_oid is None and first._p_jar is None
    assert second._p_oid is None and second._p_jar is None
    assert list(connection.root()) == []
    second.bad = None
    connection.root()["second"] = second
    transaction.commit()
    connection.close()


def test_unknown_oid_names_the_referrer(databases: Databases) -> None:
    """Touching a missing object says which one, in which database, and who refers to it."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["p"] = Person("Anna", friend=Person("Ben"))
    with db.transaction() as connection:
        oid, tid = connection.root()["p"].friend._p_oid, connection.root()["p"]._p_serial
        referrer = connection.root()["p"]._p_oid
    meta = db.metadata_of(transaction.get())
    db.storage.tpc_begin(meta)
    db.storage.deleteObject(oid, tid, meta)
    db.storage.tpc_vote(meta)
    db.storage.tpc_finish(meta)
    connection = reload(db)
    friend = connection.root()["p"].friend
    with pytest.raises(objdb.POSKeyError) as caught:
        _ = friend.name
    assert (caught.value.oid, caught.value.referrer) == (oid, referrer)
    assert hex(int.from_bytes(referrer, "big")) in str(caught.value)
    assert str(databases.directory) in str(caught.value)
    with pytest.raises(KeyError):
        connection.get(b"\0" * 7 + b"\xee")
    with pytest.raises(objdb.POSKeyError, match="8 bytes"):
        connection.get("a string")
    connection.close()
    databases.opened.remove(db)  # it is damaged on purpose: not to be checked
    db.close()


def test_setstate_that_raises(db: objdb.DB) -> None:
    """An error in __setstate__ is told with class and oid; the object stays a ghost, the
    connection works on."""
    with db.transaction() as connection:
        connection.root()["f"], connection.root()["p"] = Fussy(), Person("Anna")
    connection = reload(db)
    fussy = connection.root()["f"]
    Fussy.refuse = True
    try:
        with pytest.raises(objdb.DeserializationError, match=r"Fussy.*to my taste") as caught:
            fussy._p_activate()
    finally:
        Fussy.refuse = False
    assert caught.value.oid == fussy._p_oid
    assert object_state(fussy) is ObjectState.GHOST
    fussy._p_activate()
    assert connection.root()["p"].name == "Anna"
    connection.close()


def test_keys_whose_hash_loads(db: objdb.DB) -> None:
    """A dict keyed by persistent objects, whose hash loads them, can be loaded."""
    with db.transaction() as connection:
        keys = [HashingByName(f"key {i}") for i in range(5)]
        keys[0].others = {key: i for i, key in enumerate(keys[1:])}
        connection.root()["p"] = keys[0]
    connection = reload(db)
    others = connection.root()["p"].others
    assert others[HashingByName("key 3")] == 2
    connection.close()


def test_ghosts_show_nothing_private(db: objdb.DB) -> None:
    """vars of a ghost is empty until it is touched."""
    with db.transaction() as connection:
        connection.root()["p"] = Person("Anna")
    connection = reload(db)
    person = connection.root()["p"]
    person._p_deactivate()
    assert "name" not in object.__getattribute__(person, "__dict__")
    assert person.name == "Anna"
    connection.close()


def test_closed_connections_load_nothing(db: objdb.DB) -> None:
    """Objects of a closed connection raise when loading or changing; so does the connection."""
    with db.transaction() as connection:
        connection.root()["p"] = Person("Anna", friend=Person("Ben"))
    connection = db.open()
    connection.cacheMinimize()
    person = connection.root()["p"]
    friend = person.friend
    connection.close()
    connection.close()
    with pytest.raises(objdb.ConnectionStateError, match="closed"):
        _ = friend.name
    with pytest.raises(objdb.ConnectionStateError, match="closed"):
        person.name = "late"
    with pytest.raises(objdb.ConnectionStateError, match="closed"):
        connection.add(Person())
    with pytest.raises(objdb.ConnectionStateError, match="closed"):
        connection.sync()
    with db.transaction() as connection:
        assert connection.root()["p"].name == "Anna"


def test_refused_changes_leave_memory(databases: Databases) -> None:
    """A change that is refused is not seen by the next user of the connection, and is never
    stored with a later change, for mappings and trees too, which change before they report."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["tree"] = OOBTree({1: "one"})
    connection = db.open()
    root, tree = connection.root(), connection.root()["tree"]
    tree[1], root["tree"]
    connection.close()
    for change in (lambda: root.__setitem__("refused", 1), lambda: tree.__setitem__(2, "refused")):
        with pytest.raises(objdb.ConnectionStateError):
            change()
    with db.transaction() as connection:
        assert connection.root() is root
        assert list(root) == ["tree"] and list(tree) == [1]
        root["kept"] = tree[3] = "kept"
    with db.transaction() as connection:
        assert sorted(connection.root()) == ["kept", "tree"]
        assert list(connection.root()["tree"]) == [1, 3]


def test_refused_changes_on_a_read_only_database(databases: Databases) -> None:
    """On a read-only database the refused change of a tree is gone at the next look."""
    path = str(databases.directory / "data.fs")
    with objdb.DB(path) as writer, writer.transaction() as connection:
        connection.root()["tree"] = OOBTree({1: "one"})
    db = databases.open(objdb.FileStorage(path, read_only=True))
    with db.open() as connection:
        with pytest.raises(objdb.ReadOnlyError):
            connection.root()["tree"][2] = "refused"
        with pytest.raises(objdb.ReadOnlyError):
            connection.root()["refused"] = 1
        assert list(connection.root()) == ["tree"]
        assert list(connection.root()["tree"]) == [1]


def test_close_with_changes(db: objdb.DB) -> None:
    """close refuses while there are uncommitted changes."""
    connection = db.open()
    connection.root()["p"] = Person("Anna")
    with pytest.raises(objdb.ConnectionStateError, match=r"(?i)commit or abort"):
        connection.close()
    transaction.abort()
    connection.close()


def test_connection_as_context_manager(db: objdb.DB) -> None:
    """with db.open() closes; after an error it aborts first."""
    with db.open() as connection:
        connection.root()["p"] = Person("Anna")
        transaction.commit()
    with pytest.raises(RuntimeError, match="on purpose"), db.open() as connection:
        connection.root()["q"] = Person("Ben")
        raise RuntimeError("on purpose")
    with db.open() as connection:
        assert list(connection.root()) == ["p"]


def test_oldstate(db: objdb.DB) -> None:
    """oldstate gives the state of an earlier revision."""
    connection = db.open()
    connection.root()["p"] = person = Person("Anna")
    transaction.commit()
    first = person._p_serial
    person.name = "Berta"
    transaction.commit()
    assert connection.oldstate(person, first)["name"] == "Anna"
    with pytest.raises(objdb.POSKeyError):
        connection.oldstate(person, NO_TID[:-1] + b"\1")
    connection.close()


def test_unreferenced_objects_leave_memory(db: objdb.DB) -> None:
    """A minimized cache holds no object that nobody else refers to."""
    connection = db.open()
    connection.root()["tree"] = OOBTree({i: Person(str(i)) for i in range(50)})
    transaction.commit()
    watched = weakref.ref(connection.root()["tree"][7])
    connection.cacheMinimize()
    gc.collect()
    assert watched() is None
    connection.close()


def test_weak_references(db: objdb.DB) -> None:
    """A WeakRef does not keep its object reachable, and finds it while it is there."""
    connection = db.open()
    root = connection.root()
    root["p"] = Person("Anna")
    root["w"] = objdb.WeakRef(root["p"])
    transaction.commit()
    fresh = reload(db)
    assert fresh.root()["w"]().name == "Anna"
    fresh.close()
    connection.close()


class Restless(Person):
    """Changes other objects, and itself, when it is asked for its state."""

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        for other in self.__dict__.get("disturbs", ()):
            other.name = f"disturbed by {self.name}"
        return state


def test_objects_that_change_while_storing(db: objdb.DB) -> None:
    """What a __getstate__ changes in other objects is stored too, whether they were stored
    before it, come after it, or had not been changed at all."""
    with db.transaction() as connection:
        root = connection.root()
        root["early"], root["late"], root["quiet"] = (Person(str(i)) for i in range(3))
        root["restless"] = Restless("r", disturbs=[])
    with db.transaction() as connection:
        root = connection.root()
        root["early"].name = "changed first"
        root["restless"].disturbs = [root["early"]]
    with db.transaction() as connection:
        assert connection.root()["early"].name == "disturbed by r"
        connection.cacheMinimize()
        assert connection.root()["early"].name == "disturbed by r"
    with db.transaction() as connection:
        root = connection.root()
        root["early"].name = "changed first"
        root["restless"].disturbs = [root["early"], root["late"], root["quiet"]]
        root["late"].name = "changed last"
    with db.transaction() as connection:
        root = connection.root()
        names = [root[name].name for name in ("early", "late", "quiet")]
        connection.cacheMinimize()
        assert names == [root[name].name for name in ("early", "late", "quiet")]
        assert set(names) == {"disturbed by r"}
        assert all(root[name]._p_changed is False for name in ("early", "late", "quiet"))


def test_objects_that_change_each_other_forever(db: objdb.DB) -> None:
    """Two objects whose __getstate__ changes the other one are refused, not stored for ever."""
    with db.transaction() as connection:
        root = connection.root()
        root["a"], root["b"] = Restless("a"), Restless("b")
    connection = db.open()
    root = connection.root()
    root["a"].disturbs, root["b"].disturbs = [root["b"]], [root["a"]]
    with pytest.raises(objdb.SerializationError, match=r"keeps changing.*Restless"):
        transaction.commit()
    transaction.abort()
    assert "disturbs" not in vars(root["a"]) and root["b"].name == "b"
    connection.close()


class Scores(objdb.Persistent):
    """Its state is a dict whose keys are persistent."""

    def __init__(self, scores: dict) -> None:
        self.scores = scores

    def __getstate__(self) -> dict:
        return dict(self.scores)

    def __setstate__(self, state: dict) -> None:
        self.__dict__["scores"] = dict(state)


def test_states_with_persistent_keys(db: objdb.DB) -> None:
    """A state whose keys are persistent objects refers to them, in the first object of the class
    and in all others."""
    with db.transaction() as connection:
        root = connection.root()
        root["ann"] = Person("Ann")
        for name in "abc":
            root[name] = Scores({root["ann"]: 3})
    fresh = reload(db)
    for name in "abc":
        (key,) = fresh.root()[name].scores
        assert key is fresh.root()["ann"]
    fresh.close()


class Hook:
    """Embedded in a record; touches the next object when it is loaded."""

    calls = 0

    def __init__(self, following: Any) -> None:
        self.following = following

    def __setstate__(self, state: dict) -> None:
        Hook.calls += 1
        self.__dict__.update(state)
        if self.following is None:
            raise ValueError("the bottom")
        assert self.following.hook


def test_errors_of_nested_loads_are_not_tried_again_and_again(db: objdb.DB) -> None:
    """An error at the end of a chain of loads, each in the middle of the last, is told after a
    number of steps that grows like the chain."""
    with db.transaction() as connection:
        following = None
        for i in range(12):
            following = Person(str(i), hook=Hook(following))
            connection.add(following)
        connection.root()["first"] = following
    fresh = reload(db)
    Hook.calls = 0
    with pytest.raises(objdb.DeserializationError, match="the bottom"):
        fresh.root()["first"].name  # noqa: B018
    assert Hook.calls <= 12 * 12
    fresh.close()


def test_large_records_warn(db: objdb.DB) -> None:
    """A state of more than 16 MiB is stored, with a warning that names class and size."""
    connection = db.open()
    connection.root()["big"] = Person("big", data=b"x" * (17 * 2**20))
    with pytest.warns(objdb.LargeRecordWarning, match=r"Person.*17 MiB"):
        transaction.commit()
    fresh = reload(db)
    assert len(fresh.root()["big"].data) == 17 * 2**20
    fresh.close()
    connection.close()
