"""Opening a database: by path, URI, storage or callable; what cannot be opened says why."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.database import schemes
from objdb.errors import ReadOnlyError, StorageClosedError, StorageLockedError, UsageError
from objdb.interfaces import IConnection, IDatabase, IDatabaseForConnection, IDatabaseForStorage
from objdb.storage.commit import TransactionMetaData
from objdb.storage.files import why_locked
from objdb.storage.foreign import database_of
from tests.conftest import Databases
from tests.models import Person
from tests.records.handmade import put, record


def fill(db: objdb.DB) -> None:
    with db.transaction() as connection:
        connection.root()["p"] = Person("p")


def test_a_path(tmp_path: Path) -> None:
    """A path as text or as a Path opens, or makes, a file."""
    path = tmp_path / "data.fs"
    with objdb.DB(str(path)) as db:
        fill(db)
        assert isinstance(db.storage, objdb.FileStorage)
        assert db.name == str(path)
    with objdb.DB(path) as db, db.transaction() as connection:
        assert connection.root()["p"].name == "p"
    with objdb.open(path) as db:
        assert isinstance(db, objdb.DB)


@pytest.mark.parametrize("name", ["with:colon.fs", "spaces and ümlauts %41.fs", "a?b=c#d.fs"])
def test_odd_paths(tmp_path: Path, name: str) -> None:
    """A path with a directory is taken literally, whatever characters are in it."""
    path = tmp_path / name
    with objdb.DB(str(path)) as db:
        fill(db)
    assert path.exists()


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain file name is a file of the working directory, as path and in a URI."""
    monkeypatch.chdir(tmp_path)
    for where in ("data.fs", "file:data.fs", "file:./data.fs", f"file://{tmp_path}/data.fs"):
        with objdb.DB(where) as db:
            fill(db)
    assert sorted(os.listdir(tmp_path)) == ["data.fs", "data.fs.lock", "data.fs.oidx"]


def test_memory() -> None:
    """None and memory: make a new database in memory each time; a name can be given."""
    for where in (None, "memory:", "memory:scratch"):
        with objdb.DB(where) as db:
            assert isinstance(db.storage, objdb.MappingStorage)
            assert len(db.storage) == 1
            fill(db)
            assert db.name == ("scratch" if where == "memory:scratch" else "MappingStorage")


def test_a_storage_and_a_callable(tmp_path: Path) -> None:
    """A storage is used as it is; a callable is called to make one."""
    storage = objdb.FileStorage(tmp_path / "data.fs")
    with objdb.DB(storage) as db:
        assert db.storage is storage
        fill(db)
    with objdb.DB(lambda: objdb.FileStorage(tmp_path / "data.fs", read_only=True)) as db:
        assert db.storage.isReadOnly()
    with objdb.DB(objdb.MappingStorage) as db:
        fill(db)


def test_parameters_in_a_uri(tmp_path: Path) -> None:
    """A URI's query sets the storage's and the database's parameters, each in its own kind."""
    uri = (
        f"file:{tmp_path}/my%20data.fs?durability=os&preallocate_bytes=0&checkpoint_records=3"
        "&create=yes&pool_size=3&pool_wait=0.5&cache_size=12&cache_size_bytes=3000"
        "&cache_deactivate_after=1.5&database_name=mine&record_stacks=true"
    )
    with objdb.DB(uri) as db:
        fill(db)
        assert (tmp_path / "my data.fs").stat().st_size == db.storage.getSize()
        assert (db.getPoolSize(), db.getCacheSize(), db.getCacheSizeBytes()) == (3, 12, 3000)
        assert db.options.cache_deactivate_after == 1.5
        assert db.database_name == "mine" and db.databases == {"mine": db}
    with (
        objdb.DB(f"file:{tmp_path}/my%20data.fs?read_only=1") as db,
        pytest.raises(ReadOnlyError), db.transaction() as connection,
    ):
        connection.root()["q"] = 1


def test_every_scheme(tmp_path: Path) -> None:
    """Each kind of storage opens from a URI, with its parameters, and is there the next time."""
    for uri in (
        f"file:{tmp_path}/a.fs?durability=os", f"sqlite:{tmp_path}/a.sqlite?busy_seconds=3",
        f"pickle:{tmp_path}/a.pickle?every_seconds=5",
    ):
        with objdb.DB(uri) as db:
            fill(db)
        with objdb.DB(uri) as db, db.transaction() as connection:
            assert connection.root()["p"].name == "p"


WRONG = {
    "two storages": ("file+memory:", "file is not a layer"),
    "parentheses for a file": ("file:(memory:)", "file goes over 0"),
    "open parenthesis": ("file:(memory:", "not closed"),
    "behind parentheses": ("memory:()x", "'x' after"),
    "history": ("sqlite:{}/a.sqlite?history=some", r"history cannot be 'some'"),
    "no path in SQLite": ("sqlite:", "sqlite:calendar.sqlite"),
    "no path to a pickle": ("pickle:?every_seconds=1", "pickle:calendar.pickle"),
    "scheme": ("nosuch:data.fs", r"'nosuch'.*file, memory"),
    "scheme of the web": ("http://example.org/data.fs", "'http'"),
    "no scheme": ("1a:data.fs", "file, memory"),
    "parameter": ("file:{}/data.fs?pool_sise=3", r"'pool_sise'.*pool_size"),
    "parameter of another scheme": ("memory:?durability=os", r"'durability'.*pool_size"),
    "number": ("file:{}/data.fs?pool_size=seven", r"pool_size cannot be 'seven'"),
    "empty number": ("file:{}/data.fs?pool_size=", r"pool_size cannot be ''"),
    "fraction": ("file:{}/data.fs?cache_size=1.5", r"cache_size cannot be '1.5'"),
    "truth value": ("file:{}/data.fs?read_only=maybe", r"read_only cannot be 'maybe'"),
    "durability": ("file:{}/data.fs?durability=some", r"'some'.*sync or os"),
    "host": ("file://host{}/data.fs", "host"),
    "user": ("file://user@{}/data.fs", "host"),
    "broken host": ("file://[half{}/data.fs", "file:"),
    "no path": ("file:", "path"),
    "fragment": ("file:{}/data.fs#part", "part"),
    "pool of nothing": ("memory:?pool_size=0", "pool_size"),
    "negative pool": ("memory:?pool_size=-1", "pool_size"),
    "twice": ("sqlite:{}/a.sqlite?history=yes&history=no", "history is given twice"),
    "log nowhere": ("berkeley:{}/data?log_directory=", "log directory is empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_uris(tmp_path: Path, kind: str) -> None:
    """A URI that makes no sense says what is wrong, and what there is; nothing is made."""
    uri, message = WRONG[kind]
    with pytest.raises(UsageError, match=message):
        objdb.DB(uri.format(tmp_path)).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [42, b"data.fs", ["data.fs"], object()])
def test_what_is_no_storage(where: Any) -> None:
    """What is neither path, URI, storage nor callable is refused with an error that says so; and
    so is a callable that returns no storage."""
    with pytest.raises((UsageError, TypeError)):
        objdb.DB(where)
    with pytest.raises(UsageError, match=r"returned .*, which is no storage"):
        objdb.DB(lambda: where)


@pytest.mark.parametrize("name", ["compressed+a.fs", "encrypted+letters", "demo+"])
def test_a_path_like_a_layer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that begins as a URI with a layer is refused, as it would be a file without the
    layer. With its folder it is a path like any other."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"Write \w+\+file:"):
        objdb.DB(name)
    assert list(tmp_path.iterdir()) == []
    objdb.DB(f"./{name}").close()
    assert (tmp_path / name).exists()


def test_a_plus_in_a_parameter(tmp_path: Path) -> None:
    """It is a plus, in a time and in the name of a file."""
    with objdb.DB(tmp_path / "a.fs") as db:
        fill(db)
    with pytest.raises(UsageError, match="is in the future"):
        objdb.DB(f"before+file:{tmp_path}/a.fs?before=9000-03-02T09:30:00+01:00")
    (tmp_path / "the+word").write_text("correct horse")
    with objdb.DB(f"encrypted+memory:?passphrase=file:{tmp_path}/the+word") as db:
        fill(db)


def test_a_storage_that_cannot_be_opened(tmp_path: Path) -> None:
    """Errors of the storage come through, and the file is free again."""
    path = tmp_path / "data.fs"
    with objdb.DB(path), pytest.raises(StorageLockedError):
        objdb.DB(path)
    objdb.DB(path).close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_closed_storage(tmp_path: Path, kind: str) -> None:
    """A database over a storage that was closed is refused."""
    with objdb.DB(None if kind == "memory" else tmp_path / "data.fs") as db:
        fill(db)
    with pytest.raises(StorageClosedError):
        objdb.DB(db.storage)


def test_no_root_object(tmp_path: Path) -> None:
    """A storage with objects and no root object is not given a new root: it is damaged, or
    something else's."""
    path = tmp_path / "data.fs"
    with objdb.FileStorage(path) as storage:
        put(storage, 5, record(Person, {"name": "p"}))
    with pytest.raises(objdb.POSKeyError, match=r"no root object"):
        objdb.DB(path)
    with objdb.FileStorage(path) as storage:  # it is not locked any more, and unchanged
        assert len(storage) == 1


def test_a_root_that_is_damaged() -> None:
    """A root record that cannot be read does not keep the database from opening; root() says
    what is wrong."""
    storage = objdb.MappingStorage()
    put(storage, 0, b"garbage")
    with (
        objdb.DB(storage) as db, db.open() as connection,
        pytest.raises(objdb.DeserializationError),
    ):
        connection.root()


def test_a_damaged_file(tmp_path: Path) -> None:
    """A file damaged where the root is gives an error with its position, at opening or when the
    root is read; other objects can be read."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db:
        fill(db)
        fill(db)
        oid = bytes(7) + b"\1"
    content = bytearray(path.read_bytes())
    position = content.rindex(b"PersistentMapping")
    content[position : position + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with objdb.DB(path) as db, db.open() as connection:
        assert connection.get(oid).name == "p"
        with pytest.raises((objdb.DeserializationError, objdb.CorruptedDataError)):
            connection.root()
        with pytest.raises(objdb.CorruptedDataError) as caught:
            list(db.storage.iterator())
        assert caught.value.position is not None


def test_a_read_only_database(tmp_path: Path) -> None:
    """A read-only database is read; changing an object of it raises, and leaves it as it was."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db:
        fill(db)
    with objdb.DB(objdb.FileStorage(path, read_only=True)) as db, db.open() as connection:
        assert connection.isReadOnly()
        person = connection.root()["p"]
        with pytest.raises(ReadOnlyError):
            person.name = "changed"
        with pytest.raises(ReadOnlyError):
            connection.add(Person("new"))
        assert person.name == "p"
        transaction.commit()


def test_a_read_only_view_follows_the_writer(tmp_path: Path) -> None:
    """A read-only database sees what another opener commits, from its next transaction on."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as writer:
        fill(writer)
        with (
            objdb.DB(objdb.FileStorage(path, read_only=True)) as reader,
            reader.open(transaction_manager=transaction.TransactionManager()) as connection,
        ):
            assert connection.root()["p"].name == "p"
            for name in ("second", "third"):
                with writer.transaction() as other:
                    other.root()["p"].name = name
                    other.root()[name] = Person(name)
                before = connection.root()["p"].name
                assert before != name and name not in connection.root()
                connection.sync()
                assert connection.root()["p"].name == name
                assert connection.root()[name].name == name


def test_a_new_database_has_a_root(db: objdb.DB) -> None:
    """A new database has one object, an empty PersistentMapping with oid 0, and one
    transaction."""
    with db.transaction() as connection:
        root = connection.root()
        assert type(root) is objdb.PersistentMapping
        assert (root._p_oid, dict(root)) == (bytes(8), {})
    (only,) = db.storage.iterator()
    assert only.description == b"initial database creation"


def test_groups(databases: Databases) -> None:
    """Databases that share a dict are in it by name, and a name is given once, until they close.
    The dict can be iterated over meanwhile."""
    group: dict[str, Any] = {}
    one = databases.open(None, databases=group, database_name="one")
    with pytest.raises(UsageError, match="'one'"):
        databases.open(None, databases=group, database_name="one")
    with pytest.raises(UsageError, match="'one'"):
        databases.open("memory:?database_name=one", databases=group)
    two = databases.open("memory:?database_name=two", databases=group)
    assert group == {"one": one, "two": two}
    two.close()
    with one.open() as connection:
        with pytest.raises(UsageError, match=r"'two'.*'one'"):
            connection.get_connection("two")
        assert connection.get_connection("one") is connection
    again = databases.open(None, databases=group, database_name="two")
    assert group == {"one": one, "two": again}
    for each in group.values():
        each.close()


def test_interfaces_are_kept(databases: Databases) -> None:
    """Database and connection provide what their interfaces declare."""
    from zope.interface.verify import verifyObject

    db = databases.open(None)
    for interface in (IDatabase, IDatabaseForStorage, IDatabaseForConnection):
        verifyObject(interface, db)
    verifyObject(IDatabaseForStorage, database_of(None))
    with db.open() as connection:
        verifyObject(IConnection, connection)


def test_the_storage_is_closed_with_the_database(tmp_path: Path) -> None:
    """Closing closes the storage; a second close does nothing; a closed database opens no
    connection."""
    db = objdb.DB(tmp_path / "data.fs")
    db.close()
    db.close()
    with pytest.raises(StorageClosedError):
        db.open()
    with pytest.raises(StorageClosedError):
        db.storage.tpc_begin(TransactionMetaData())
    assert "closed" in repr(db)


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 0}, {"pool_size": "3"}, {"pool_size": 2.5}, {"pool_wait": -1},
        {"pool_wait": float("nan")}, {"pool_wait": "1"}, {"cache_size": -1}, {"cache_size": 10**30},
        {"cache_size": "x"}, {"cache_size_bytes": -1},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    """A number of the wrong kind or size is refused, with its name."""
    (name,) = options
    with pytest.raises(objdb.UsageError, match=name):
        objdb.DB(None, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"preallocate_bytes": -5}, {"preallocate_bytes": 10**20}, {"checkpoint_records": 0},
        {"checkpoint_records": "1"},
    ],
    ids=str,
)
def test_numbers_of_a_file(tmp_path: Path, options: dict[str, Any]) -> None:
    """So it is for a file, and nothing is made."""
    (name,) = options
    with pytest.raises(objdb.UsageError, match=name):
        objdb.FileStorage(tmp_path / "data.fs", **options)
    with pytest.raises(objdb.UsageError, match="empty"):
        objdb.DB("")
    assert not list(tmp_path.iterdir())


KEY = "0123456789abcdef" * 4
LAYERED = [
    "compressed+file:{}/a.fs", "compressed+sqlite:{}/a.sqlite?method=zstd&level=5",
    "encrypted+pickle:{}/a.pickle?key=env:A_KEY", "encrypted+file:{}/a.fs?passphrase=file:{}/word",
    "compressed+encrypted+sqlite:{}/a.sqlite?key=env:A_KEY&pool_size=2",
    "logged+readonly:(demo:(file:{}/a.fs))", "demo:(file:{}/a.fs)(sqlite:{}/b.sqlite)?pool_size=2",
    "encrypted:(file:{}/a.fs?pool_size=2)?key=env:A_KEY&key=file:{}/key",
]


@pytest.mark.parametrize("uri", LAYERED)
def test_layers_in_uris(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer over any storage, several, and in parentheses; keys are elsewhere."""
    monkeypatch.setenv("A_KEY", KEY)
    (tmp_path / "word").write_text("correct horse\n")
    (tmp_path / "key").write_bytes(bytes(32))
    uri = uri.replace("{}", str(tmp_path))
    if "readonly" in uri:
        objdb.DB(tmp_path / "a.fs").close()
        with objdb.DB(uri) as db, pytest.raises(ReadOnlyError), db.transaction() as connection:
            connection.root()["p"] = 1
        return
    with objdb.DB(uri) as db:
        fill(db)
        assert db.getPoolSize() == (2 if "pool_size" in uri else 7)
    with objdb.DB(uri) as db, db.transaction() as connection:
        assert connection.root()["p"].name == "p"


def test_the_past_in_a_uri(tmp_path: Path) -> None:
    """before+ shows what was there before a moment."""
    with objdb.DB(tmp_path / "a.fs") as db:
        fill(db)
        tid = db.storage.lastTransaction()
    with (
        objdb.DB(f"before+file:{tmp_path}/a.fs?before=0x{tid.hex()}") as db,
        db.transaction() as connection,
    ):
        assert "p" not in connection.root()


WRONG_LAYERS = {
    "no key": ("encrypted+memory:", "needs a key: key=env:NAME"),
    "a key in the URI": (f"encrypted+memory:?key={KEY}", "a secret is never in a URI"),
    "no such variable": ("encrypted+memory:?key=env:NOT_SET", "NOT_SET.*is not set"),
    "a short key": ("encrypted+memory:?key=env:SHORT", "5 bytes, which are not a key"),
    "nothing below": ("compressed:a.fs", r"compressed\+file:PATH"),
    "unknown layer": ("zipped+memory:", "zipped.*compressed"),
    "no moment": ("before+memory:", "before="),
    "three": ("demo:(memory:)(memory:)(memory:)", "2 storages at most"),
    "method": ("compressed+memory:?method=gzip", "zlib or zstd"),
    "number": ("compressed+memory:?level=many", "level cannot be 'many'"),
}


@pytest.mark.parametrize("kind", WRONG_LAYERS)
def test_wrong_layers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a layer in a URI is told, with what there is; no key is shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHORT", "short")
    uri, told = WRONG_LAYERS[kind]
    for where in (uri, uri.replace("memory:", f"file:{tmp_path}/new.fs")):
        with pytest.raises(UsageError, match=told):
            objdb.DB(where)


class Point:
    """Stands for an entry point of a package."""

    def __init__(self, name: str, found: Any) -> None:
        self.name, self.load = name, lambda: found


def test_schemes_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package adds a scheme by an entry point; one that is none is told."""
    made: list[Any] = []

    def make(path: str, parameters: dict[str, Any]) -> Any:
        made.append((path, parameters))
        return objdb.MappingStorage()

    points = [Point("mine", schemes.Scheme(make, {"size": int})), Point("wrong", 7)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    with objdb.DB("mine:a/b?size=3&pool_size=2") as db:
        fill(db)
    assert made == [("a/b", {"size": 3})]
    with objdb.DB("compressed+mine:x") as db:
        fill(db)
    with pytest.raises(UsageError, match=r"wrong.*is 7, which is no"):
        objdb.DB("wrong:x")
    with pytest.raises(UsageError, match="mine, wrong"):
        objdb.DB("other:x")
    points.append(Point("empty", schemes.Scheme(lambda path, parameters: None)))
    with pytest.raises(UsageError, match=r"'empty:x' returned None, which is no storage"):
        objdb.DB("empty:x")
    gone = EntryPoint("gone", "objdb.nosuch:scheme", schemes.GROUP)
    nothing = EntryPoint("nothing", "objdb:nosuch", schemes.GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [gone, nothing])
    for name in ("gone", "nothing"):
        with pytest.raises(UsageError, match=rf"{name} of the group .* cannot be loaded: .*nosuch"):
            objdb.DB(f"{name}:x")


def test_nothing_is_made_in_vain(tmp_path: Path) -> None:
    """What is wrong with a layer is told before the storage under it is made."""
    for uri in ("encrypted+file:{}/new.fs", "before+sqlite:{}/new.sqlite"):
        with pytest.raises(UsageError):
            objdb.DB(uri.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


READABLE = ["file:{}/a.fs", "sqlite:{}/a.sqlite", "pickle:{}/a.pickle", "compressed+file:{}/a.fs"]


@pytest.mark.parametrize("uri", READABLE)
def test_read_only(tmp_path: Path, uri: str) -> None:
    """`DB(…, read_only=True)` opens what is there for reading only; it makes nothing."""
    where = uri.format(tmp_path)
    with pytest.raises((OSError, objdb.StorageError)):
        objdb.DB(where, read_only=True)
    assert not [found for found in tmp_path.iterdir() if not found.name.endswith(".lock")]
    with objdb.DB(where) as db:
        fill(db)
    require_only_reading(lambda: objdb.DB(where, read_only=True))


def require_only_reading(opened: Any) -> None:
    with opened() as db:
        with pytest.raises(ReadOnlyError), db.transaction() as connection:
            connection.root()["p"].name = "q"
        with pytest.raises((ReadOnlyError, objdb.Unsupported)):
            db.pack()
        with db.transaction() as connection:
            assert connection.root()["p"].name == "p"


def test_read_only_beside_a_writer(tmp_path: Path) -> None:
    """A path that is opened for reading only takes no lock."""
    path = tmp_path / "a b%20\udcff.fs"
    with objdb.DB(path) as db:
        fill(db)
        for where in (path, str(path), os.fsencode(path)):
            if isinstance(where, bytes):
                where = os.fsdecode(where)
            require_only_reading(lambda where=where: objdb.DB(where, read_only=True))


def test_read_only_over_what_is_open(tmp_path: Path) -> None:
    """A storage that is open for writing, one made by a function, and one whose URI says
    otherwise, are not written either."""
    where = f"file:{tmp_path}/a.fs"
    with objdb.DB(where) as db:
        fill(db)
    for storage in (
        objdb.FileStorage(tmp_path / "a.fs"), lambda: objdb.FileStorage(tmp_path / "a.fs"),
        where + "?read_only=no", where + "?read_only=yes", f"demo:({where})",
    ):
        require_only_reading(lambda storage=storage: objdb.DB(storage, read_only=True))
    (tmp_path / "objdb.toml").write_text('[main]\nstorage = "a.fs"\nread_only = true\n')
    with objdb.DB(where), objdb.open_databases(tmp_path / "objdb.toml") as databases:
        assert databases["main"].storage.isReadOnly()


def test_why_a_file_is_locked(tmp_path: Path) -> None:
    """Who meets a lock reads what often is the reason, and what to do."""
    with objdb.DB(tmp_path / "a.fs"), pytest.raises(StorageLockedError, match="one DB is enough"):
        objdb.DB(tmp_path / "a.fs")
    assert "reloader" in why_locked(1) and "sqlite:" in why_locked(None)
