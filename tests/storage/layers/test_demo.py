"""Changes over a base that is never written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb import DemoStorage, FileStorage, MappingStorage, ReadOnlyStorage
from objdb.check import check
from objdb.errors import (
    ConflictError,
    POSKeyError,
    StorageClosedError,
    UndoError,
    Unsupported,
    UsageError,
    VersionLockError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.interfaces import IStorage, IStorageIteration, IStorageVersions
from objdb.storage.layers.layer import Layer
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import Joining, commit, contents, undo
from objdb.testing.packing_model import RandomHistory, record, refer
from objdb.testing.versions import perform
from tests.storage.layers.helpers import Note, copy_of, fill, texts


class Base:
    """A storage in memory with root → a → b, and what it had in the beginning."""

    def __init__(self) -> None:
        self.storage = MappingStorage("base")
        self.a, self.b = self.storage.new_oid(), self.storage.new_oid()
        self.tid: Tid = commit(self.storage, {
            ROOT_OID: (NO_TID, record("root", self.a)), self.a: (NO_TID, record("a", self.b)),
            self.b: (NO_TID, record("b")),
        })
        self.contents = contents(self.storage)


@pytest.fixture
def base() -> Any:
    """A base, which is what it was after the test."""
    base = Base()
    yield base
    assert contents(base.storage) == base.contents


@pytest.fixture
def demo(base: Base) -> DemoStorage:
    return DemoStorage(base.storage)


# -- one over the other


def test_changes_cover_the_base(base: Base, demo: DemoStorage) -> None:
    """What is changed is seen with its history; everything else is the base's."""
    assert demo.lastTransaction() == base.tid
    tid = commit(demo, {base.a: (base.tid, b"changed")}, user="ann")
    assert demo.load(base.a) == (b"changed", tid)
    assert demo.loadBefore(base.a, tid) == (record("a", base.b), base.tid, tid)
    assert demo.loadBefore(base.a, next_tid(base.tid)) == (record("a", base.b), base.tid, tid)
    assert demo.loadBefore(base.a, base.tid) is None
    assert demo.loadBefore(base.b, MAX_TID) == (record("b"), base.tid, None)
    assert demo.loadSerial(base.a, base.tid) == record("a", base.b)
    assert [entry["tid"] for entry in demo.history(base.a, 9)] == [tid, base.tid]
    assert [entry["user_name"] for entry in demo.history(base.a)] == ["ann"]
    assert contents(demo)[:1] == base.contents and len(contents(demo)) == 2
    assert [t.tid for t in demo.iterator(tid)] == [tid]
    assert [t.tid for t in demo.iterator(None, base.tid)] == [base.tid]
    assert len(demo) == 3 and demo.lastTransaction() == tid


def test_deletions_are_seen(base: Base, demo: DemoStorage) -> None:
    """An object that was deleted does not show the base's revision, whatever happens then."""
    gone = commit(demo, {base.a: (base.tid, None)})
    for _ in range(2):
        with pytest.raises(POSKeyError):
            demo.load(base.a)
        with pytest.raises(POSKeyError):
            demo.loadSerial(base.a, gone)
        assert demo.loadBefore(base.a, base.tid) is None
        assert demo.history(base.a)[0]["size"] == 0
        assert contents(demo)[-1][-1][0][2] is None
        demo.pack(gone, refer)
    again = DemoStorage(base.storage, copy_of(demo.changes))
    with pytest.raises(POSKeyError):
        again.load(base.a)
    for serial in (NO_TID, base.tid):
        with pytest.raises(ConflictError):
            commit(demo, {base.a: (serial, b"again")})
    commit(demo, {base.a: (gone, b"again")})
    assert demo.load(base.a)[0] == b"again"


def test_conflicts_with_the_base(base: Base, demo: DemoStorage) -> None:
    """What was made from the base's revision is checked against it, and merged with it."""
    with pytest.raises(ConflictError) as caught:
        commit(demo, {base.a: (NO_TID, b"new")})
    assert caught.value.serials == (base.tid, NO_TID)
    demo.registerDB(Joining())
    commit(demo, {base.b: (base.tid, b"one")})
    commit(demo, {base.b: (base.tid, b"two")})
    assert demo.load(base.b)[0] == b"|".join((record("b"), b"one", b"two"))


def test_undoing_the_first_change(base: Base, demo: DemoStorage) -> None:
    """Undoing the first change of the base's object shows the base's record again; redoing, the
    change; so with deletions."""
    tid = commit(demo, {base.a: (base.tid, b"changed")})
    for expected in (record("a", base.b), b"changed", record("a", base.b)):
        tid = undo(demo, tid)
        assert demo.load(base.a) == (expected, tid)
    tid = undo(demo, commit(demo, {base.a: (tid, None)}))
    assert demo.load(base.a)[0] == record("a", base.b)
    assert check_plain(demo)


def check_plain(demo: DemoStorage) -> bool:
    """Whether every revision that is listed loads as it is listed."""
    return all(
        demo.loadSerial(oid, tid) == data
        for entry in contents(demo) for oid, tid, data, *_ in entry[-1] if data is not None
    )


def test_the_base_is_not_undone(base: Base, demo: DemoStorage) -> None:
    """A transaction of the base cannot be undone; the log ends with the changes."""
    with pytest.raises(UndoError, match="the base is never written"):
        undo(demo, base.tid)
    commit(demo, {base.a: (base.tid, b"changed")}, description="mine")
    assert [entry["description"] for entry in demo.undoLog(0, -9)] == ["mine"]


def test_new_oids(base: Base, tmp_path: Path) -> None:
    """New oids are none of the base's, be that read-only or not, and none of kept changes'."""
    assert DemoStorage(base.storage).new_oid() > base.b
    assert DemoStorage(ReadOnlyStorage(base.storage)).new_oid() > base.b
    assert DemoStorage(ReadOnlyStorage(MappingStorage())).new_oid() > ROOT_OID
    changes = MappingStorage()
    commit(changes, {b"\0" * 6 + b"\1\0": (NO_TID, b"far")})
    assert DemoStorage(base.storage, changes).new_oid() > b"\0" * 6 + b"\1\0"


# -- push and pop


def test_push_and_pop(base: Base, demo: DemoStorage) -> None:
    """What is changed after a push is gone with the pop."""
    first = commit(demo, {base.a: (base.tid, b"first")})
    top = demo.push()
    oid = top.new_oid()
    commit(top, {base.a: (first, b"second"), oid: (NO_TID, b"new")})
    topmost = top.push()
    commit(topmost, {base.b: (base.tid, None)})
    assert (topmost.load(base.a)[0], len(topmost)) == (b"second", 4)
    assert topmost.pop() is top and top.load(base.b)[0] == record("b")
    assert top.pop() is demo
    with pytest.raises(StorageClosedError):
        top.load(base.a)
    assert demo.load(base.a) == (b"first", first)
    with pytest.raises(POSKeyError):
        demo.load(oid)


def test_closing_closes_both(tmp_path: Path) -> None:
    """Both files can be opened again, after closing; after a pop, the base goes on."""
    paths = tmp_path / "base.fs", tmp_path / "changes.fs"
    for _ in range(2):
        with DemoStorage(*map(FileStorage, paths)):
            pass
    demo = DemoStorage(*map(FileStorage, paths))
    base = demo.pop()
    commit(base, {ROOT_OID: (NO_TID, b"root")})
    FileStorage(paths[1]).close()
    base.close()


# -- what it takes


def test_what_it_takes(base: Base, tmp_path: Path) -> None:
    """No storage, one that cannot keep changes, or not all of them, and changes over another base
    are refused."""

    class Plain(Layer):
        honours = (IStorage,)

    with pytest.raises(UsageError, match="not a storage"):
        DemoStorage(None)
    with pytest.raises(Unsupported, match="cannot keep changes"):
        DemoStorage(base.storage, Plain(MappingStorage()))
    with (
        SQLiteStorage(tmp_path / "changes.sqlite", history=False) as forgetful,
        pytest.raises(Unsupported, match="with history"),
    ):
        DemoStorage(base.storage, forgetful)
    changes = MappingStorage()
    commit(changes, {ROOT_OID: (NO_TID, b"root")})
    later = copy_of(base.storage)
    commit(later, {base.a: (base.tid, b"later")})
    with pytest.raises(UsageError, match="has later ones"):
        DemoStorage(later, changes)
    plain = DemoStorage(Plain(copy_of(base.storage)))
    assert not IStorageIteration.providedBy(plain) and plain.load(base.b)[0] == record("b")
    plain = DemoStorage(copy_of(base.storage), _WithoutVersions(MappingStorage()))
    assert not IStorageVersions.providedBy(plain)
    with pytest.raises(Unsupported):
        plain.load(base.b, "plan")


class _WithoutVersions(Layer):
    honours = tuple(i for i in Layer.honours if i is not IStorageVersions)


# -- packing


def test_pack(base: Base, demo: DemoStorage) -> None:
    """A pack takes away what nothing leads to of the changes; what is reached only through the
    base's objects stays, and the base is as it was."""
    reached, lost = demo.new_oid(), demo.new_oid()
    first = commit(demo, {
        base.b: (base.tid, record("b1", reached)), reached: (NO_TID, record("reached")),
        lost: (NO_TID, record("lost")),
    })
    commit(demo, {base.b: (first, record("b2", reached))})
    result = demo.pack(demo.lastTransaction(), refer)
    assert (result.objects_before, result.objects_after) == (5, 4) == (5, len(demo))
    assert demo.load(reached)[0] == record("reached")
    assert demo.load(base.b)[0] == record("b2", reached)
    assert demo.load(base.a)[0] == record("a", base.b)
    with pytest.raises(POSKeyError):
        demo.load(lost)
    assert demo.loadBefore(base.b, demo.getTid(base.b)) is None  # that is packed away


# -- versions


def test_versions_of_the_base(base: Base) -> None:
    """Versions that the base has lock its objects here too, and are committed and aborted here
    alone; which can be undone."""
    below = copy_of(base.storage)
    inside = perform(below, lambda t: below.store(base.a, base.tid, b"in", "plan", t))
    made = below.new_oid()
    perform(below, lambda t: below.store(made, NO_TID, b"made", "plan", t))
    before = contents(below)
    for end, seen in (("commitVersion", b"in"), ("abortVersion", record("a", base.b))):
        demo = DemoStorage(below)
        assert demo.versions() == ["plan"] and demo.modifiedInVersion(base.a) == "plan"
        assert demo.load(base.a, "plan") == (b"in", inside)
        assert demo.load(base.a) == (record("a", base.b), base.tid)
        with pytest.raises(VersionLockError):
            commit(demo, {base.a: (base.tid, b"late")})
        arguments = ("plan", "") if end == "commitVersion" else ("plan",)
        tid = perform(demo, lambda t: getattr(demo, end)(*arguments, t))  # noqa: B023
        assert demo.versions() == [] and demo.load(base.a) == (seen, tid)
        assert demo.loadBefore(base.a, tid, "plan") == (b"in", inside, tid)
        undone = undo(demo, tid)
        assert demo.versions() == ["plan"]
        assert demo.load(base.a, "plan") == (b"in", undone)
        assert demo.load(base.a)[0] == record("a", base.b)
        assert demo.load(made, "plan")[0] == b"made"
        with pytest.raises(POSKeyError):
            demo.load(made)
        assert contents(below) == before


def test_versions_are_listed_while_one_begins(base: Base, demo: DemoStorage) -> None:
    """Another thread can list versions at the moment when an object that is new comes into one."""
    seen: list[list[str]] = []

    class Watched(dict[Oid, list[Tid]]):
        def __setitem__(self, oid: Oid, tids: list[Tid]) -> None:
            seen.append(demo.versions())
            super().__setitem__(oid, tids)

    demo.engine._chains.tids = Watched()
    perform(demo, lambda t: demo.store(demo.new_oid(), NO_TID, b"new", "plan", t))
    assert seen == [[]] and demo.versions() == ["plan"]


# -- against a storage without layers


@pytest.mark.parametrize("seed", range(12))
def test_like_one_storage(seed: int) -> None:
    """After a random history that went on over the storage it began in, everything is as if there
    were one storage: what is listed, and what is seen, at any time and in any version. So it is
    when kept changes are opened again."""
    below = MappingStorage("base")
    RandomHistory(below, random.Random(seed)).go_on(30)
    before = contents(below)
    demo = DemoStorage(below)
    RandomHistory(demo, random.Random(seed + 100)).go_on(60)
    assert contents(below) == before
    whole = copy_of(demo)
    again = DemoStorage(copy_of(below), copy_of(demo.changes))
    oids = {revision[0] for entry in contents(whole) for revision in entry[5]}
    moments = [next_tid(entry[0]) for entry in contents(whole)] + [MAX_TID]
    assert contents(demo) == contents(whole)
    for storage in (demo, again):
        assert storage.versions() == whole.versions()
        for oid in oids:
            assert storage.history(oid, 99) == whole.history(oid, 99)
            for moment in moments:
                for version in ("", "plan", "better"):
                    found = [seen(s, oid, moment, version) for s in (storage, whole)]
                    assert found[0] == found[1], (oid, moment, version)


def seen(storage: Any, oid: Oid, tid: Tid, version: str) -> Any:
    """What is seen; nothing where there is no object, then or now."""
    try:
        return storage.loadBefore(oid, tid, version)
    except POSKeyError:
        return None


# -- databases


def test_database(tmp_path: Path) -> None:
    """A database can be tried out over a file, kept, undone and packed; the file stays as it
    was."""
    path = tmp_path / "base.fs"
    with objdb.DB(path) as db:
        fill(db.storage)
        before = contents(db.storage)
    for opening in range(2):
        changes = FileStorage(tmp_path / "changes.fs")
        demo = DemoStorage(FileStorage(path, read_only=bool(opening)), changes)
        with objdb.DB(demo) as db:
            connection = db.open()
            assert len(connection.root()) == 40 - opening
            del connection.root()[opening]
            connection.root()[7].text = "changed"
            connection.root()[8] = Note("new")
            transaction.commit()
            connection.root()[8].text = "newer"
            transaction.commit()
            db.undo(db.undoLog(0, 1)[0]["id"])
            transaction.commit()
            db.pack()
            assert connection.root()[8].text == "new"
            assert check(db.storage).problems == []
    with FileStorage(path) as base:
        assert contents(base) == before
        assert texts(base)[7].startswith("note 7")


@pytest.mark.parametrize("seed", range(12))
def test_packing_at_random(seed: int) -> None:
    """After a random history over a base, and a pack of the changes to any moment, what is seen
    from then on is what was seen; also when kept changes are opened again."""
    chance = random.Random(seed)
    below = MappingStorage("base")
    RandomHistory(below, chance).go_on(30)
    demo = DemoStorage(below)
    history = RandomHistory(demo, chance)
    history.go_on(40)
    moment = chance.choice([entry[0] for entry in contents(demo.changes)])
    oids = {revision[0] for entry in contents(demo) for revision in entry[5]}
    views = {
        asked: found for asked, found in history.views(moment, oids).items() if asked[0] == "load"
    }
    demo.pack(moment, refer, gc=False)
    again = RandomHistory(DemoStorage(copy_of(below), copy_of(demo.changes)), chance)
    for asked, found in views.items():
        assert history.view(*asked) == again.view(*asked) == found, asked
