"""The files of a BerkeleyStorage: what is no database, or damaged; full disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    MissingPackageError,
    StorageError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.berkeley import package
from objdb.storage.berkeley.environment import PAGE_BYTES
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.testing.helpers import commit, contents
from tests.database.test_forks import in_child
from tests.storage.test_berkeley import error_of, fill, open_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data"


# -- what is no database, or damaged


def test_directories_of_something_else(tmp_path: Path, path: Path) -> None:
    """They are refused by name, and not touched."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"not a database .*it has notes.txt") as caught:
        BerkeleyStorage(foreign)
    assert caught.value.path == str(foreign) and os.listdir(foreign) == ["notes.txt"]
    with pytest.raises(FileFormatError, match="is a file"):
        BerkeleyStorage(foreign / "notes.txt")
    with pytest.raises(FileNotFoundError, match="folder"):
        BerkeleyStorage(tmp_path / "nosuch" / "data")
    with pytest.raises(FileNotFoundError):
        BerkeleyStorage(path, create=False)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(FileNotFoundError):
        BerkeleyStorage(path, create=False)
    BerkeleyStorage(path).close()


def test_a_newer_release(path: Path) -> None:
    """A format that is not known yet is not touched; nor is a marker that says nothing."""
    fill(path)
    marker = path / "objdb.json"
    said = json.loads(marker.read_text())
    marker.write_text(json.dumps(said | {"format": 7}))
    with pytest.raises(FileFormatError, match=r"newer release.*format 7; this one knows 2"):
        BerkeleyStorage(path)
    marker.write_text("{")
    with pytest.raises(CorruptedDataError, match=r"objdb.json"):
        BerkeleyStorage(path)


def test_files_that_are_missing(path: Path) -> None:
    """A table or the log that is gone is told by name, and not made anew; put back, all is
    there."""
    fill(path)
    kept = path.parent / "kept"
    shutil.copytree(path, kept)
    log = [file.name for file in path.glob("log.*")]
    for names in (["current.bdb"], ["versions.bdb"], log):
        for name in names:
            (path / name).unlink()
        with pytest.raises(CorruptedDataError, match="missing") as caught:
            BerkeleyStorage(path)
        assert caught.value.path == str(path)
        shutil.copytree(kept, path, dirs_exist_ok=True)
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["ann"].age == 1


def test_a_damaged_page(path: Path) -> None:
    """Pages that were overwritten are told by name where they are met; all others are read, and
    commits elsewhere go on."""
    with BerkeleyStorage(path) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(3000))]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 150)))
    _damage(path / "current.bdb", 30)
    with _damaged(path) as storage:
        told = read = 0
        for oid in oids:
            try:
                read += storage.load(oid) == (b"x" * 150, tid)
            except CorruptedDataError as error:
                told += str(path) in str(error)
        assert told and read and told + read == len(oids)
        assert storage.self_check()
        new = commit(storage, {oids[-1]: (tid, b"new")})
        assert storage.load(oids[-1]) == (b"new", new)
        with pytest.raises(CorruptedDataError):
            commit(storage, dict.fromkeys(oids, (tid, b"all")))
    with BerkeleyStorage(path) as storage:
        assert storage.load(oids[-1]) == (b"new", new)


def test_a_damaged_page_of_old_revisions(path: Path) -> None:
    """A commit that would have to write to a damaged page is refused with what is damaged, and so
    is a pack; commits elsewhere go on."""
    with BerkeleyStorage(path) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(1000))]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 150)))
        tid = commit(storage, dict.fromkeys(oids, (tid, b"y" * 150)))
    _damage(path / "old.bdb", 5, size=100_000)
    with _damaged(path) as storage:
        with pytest.raises(CorruptedDataError, match=r"old.bdb"):
            commit(storage, dict.fromkeys(oids, (tid, b"all")))
        with pytest.raises(CorruptedDataError, match=r"old.bdb"):
            storage.pack(tid, lambda record: [])
        new = commit(storage, {oids[-1]: (tid, b"new")})
    with BerkeleyStorage(path) as storage:
        assert storage.load(oids[-1]) == (b"new", new)
        assert storage.load(oids[0]) == (b"y" * 150, tid)


def test_tables_that_were_emptied(path: Path) -> None:
    """They are told as damage, with the directory."""
    fill(path)
    (path / "current.bdb").write_bytes(b"")
    with pytest.raises(CorruptedDataError, match=r"cannot be opened.*damaged.*backup") as caught:
        BerkeleyStorage(path)
    assert caught.value.path == str(path)


def opened_soon(path: Path) -> str:
    """Try to open what is in *path*, for a minute at most, after which this process ends; return
    what is told of damage, and where."""
    signal.alarm(60)
    try:
        BerkeleyStorage(path)
    except CorruptedDataError as error:
        return f"{error.position} {error}"
    return "it was opened"


@pytest.mark.parametrize("table", ["current", "old", "transactions", "versions"])
def test_a_page_of_zeros(path: Path, table: str) -> None:
    """It is told when the storage is opened, with the file and the position: the engine would look
    for ever, or find nothing, behind it."""
    with BerkeleyStorage(path) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(100))]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 90)))
        for number in range(30):
            tid = commit(storage, dict.fromkeys(oids, (tid, b"y" * number + b"z")))
    file = path / f"{table}.bdb"
    content = file.read_bytes()
    pages = len(content) // PAGE_BYTES
    for page in range(1, pages, pages // 8 or 1):
        at = page * PAGE_BYTES
        file.write_bytes(content[:at] + bytes(PAGE_BYTES) + content[at + PAGE_BYTES :])
        told = in_child(lambda: opened_soon(path))
        assert told.startswith(f"{at} {file} is damaged: a page of zeros"), told
    file.write_bytes(content)
    with BerkeleyStorage(path) as storage:
        assert storage.self_check() == []


def test_a_page_that_becomes_zeros(path: Path) -> None:
    """The check of an open storage tells it, and nothing is looked for any more."""
    with BerkeleyStorage(path) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(100))]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 90)))
        storage.engine._environment.checkpoint()
        with (path / "current.bdb").open("r+b") as file:
            file.seek(4 * PAGE_BYTES)
            file.write(bytes(PAGE_BYTES))
        (told,) = storage.self_check()
        assert f"zeros at position {4 * PAGE_BYTES}" in told
        for read in (
            lambda: storage.loadSerial(oids[1], tid), lambda: list(storage.iterator()),
            lambda: storage.history(oids[1]),
        ):
            with pytest.raises(CorruptedDataError, match="zeros"):
                read()


POWER_FAILS = """
import os, sys
import objdb
from objdb.ids import ROOT_OID
from objdb.testing.helpers import commit
storage = objdb.BerkeleyStorage(
    sys.argv[1], cache_bytes=1 << 20, checkpoint_bytes=1 << 30, checkpoint_minutes=60)
oids = [number.to_bytes(8, "big") for number in range(800)]
for number in range(8):
    commit(storage, {
        oid: (storage.getTid(oid), b"%d" % number * 1500) for oid in oids[number % 2 :: 2]})
os._exit(0)
"""


def test_torn_pages(path: Path) -> None:
    """Of what was written to the tables since the last checkpoint any 512 bytes may have reached
    the medium, and others not: the log restores what was acknowledged."""
    with BerkeleyStorage(path) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(799))]
        commit(storage, dict.fromkeys(oids, (NO_TID, b"first" * 300)))
    before = {file: file.read_bytes() for file in path.glob("*.bdb")}
    subprocess.run([sys.executable, "-c", POWER_FAILS, str(path)], check=True, cwd=ROOT)
    chance, torn = random.Random(1), 0
    for file, old in before.items():
        new = file.read_bytes()
        sectors = [new[at : at + 512] for at in range(0, len(new), 512)]
        for number, sector in enumerate(sectors):
            other = old[number * 512 : number * 512 + 512]
            if other and other != sector and chance.random() < 0.3:
                sectors[number] = other
                torn += 1
        file.write_bytes(b"".join(sectors))
    assert torn > 100
    with BerkeleyStorage(path) as storage:
        assert storage.self_check() == []
        assert [storage.load(oid)[0] for oid in oids] == [b"6" * 1500, b"7" * 1500] * 400


def test_settings_of_the_engine(path: Path, tmp_path: Path) -> None:
    """What a file DB_CONFIG says is not obeyed, but where the log is."""
    fill(path)
    (path / "DB_CONFIG").write_text("set_data_dir /nosuch\nset_flags DB_TXN_NOSYNC\nrubbish\n")
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["ann"].age == 1
    logs = tmp_path / "logs"
    logs.mkdir()
    for log in path.glob("log.*"):
        log.rename(logs / log.name)
    (path / "DB_CONFIG").write_text("set_lg_dir\t../logs\n")
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["ann"].age == 1
    logs.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"log directory of .*data.*DB_CONFIG") as caught:
        BerkeleyStorage(path)
    assert caught.value.filename == str(logs)


def test_new_log_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a commit has begun a new file of the log, its directory is synced before the commit is
    acknowledged."""
    synced = []
    with BerkeleyStorage(path) as storage:
        monkeypatch.setattr(
            "objdb.storage.berkeley.environment.sync_path",
            lambda folder: synced.append((folder, len(list(path.glob("log.*"))))),
        )
        tid, count = NO_TID, len(list(path.glob("log.*")))
        for _ in range(4):
            tid = commit(storage, {ROOT_OID: (tid, os.urandom(700_000))})
            now = len(list(path.glob("log.*")))
            assert now == count or synced[-1] == (str(path), now)
        assert now > count


@contextmanager
def _damaged(path: Path) -> Iterator[BerkeleyStorage]:
    """Open a storage that has damaged pages. Now and then they keep it from writing its tables when
    it is closed, which it says; what was committed is in the log."""
    storage = BerkeleyStorage(path)
    try:
        yield storage
    finally:
        try:
            storage.close()
        except CorruptedDataError as error:
            assert "All committed transactions are in the log" in str(error)


def _damage(file: Path, page: int, size: int = 100) -> None:
    """Overwrite bytes in a page, and in those behind it if they are so many."""
    content = bytearray(file.read_bytes())
    at = page * 4096 + random.randrange(PAGE_BYTES)
    content[at : at + size] = os.urandom(size)[: len(content) - at]
    file.write_bytes(content)


FULL = """
import resource, sys
import objdb
from objdb.ids import NO_TID, ROOT_OID
from objdb.testing.helpers import commit, contents
storage = objdb.BerkeleyStorage(sys.argv[1])
tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
before = contents(storage)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, resource.RLIM_INFINITY))
try:
    commit(storage, {storage.new_oid(): (NO_TID, bytes(100)) for _ in range(40_000)})
except objdb.StorageWriteError as error:
    print(error)
assert contents(storage) == before and len(storage) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
commit(storage, {ROOT_OID: (tid, bytes(3 << 20))})
assert storage.self_check() == []
storage.close()
"""


CLOSED_WHEN_FULL = """
import os, resource, sys
import objdb
from objdb.ids import NO_TID, ROOT_OID
from objdb.testing.helpers import commit
storage = objdb.BerkeleyStorage(sys.argv[1])
commit(storage, {ROOT_OID: (NO_TID, bytes(2 << 20))})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    storage.close()
except objdb.StorageWriteError as error:
    print(error)
storage.close()
opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
assert not any(name.startswith(sys.argv[1]) for name in opened), opened
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with objdb.BerkeleyStorage(sys.argv[1]) as storage:
    assert storage.load(ROOT_OID)[0] == bytes(2 << 20)
    assert storage.self_check() == []
"""


def test_closing_on_a_full_disk(path: Path) -> None:
    """The error says where what was committed is; all files are closed, and it is there when the
    storage is opened again."""
    command = [sys.executable, "-c", CLOSED_WHEN_FULL, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert f"{path} was closed on a full disk. All committed transactions" in ended.stdout


NO_ROOM_FOR_THE_LOG = """
import pathlib, resource, sys
import objdb
from objdb.ids import NO_TID, ROOT_OID
from objdb.testing.helpers import commit
storage = objdb.BerkeleyStorage(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))
tid, size = NO_TID, 0
try:
    while True:
        tid = commit(storage, {ROOT_OID: (tid, b"%d" % (size + 1))})
        size += 1
except objdb.StorageFailedError as error:
    print(error)
tables = list(pathlib.Path(sys.argv[1]).glob("*.bdb"))
before = [table.read_bytes() for table in tables]
storage.close()
assert [table.read_bytes() for table in tables] == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with objdb.BerkeleyStorage(sys.argv[1]) as storage:
    assert int(storage.load(ROOT_OID)[0]) in (size, size + 1)
    assert storage.self_check() == []
"""


def test_tables_are_never_ahead_of_the_log(path: Path) -> None:
    """Where the log finds no room, closing leaves the tables as they are, though they have room:
    what was acknowledged is there when the storage is opened again."""
    command = [sys.executable, "-c", NO_ROOM_FOR_THE_LOG, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "the sync of a commit failed" in ended.stdout


def test_opening_on_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be recovered for want of room is not told as damage."""
    fill(path)
    (path / "current.bdb").rename(path / "kept")
    (path / "current.bdb").write_bytes(b"")
    monkeypatch.setattr("objdb.storage.berkeley.environment.free_bytes", lambda place: 5000)
    with pytest.raises(StorageWriteError, match=r"disk is full. Free disk space and reopen it"):
        BerkeleyStorage(path)
    (path / "kept").rename(path / "current.bdb")
    BerkeleyStorage(path).close()


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit for which there is no room is told at the vote, whoever notices, and takes
    nothing; with room it can be tried again."""
    command = [sys.executable, "-c", FULL, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "full" in ended.stdout and "Free disk space" in ended.stdout
    with BerkeleyStorage(path) as storage:
        tid, before = storage.getTid(ROOT_OID), contents(storage)
        monkeypatch.setattr("objdb.storage.berkeley.engine.free_bytes", lambda place: 5000)
        storage.engine._look_for_space()
        with pytest.raises(StorageWriteError, match=r"5000 are free.*Free disk space"):
            commit(storage, {ROOT_OID: (tid, b"x")})
        monkeypatch.undo()
        assert contents(storage) == before
        commit(storage, {ROOT_OID: (tid, b"x")})


def test_no_permission(path: Path) -> None:
    """A directory that belongs to somebody else is told by name."""
    fill(path)
    os.chmod(path.parent, 0o755)

    def open_as_nobody() -> str:
        os.setgid(65534)
        os.setuid(65534)
        return error_of(lambda: BerkeleyStorage(path))

    if os.getuid():
        for file in path.iterdir():
            file.chmod(0)
        told = error_of(lambda: BerkeleyStorage(path))
        for file in path.iterdir():
            file.chmod(0o600)
    else:
        for folder in path.parents:
            if Path(gettempdir()) in folder.parents:
                folder.chmod(folder.stat().st_mode | 0o055)
        told = in_child(open_as_nobody)
    assert told.startswith(StorageError.__name__) and "permissions" in told, told
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)


@pytest.mark.parametrize("step", ["write_marker", "read_facts", "read_versions"])
def test_opening_that_fails_late(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What fails when the tables are open already leaves nothing open."""

    def fail(*arguments: Any) -> None:
        raise OSError("for now")

    with monkeypatch.context() as patch:
        patch.setattr(f"objdb.storage.berkeley.engine.{step}", fail)
        with pytest.raises(OSError, match="for now") as raised:
            BerkeleyStorage(path)
        assert open_files(path) == set() and raised.tb is not None
    with BerkeleyStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})


def test_without_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no berkeleydb is told what to install; the class is there nonetheless."""
    monkeypatch.setattr(package, "bdb", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'objdb\[berkeley\]'") as caught:
        objdb.BerkeleyStorage(path)
    assert caught.value.extra == "objdb[berkeley]" and isinstance(caught.value, StorageError)
    assert not path.exists()


WRONG = [
    {"durability": "some"}, {"cache_bytes": 5}, {"cache_bytes": 10**30},
    {"checkpoint_bytes": "many"}, {"checkpoint_minutes": 0},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_that_make_no_sense(path: Path, options: dict[str, Any]) -> None:
    """They are told with what there is, before anything is made."""
    with pytest.raises(UsageError, match=next(iter(options))):
        BerkeleyStorage(path, **options)
    assert not path.exists()
    with pytest.raises(UsageError, match="empty"):
        BerkeleyStorage("")


def test_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one in the directory where the process was when it opened the storage."""
    monkeypatch.chdir(path.parent)
    with BerkeleyStorage(path.name) as storage:
        monkeypatch.chdir("/")
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        storage.engine._environment.checkpoint()
    assert list(path.glob("log.*"))
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"root"


def test_by_uri(path: Path) -> None:
    """A URI says all of it."""
    log = path.parent / "log"
    log.mkdir()
    options = f"history=no&cache_bytes=2000000&durability=os&log_directory={log}&keep_logs=yes"
    with objdb.DB(f"berkeley:{path}?{options}") as db:
        assert isinstance(db.storage, objdb.BerkeleyStorage) and not db.storage.supportsUndo()
        check(db.storage).raise_if_damaged()
    assert list(log.glob("log.*")) and not list(path.glob("log.*"))
