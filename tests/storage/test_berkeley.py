"""BerkeleyStorage: readers beside a writer, deaths, forks, damage, full disks, backups, and what is
no database of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    MissingPackageError,
    StorageClosedError,
    StorageError,
    StorageFailedError,
    StorageForkedError,
    StorageLockedError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, next_tid
from objdb.storage.berkeley import engine
from objdb.storage.berkeley.environment import Environment
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit, contents
from tests.database.test_forks import in_child
from tests.models import Person

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data"


@pytest.fixture
def storage(path: Path) -> Iterator[BerkeleyStorage]:
    """An open storage with a root record."""
    with BerkeleyStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        yield storage


def fill(path: Path, **options: Any) -> None:
    with objdb.DB(BerkeleyStorage(path, **options)) as db, db.transaction() as connection:
        connection.root()["ann"] = Person("ann", age=1)


def voted(storage: Any, changes: dict[bytes, tuple[bytes, bytes]]) -> TransactionMetaData:
    """Return a transaction that has voted, and holds the slot."""
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    for oid, (base, record) in changes.items():
        storage.store(oid, base, record, "", metadata)
    storage.tpc_vote(metadata)
    return metadata


# -- readers beside a writer


def test_readers_while_a_large_transaction_has_voted(storage: BerkeleyStorage) -> None:
    """Everybody reads what was there before, the committing thread too, at any time; nothing
    waits; then everybody sees what was committed."""
    oids = [storage.new_oid() for _ in range(20_000)]
    first = commit(storage, dict.fromkeys(oids, (NO_TID, b"old" * 20)))
    new = [storage.new_oid() for _ in range(100)]
    changes = dict.fromkeys(oids, (first, b"new" * 50)) | dict.fromkeys(new, (NO_TID, b"new"))
    metadata = voted(storage, changes)
    seen: list[Any] = []

    def read() -> None:
        for oid in oids[::7]:
            seen.append(storage.loadBefore(oid, MAX_TID) == (b"old" * 20, first, None))
            seen.append(storage.loadSerial(oid, first) == b"old" * 20)
        for oid in new:
            with pytest.raises(KeyError):
                storage.load(oid)
        seen.append(len(list(storage.iterator())) == 2)
        seen.append(len(storage.history(oids[0], 5)) == 1)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(60)
    read()
    assert storage.self_check() == []
    storage.tpc_finish(metadata, lambda tid: read())
    assert all(seen) and len(seen) == 3 * (2 * len(oids[::7]) + 2)
    assert storage.load(oids[5])[0] == b"new" * 50 and storage.load(new[0])[0] == b"new"
    assert storage.loadBefore(oids[5], storage.lastTransaction())[0] == b"old" * 20


def test_aborts_under_readers(path: Path) -> None:
    """Transactions that vote and abort, over and over, are never seen, nor do they hide
    anything, from those who read meanwhile in every way there is."""
    with BerkeleyStorage(path) as storage:
        oids = [storage.new_oid() for _ in range(300)]
        first = commit(storage, dict.fromkeys(oids, (NO_TID, b"1")))
        last = commit(storage, dict.fromkeys(oids, (first, b"2")))
        failures: list[Any] = []
        done = threading.Event()

        def read(seed: int) -> None:
            chance = random.Random(seed)
            while not done.is_set():
                oid = chance.choice(oids)
                found = (
                    storage.loadBefore(oid, MAX_TID), storage.loadBefore(oid, last),
                    storage._row_after(oid, first).tid, storage._row(oid, last).data,
                )
                if found != ((b"2", last, None), (b"1", first, last), last, b"2"):
                    failures.append(found)
                if chance.random() < 0.01:
                    listed = [(len(t.oids), t.tid) for t in storage._iter_transactions(
                        NO_TID, MAX_TID
                    )]
                    chains = {oid: [tid for tid, _ in chain] for oid, chain in (
                        storage._iter_chains()
                    )}
                    expected = {key: [first, last] for key in oids}
                    if listed != [(300, first), (300, last)] or chains != expected:
                        failures.append((listed, chains))

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(40):
            metadata = voted(storage, dict.fromkeys(oids, (last, b"3" * 500)))
            storage.tpc_abort(metadata)
        done.set()
        for reader in readers:
            reader.join()
        assert failures == []
        assert storage.self_check() == [] and len(storage) == 300


def test_commits_that_wait_are_checked_against(storage: BerkeleyStorage) -> None:
    """What is decided and waits for the log is not seen, and conflicted with."""
    tid = storage.getTid(ROOT_OID)
    begun, go_on = threading.Event(), threading.Event()
    flush = storage._environment.flush

    def slowly() -> None:
        begun.set()
        go_on.wait(60)
        flush()

    storage._environment.flush = slowly
    first = threading.Thread(target=lambda: commit(storage, {ROOT_OID: (tid, b"first")}))
    first.start()
    begun.wait(60)
    storage._environment.flush = flush
    assert storage.load(ROOT_OID) == (b"root", tid)
    assert storage._find_current([ROOT_OID])[ROOT_OID][1] > tid
    told: list[Any] = []

    def conflicting() -> None:
        try:
            commit(storage, {ROOT_OID: (tid, b"second")})
        except objdb.ConflictError:
            told.append(storage.load(ROOT_OID)[0])  # what was conflicted with can be seen

    second = threading.Thread(target=conflicting)
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert told == [b"first"]


def test_a_log_that_cannot_be_synced(path: Path) -> None:
    """A commit whose sync fails is of unknown outcome; no more are taken, reading goes on, and
    opening again shows what there is."""
    with BerkeleyStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})

        def fail() -> None:
            raise OSError(5, "the disk is gone")

        storage._environment.flush = fail
        with pytest.raises(StorageFailedError, match="unknown"):
            commit(storage, {ROOT_OID: (tid, b"lost?")})
        for _ in range(2):
            with pytest.raises(StorageFailedError, match=r"synced.*open it again"):
                commit(storage, {ROOT_OID: (tid, b"more")})
        assert storage.load(ROOT_OID) == (b"root", tid)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] in (b"root", b"lost?")
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"on")})


def test_large_transactions_and_records(path: Path) -> None:
    """A hundred thousand objects in one transaction, and a record of 64 MiB, which others read
    while it is replaced and that is taken back."""
    with BerkeleyStorage(path, cache_bytes=8 << 20) as storage:
        oids = [storage.new_oid() for _ in range(100_000)]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"x" * 150)))
        assert len(storage) == 100_000 and storage.load(oids[-1]) == (b"x" * 150, tid)
        large = os.urandom(64 << 20)
        tid = commit(storage, {oids[3]: (tid, large)})
        metadata = voted(storage, {oids[3]: (tid, large[::-1])})
        assert storage.load(oids[3]) == (large, tid)
        storage.tpc_abort(metadata)
        assert storage.load(oids[3]) == (large, tid)
    with BerkeleyStorage(path) as storage:
        assert storage.load(oids[3]) == (large, tid)
        assert storage.self_check() == []


def test_what_is_counted(path: Path) -> None:
    """The number of objects and their size are what a count shows, through changes, versions and
    packs, and after opening again."""
    storage = BerkeleyStorage(path)
    with objdb.DB(storage) as db:
        chance = random.Random(4)
        for number in range(30):
            with db.transaction(version="v" if number % 10 > 6 else "") as connection:
                root = connection.root()
                root[f"p{number % 7}"] = Person("x" * chance.randrange(900))
            if number % 10 == 9:
                db.abortVersion("v")
                objdb.get_transaction().commit()
                db.pack()
        expected = _counted(storage)
        assert (len(storage), storage.getSize()) == expected
    with BerkeleyStorage(path) as again:
        assert (len(again), again.getSize()) == expected


def _counted(storage: BerkeleyStorage) -> tuple[int, int]:
    sizes = {
        table: [len(value) for _, value in storage._environment.piece(
            table, b"", b"\xff" * 17, 10_000
        )] for table in ("current", "old", "transactions")
    }
    return len(sizes["current"]), sum(map(sum, sizes.values()))


# -- processes


def test_one_process_at_a_time(path: Path) -> None:
    """The second one is told who has it, in this process and in another."""
    with BerkeleyStorage(path):
        for told in (_error_in_another(path), _error(lambda: BerkeleyStorage(path))):
            assert "StorageLockedError" in told and str(os.getpid()) in told, told
            assert "One process at a time" in told
        with pytest.raises(StorageLockedError) as caught:
            BerkeleyStorage(path)
        assert caught.value.pid == os.getpid() and caught.value.path == str(path)
    BerkeleyStorage(path).close()


def _error(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _error_in_another(path: Path) -> str:
    script = f"import objdb; objdb.BerkeleyStorage({str(path)!r})"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr


def test_forks(path: Path) -> None:
    """A child may not use the parent's storage, and does it no harm; one of its own it gets when
    the parent has closed."""
    with BerkeleyStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        metadata = voted(storage, {ROOT_OID: (tid, b"voted")})

        def use() -> str:
            calls = [
                lambda: storage.load(ROOT_OID), lambda: storage.loadSerial(ROOT_OID, tid),
                lambda: commit(storage, {}), lambda: list(storage._iter_chains()),
            ]
            names = [_error(call).partition(":")[0] for call in calls]
            storage.close()
            return f"{set(names)}, {_error(lambda: BerkeleyStorage(path))}"

        told = in_child(use)
        assert "{'StorageForkedError'}, StorageLockedError" in told and str(os.getpid()) in told
        storage.tpc_finish(metadata)
        assert storage.load(ROOT_OID)[0] == b"voted"
        assert StorageForkedError.__name__ in told
    assert in_child(lambda: _opened_and_read(path)) == "b'voted'"
    with BerkeleyStorage(path) as storage:
        assert storage.self_check() == []


def _opened_and_read(path: Path) -> bytes:
    with BerkeleyStorage(path) as storage:
        return storage.load(ROOT_OID)[0]


def test_a_database_in_a_child(path: Path) -> None:
    """A database from a callable opens its storage in the child, once the parent has closed."""
    db = objdb.DB(lambda: BerkeleyStorage(path))
    with db.transaction() as connection:
        connection.root()["ann"] = Person("ann", age=1)
    assert "StorageLockedError" in in_child(lambda: _error(db.open))
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(go_on[0], 1)
        with db.transaction() as connection:
            age = connection.root()["ann"].age
        db.close()
        os.write(ready[1], b"%d" % age)
        os._exit(0)
    db.close()
    os.write(go_on[1], b"x")
    assert os.read(ready[0], 1) == b"1"
    os.waitpid(child, 0)
    for end in (*ready, *go_on):
        os.close(end)


def test_a_process_that_ends_without_closing(path: Path) -> None:
    """It ends in order, and what it committed is there."""
    script = (
        f"import objdb; db = objdb.DB(objdb.BerkeleyStorage({str(path)!r}))\n"
        "with db.transaction() as connection: connection.root()['a'] = 1"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["a"] == 1


def test_closing(path: Path) -> None:
    """After closing, and beside it, every call is told so by name; a transaction that voted is
    not committed."""
    storage = BerkeleyStorage(path)
    oids = [storage.new_oid() for _ in range(50)]
    tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"1")))
    failures: list[Any] = []
    reading = threading.Barrier(4)

    def read() -> None:
        reading.wait()
        while True:
            try:
                for oid in oids:
                    storage.load(oid)
                storage.loadBefore(oids[0], tid)
            except StorageClosedError:
                return
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    reading.wait()
    storage.close()
    for reader in readers:
        reader.join()
    assert failures == []
    storage.close()
    for call in (
        lambda: storage.load(oids[0]), lambda: storage.getTid(oids[0]), lambda: len(storage),
        lambda: commit(storage, {}), lambda: storage.backup(f"{path}2"), storage.self_check,
    ):
        with pytest.raises(StorageClosedError, match="Open it again"):
            call()


def test_closing_with_a_vote(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that voted when the storage is closed is taken back."""
    from objdb.storage import revisions

    monkeypatch.setattr(revisions, "_CLOSE_SECONDS", 0.05)
    storage = BerkeleyStorage(path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"1")})
    metadata = voted(storage, {ROOT_OID: (tid, b"2")})
    storage.close()
    with pytest.raises(StorageClosedError):
        storage.tpc_finish(metadata)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID) == (b"1", tid)


def test_closing_without_a_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tables cannot be put on the medium at the end, closing says so, and nothing is left
    open; the log has everything."""
    storage = BerkeleyStorage(path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})

    def fail(environment: Environment, *arguments: int) -> None:
        raise StorageWriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "checkpoint", fail)
        with pytest.raises(StorageWriteError) as raised:
            storage.close()
        assert open_files(path) == set() and raised.tb is not None
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID) == (b"root", tid)


# -- what is no database, or damaged


def test_directories_of_something_else(tmp_path: Path, path: Path) -> None:
    """They are refused by name, and not touched."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"something else: it has notes.txt") as caught:
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
    with pytest.raises(FileFormatError, match=r"newer release.*format 7; this one knows 1"):
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
    with BerkeleyStorage(path) as storage:
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


def _damage(file: Path, page: int) -> None:
    content = bytearray(file.read_bytes())
    content[page * 4096 + 500 : page * 4096 + 600] = os.urandom(100)
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


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit for which there is no room is told at the vote, whoever notices, and takes
    nothing; with room it can be tried again."""
    command = [sys.executable, "-c", FULL, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "full" in ended.stdout and "Make room" in ended.stdout
    with BerkeleyStorage(path) as storage:
        tid, before = storage.getTid(ROOT_OID), contents(storage)
        monkeypatch.setattr("objdb.storage.berkeley.storage.free_bytes", lambda place: 5000)
        storage._look_for_space()
        with pytest.raises(StorageWriteError, match=r"5000 are free.*Make room"):
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
        return _error(lambda: BerkeleyStorage(path))

    if os.getuid():
        for file in path.iterdir():
            file.chmod(0)
        told = _error(lambda: BerkeleyStorage(path))
        for file in path.iterdir():
            file.chmod(0o600)
    else:
        for folder in path.parents:
            if str(folder).startswith("/tmp/"):
                folder.chmod(folder.stat().st_mode | 0o055)
        told = in_child(open_as_nobody)
    assert told.startswith(StorageError.__name__) and "permissions" in told, told
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)


@pytest.mark.parametrize("step", ["write_marker", "read_facts", "read_places"])
def test_opening_that_fails_late(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What fails when the tables are open already leaves nothing open."""

    def fail(*arguments: Any) -> None:
        raise OSError("for now")

    with monkeypatch.context() as patch:
        patch.setattr(f"objdb.storage.berkeley.storage.{step}", fail)
        with pytest.raises(OSError, match="for now") as raised:
            BerkeleyStorage(path)
        assert open_files(path) == set() and raised.tb is not None
    with BerkeleyStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})


def open_files(path: Path) -> set[str]:
    """Return the files under *path* that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return {file for file in found if file.startswith(f"{path}/")}


def test_without_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no berkeleydb is told what to install; the class is there nonetheless."""
    monkeypatch.setattr(engine, "bdb", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'objdb\[berkeley\]'") as caught:
        objdb.BerkeleyStorage(path)
    assert caught.value.extra == "objdb[berkeley]" and isinstance(caught.value, StorageError)
    assert not path.exists()


WRONG = [
    {"durability": "some"}, {"cache_bytes": 5}, {"checkpoint_bytes": "many"},
    {"checkpoint_minutes": 0},
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
        storage._environment.checkpoint()
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


# -- the log, checkpoints and backups


def test_a_log_elsewhere(path: Path, tmp_path: Path) -> None:
    """It is found again without being named; naming another place is refused; moved with its
    setting, it is found there."""
    log, other = tmp_path / "log", tmp_path / "other"
    log.mkdir()
    with pytest.raises(FileNotFoundError):
        BerkeleyStorage(tmp_path / "new", log_directory=tmp_path / "nosuch")
    fill(path, log_directory=log)
    BerkeleyStorage(path).close()
    BerkeleyStorage(path, log_directory=log).close()
    with pytest.raises(UsageError, match=r"set_lg_dir in .*DB_CONFIG"):
        BerkeleyStorage(path, log_directory=other)
    log.rename(other)
    with pytest.raises(FileNotFoundError):
        BerkeleyStorage(path)
    (path / "DB_CONFIG").write_text(f"set_lg_dir {other}\n")
    with objdb.DB(BerkeleyStorage(path)) as db, db.transaction() as connection:
        assert connection.root()["ann"].age == 1


def test_where_the_log_is_survives_a_crash(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the storage counts as made, it is on the medium where its log is."""
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    BerkeleyStorage(path, log_directory=tmp_path).close()
    made = [i for i, name in enumerate(synced) if name == "objdb.json.new"][-1]
    assert "DB_CONFIG" in synced[:made]


@pytest.mark.parametrize("keep", [False, True])
def test_log_files(path: Path, keep: bool) -> None:
    """Checkpoints let log files go, unless they are to be kept."""
    with BerkeleyStorage(path, keep_logs=keep, checkpoint_bytes=1024) as storage:
        tid = NO_TID
        for _ in range(6):
            tid = commit(storage, {ROOT_OID: (tid, os.urandom(8 << 20))})
            storage._tick()
        names = sorted(file.name for file in path.glob("log.*"))
        assert ("log.0000000001" in names) is keep and len(names) > (3 if keep else 0)
        is_small = (path / "current.bdb").stat().st_size > 8 << 20
    assert is_small  # the tables are on the medium


BACKED_UP = """
import sys, threading
import objdb
db = objdb.DB(objdb.BerkeleyStorage(sys.argv[1], checkpoint_bytes=1024))
with db.transaction() as connection:
    root = connection.root()
    for name in "abcdefgh":
        root[name] = objdb.PersistentMapping(n=0, ballast="x" * 3000)
stop = threading.Event()
def write(first, second):
    number = 0
    while not stop.is_set():
        number += 1
        with db.transaction() as connection:
            root = connection.root()
            root[first]["n"] = root[second]["n"] = number
            root[first]["ballast"] = "y" * (number % 9000)
def tick():
    while not stop.is_set():
        db.storage._tick()
        db.pack()
writers = [threading.Thread(target=write, args=pair) for pair in ("ab", "cd", "ef", "gh")]
writers.append(threading.Thread(target=tick))
for writer in writers:
    writer.start()
for number in range(int(sys.argv[3])):
    with db.transaction() as connection:
        least = connection.root()["a"]["n"]
    db.storage.backup(f"{sys.argv[2]}{number}")
    print(least)
stop.set()
for writer in writers:
    writer.join()
db.close()
"""


def test_backups_beside_writers(path: Path, tmp_path: Path) -> None:
    """Each backup has all that was committed before it began, nothing by half, and is a database
    of its own, while four threads commit and a fifth packs and makes checkpoints."""
    command = [sys.executable, "-c", BACKED_UP, str(path), str(tmp_path / "backup"), "6"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for number, least in enumerate(map(int, ended.stdout.split())):
        with objdb.DB(BerkeleyStorage(tmp_path / f"backup{number}")) as db:
            with db.transaction() as connection:
                root = connection.root()
                assert root["a"]["n"] >= least
                for first, second in ("ab", "cd", "ef", "gh"):
                    assert root[first]["n"] == root[second]["n"]
            assert db.storage.self_check() == []
            check(db.storage).raise_if_damaged()
            with db.transaction() as connection:
                connection.root()["a"]["n"] += 1


def test_backup(path: Path, tmp_path: Path) -> None:
    """A backup shows what the storage showed; what exists is not overwritten; what is left of
    one that was interrupted goes."""
    (tmp_path / "copy.new").mkdir()
    (tmp_path / "copy.new" / "half").touch()
    for history in (True, False):
        with BerkeleyStorage(tmp_path / f"{history}", history=history) as storage:
            tid = commit(storage, {ROOT_OID: (NO_TID, b"1")})
            tid = commit(storage, {ROOT_OID: (tid, b"2")})
            expected = contents(storage)
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            storage.backup(tmp_path / "copy")
            commit(storage, {ROOT_OID: (tid, b"later")})
            with pytest.raises(FileExistsError):
                storage.backup(tmp_path / "copy")
        with BerkeleyStorage(tmp_path / "copy") as copy:
            assert contents(copy) == expected and copy.supportsUndo() is history
    assert not (tmp_path / "copy.new").exists()


def test_backup_to_a_path_with_a_slash(storage: BerkeleyStorage, tmp_path: Path) -> None:
    """The directory can be named with a slash at its end."""
    storage.backup(f"{tmp_path}/copy/")
    with BerkeleyStorage(tmp_path / "copy") as copy:
        assert contents(copy) == contents(storage)


def test_durability_of_the_operating_system(path: Path) -> None:
    """With "os", nothing is lost by a killed process."""
    script = (
        "import os, signal, sys, objdb\nfrom objdb.testing.helpers import commit\n"
        "storage = objdb.BerkeleyStorage(sys.argv[1], durability='os')\n"
        "commit(storage, {bytes(8): (bytes(8), b'here')})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"here"


# -- without history


def test_the_clock_forgets(path: Path) -> None:
    """Without history, what was replaced goes by itself, in pieces, with its transactions."""
    with BerkeleyStorage(path, history=False) as storage:
        oids = [storage.new_oid() for _ in range(3000)]
        tids = [commit(storage, dict.fromkeys(oids, (NO_TID, b"0")))]
        for number in range(1, 5):
            tids.append(commit(storage, dict.fromkeys(oids, (tids[-1], b"%d" % number))))
        storage._tick()
        assert storage._environment.piece("old", b"", b"\xff" * 16, 10) == []
        assert [t.tid for t in storage._iter_transactions(NO_TID, MAX_TID)] == tids[-1:]
        assert storage.loadBefore(oids[7], next_tid(tids[1])) is None
        assert storage.load(oids[7]) == (b"4", tids[-1])
        assert (len(storage), storage.getSize()) == _counted(storage)


def test_the_clock_and_a_vote_that_does_not_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storage whose clock waits for a transaction that voted can be closed."""
    from objdb.storage import revisions
    from objdb.storage.berkeley import storage as module

    monkeypatch.setattr(revisions, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(module, "_CLOCK_SECONDS", 0.01)
    storage = BerkeleyStorage(path, history=False)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"1")})
    metadata = voted(storage, {ROOT_OID: (tid, b"2")})
    time.sleep(0.05)
    storage.close()
    storage.tpc_abort(metadata)
    with BerkeleyStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"1"
