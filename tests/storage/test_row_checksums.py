"""Rows of SQLite and Berkeley DB have checksums: whatever is damaged is told, and never shown."""

from __future__ import annotations

import gc
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import CorruptedDataError, FileFormatError, StorageFailedError
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid
from objdb.records.references import references
from objdb.storage.copying import copy_transactions
from objdb.storage.libraries import has_locks
from objdb.testing.helpers import commit, contents

KINDS = ("sqlite", "berkeley")
CASES = 60  # of each kind; `./dev crash` has more


def record(chance: random.Random) -> bytes:
    state = {"data": {"bytes": chance.randbytes(chance.randrange(300))}}
    return pickle.dumps(objdb.PersistentMapping, 3) + pickle.dumps(state, 3)


def opened(kind: str, path: Path, history: bool | None = None) -> Any:
    make: Any = objdb.SQLiteStorage if kind == "sqlite" else objdb.BerkeleyStorage
    return make(path, durability="os", history=history)


def fill(kind: str, path: Path, history: bool = True) -> list[Any]:
    """Commit some revisions of 100 objects, and return the contents."""
    chance = random.Random(1)
    with opened(kind, path, history) as storage:
        oids = [ROOT_OID, *(storage.new_oid() for _ in range(99))]
        tid = commit(storage, {oid: (NO_TID, record(chance)) for oid in oids}, user="me")
        tids = dict.fromkeys(oids, tid)
        for number in range(10):
            some = chance.sample(oids, 20)
            tid = commit(
                storage, {oid: (tids[oid], record(chance)) for oid in some},
                description=f"change {number}",
            )
            tids.update(dict.fromkeys(some, tid))
        assert check(storage).problems == []
        return contents(storage)


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """A walk that does not end is a failure, not a test that hangs."""

    def stop(*args: Any) -> None:
        raise TimeoutError("this goes on and on")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_random_damage(kind: str, history: bool, tmp_path: Path) -> None:
    """Bits that were flipped, and bytes that were overwritten, anywhere in the tables: the database
    is refused with what is damaged, `check` tells it, or nothing that is kept has changed."""
    whole, path = tmp_path / "whole", tmp_path / "data"
    before = fill(kind, whole, history)
    told = 0
    for seed in range(CASES):
        chance = random.Random(seed)
        shutil.rmtree(path, ignore_errors=True)
        for left in tmp_path.glob("data*"):
            left.unlink()
        if whole.is_dir():
            shutil.copytree(whole, path)
            file = chance.choice(sorted(path.glob("*.bdb")))
        else:
            file = Path(shutil.copy(whole, path))
        content = bytearray(file.read_bytes())
        at = chance.randrange(len(content))
        if chance.random() < 0.5:
            content[at] ^= 1 << chance.randrange(8)
        else:
            size = chance.choice((4, 100, 1000))
            content[at : at + size] = chance.randbytes(size)[: len(content) - at]
        file.write_bytes(content)
        with bounded(30):
            try:
                with opened(kind, path) as storage:
                    problems = check(storage).problems
                    assert problems or contents(storage) == before, (seed, file, at)
                told += bool(problems)
            except (CorruptedDataError, FileFormatError) as error:
                assert str(path) in str(error)
                told += 1
    assert told > CASES / 2


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as tables:
        tables.execute(statement)
        tables.commit()


DAMAGE = {
    "a record": "UPDATE objects SET data = zeroblob(length(data)) WHERE oid = 5",
    "an old record": "UPDATE old_revisions SET data = x'00' WHERE oid = (SELECT max(oid) FROM"
    " old_revisions)",
    "a revision's transaction": "UPDATE objects SET tid = tid + 1 WHERE oid = 5",
    "a version": "UPDATE objects SET version = 'v' WHERE oid = 5",
    "what is outside": "UPDATE objects SET outside = 7, version = 'v' WHERE oid = 5",
    "an un-created object": "UPDATE objects SET data = NULL WHERE oid = 5",
    "a gap": "UPDATE objects SET follows_gap = 1 WHERE oid = 5",
    "a description": "UPDATE transactions SET description = 'other' WHERE tid = (SELECT max(tid)"
    " FROM transactions)",
    "a status": "UPDATE transactions SET status = 'p'",
    "oids": "UPDATE transactions SET oids = substr(oids, 9)",
    "a missing revision": "DELETE FROM objects WHERE oid = 5",
    "a missing old revision": "DELETE FROM old_revisions WHERE oid = (SELECT max(oid) FROM"
    " old_revisions)",
    "a missing transaction": "DELETE FROM transactions WHERE tid = (SELECT min(tid) FROM"
    " transactions)",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_each_column(what: str, tmp_path: Path) -> None:
    """Nothing in a row can change, and no row go missing, without being told."""
    path = tmp_path / "data.sqlite"
    fill("sqlite", path)
    change(path, DAMAGE[what])
    with opened("sqlite", path) as storage:
        problems = check(storage).problems
    assert any(str(path) in problem for problem in problems)


@pytest.mark.parametrize("what", ["a record", "an old record", "a description"])
def test_reads_that_meet_damage(what: str, tmp_path: Path) -> None:
    """Loads, iteration, copies and packs verify what they read; nothing is taken over."""
    path = tmp_path / "data.sqlite"
    fill("sqlite", path)
    change(path, DAMAGE[what])
    with opened("sqlite", path) as storage, opened("sqlite", tmp_path / "copy.sqlite") as copy:
        with pytest.raises(CorruptedDataError, match="checksum does not match"):
            contents(storage)
        with pytest.raises(CorruptedDataError, match="checksum does not match"):
            copy_transactions(storage, copy)
        with pytest.raises(CorruptedDataError, match="checksum does not match"):
            for oid in range(100):
                storage.history(oid.to_bytes(8, "big"), 100)
        if what == "a record":
            with pytest.raises(CorruptedDataError, match=r"object 0x5\b.*checksum") as caught:
                storage.load(b"\0" * 7 + b"\5")
            assert caught.value.oid == b"\0" * 7 + b"\5" and caught.value.path == str(path)
            with pytest.raises(CorruptedDataError, match="checksum does not match"):
                storage.pack(storage.lastTransaction(), references, gc=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_keeps_them(kind: str, tmp_path: Path) -> None:
    """What a pack changes has checksums that fit, and `check` says that all have some."""
    before = sum(len(revisions) for *_, revisions in fill(kind, tmp_path / "data"))
    with opened(kind, tmp_path / "data") as storage:
        tids = [transaction.tid for transaction in storage.iterator()]
        storage.pack(tids[5], references, gc=False)
        report = check(storage)
        assert report.problems == [] and report.unverified == 0 and report.revisions < before
        assert {each.has_checksum for each in storage.iterator()} == {True}
    with opened(kind, tmp_path / "data") as storage:
        assert check(storage).problems == []


KILLED = """
import os, sys
import objdb
from objdb.ids import NO_TID, ROOT_OID
from objdb.testing.helpers import commit
storage = objdb.SQLiteStorage(sys.argv[1], durability=sys.argv[2])
tid = commit(storage, {ROOT_OID: (NO_TID, b"0" * 3000)})
for number in range(9):
    tid = commit(storage, {ROOT_OID: (tid, b"%d" % number * 3000)})
    print(tid.hex(), flush=True)
os.kill(os.getpid(), 9)
"""


def killed(path: Path, durability: str = "sync") -> list[Tid]:
    """Let a process commit ten times to a new database, and die. Return the last nine tids."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), durability], capture_output=True, timeout=60,
    )
    assert done.returncode == -signal.SIGKILL and Path(f"{path}-wal").stat().st_size > 9 * 4096
    return [bytes.fromhex(line) for line in done.stdout.decode().split()]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("where", ["the header", "a frame's head", "a page", "the salts"])
def test_a_damaged_log(where: str, tmp_path: Path) -> None:
    """SQLite would drop what is behind the damage: it is told, with its place, and nothing is
    changed."""
    path, wal = tmp_path / "data.sqlite", tmp_path / "data.sqlite-wal"
    last = killed(path)[-1]
    content = wal.read_bytes()
    frame = 32 + 3 * (24 + 4096)
    flip(wal, {"the header": 18, "a frame's head": frame + 18, "a page": frame + 500,
               "the salts": frame + 9}[where])
    damaged = wal.read_bytes()
    with pytest.raises(CorruptedDataError, match=r"-wal is damaged in frame") as caught:
        objdb.SQLiteStorage(path)
    assert caught.value.position == (0 if where == "the header" else frame)
    assert wal.read_bytes() == damaged
    wal.write_bytes(content)
    with objdb.SQLiteStorage(path) as storage:
        assert storage.lastTransaction() == last


def test_a_log_that_was_cut(tmp_path: Path) -> None:
    """A commit that a crash has cut off is none, and what was before it is there."""
    path, wal = tmp_path / "data.sqlite", tmp_path / "data.sqlite-wal"
    tids = killed(path)
    wal.write_bytes(wal.read_bytes()[:-100])
    with objdb.SQLiteStorage(path) as storage:
        assert storage.lastTransaction() == tids[-2] and storage.self_check() == []


def test_a_log_that_was_not_synced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a loss of power may leave holes, opening goes on, and says so."""
    path = tmp_path / "data.sqlite"
    killed(path, "os")
    flip(tmp_path / "data.sqlite-wal", 32 + 3 * (24 + 4096) + 500)
    with objdb.SQLiteStorage(path, durability="os") as storage:
        assert storage.self_check() == []
    assert "would drop it and all later frames" in caplog.text


OTHER = """
import sys, objdb
with objdb.SQLiteStorage(sys.argv[1]) as storage:
    print(storage.load(bytes(8))[0].decode())
"""


def other_process(path: Path) -> str:
    """Open, read and close the database in another process."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(path)], capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode().strip()


def _open_again(storage: Any, path: Path) -> None:
    storage.again().close()


def _open_as_a_file(storage: Any, path: Path) -> None:
    for make in (objdb.FileStorage, objdb.PickledMappingStorage):
        with pytest.raises(FileFormatError, match=r"in this process as an SQLite.*sqlite:"):
            make(path)  # type: ignore[operator]


def _open_read_only(storage: Any, path: Path) -> None:
    objdb.SQLiteStorage(path, read_only=True).close()


@pytest.mark.parametrize("look", [_open_again, _open_as_a_file, _open_read_only])
def test_opened_twice(look: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """Opening an open database again in its process frees none of SQLite's locks: if it did,
    another process would remove the log that this one goes on writing to."""
    path = tmp_path / "data.sqlite"
    with objdb.SQLiteStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
        look(storage, path)
        assert other_process(path) == "one"
        commit(storage, {ROOT_OID: (tid, b"two")})
        assert other_process(path) == "two"
    assert other_process(path) == "two"


def test_locks_that_were_lost(tmp_path: Path) -> None:
    """Where a program itself opens and closes the file, another process removes the log: then
    nothing is committed that would be lost."""
    path = tmp_path / "data.sqlite"
    storage = objdb.SQLiteStorage(path)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
    path.read_bytes()
    assert other_process(path) == "one"
    for _ in range(2):
        with pytest.raises(StorageFailedError, match=r"-wal was (removed|replaced).*reopen it"):
            commit(storage, {ROOT_OID: (tid, b"two")})
    storage.close()
    with objdb.SQLiteStorage(path) as storage:
        commit(storage, {ROOT_OID: (tid, b"three")})
    assert other_process(path) == "three"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_gone(how: str, tmp_path: Path) -> None:
    """A database whose file somebody took away takes no commits that nobody will find."""
    path = tmp_path / "data.sqlite"
    with objdb.SQLiteStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
        os.rename(path, tmp_path / "moved")
        if how == "replaced":
            path.write_bytes(b"another one")
        with pytest.raises(StorageFailedError, match=how):
            commit(storage, {ROOT_OID: (tid, b"two")})
        assert storage.load(ROOT_OID)[0] == b"one"
    assert how == "removed" or path.read_bytes() == b"another one"


def test_an_oid_is_not_given_twice(tmp_path: Path) -> None:
    """The note of the last oid is damaged: objects that are there are not met again."""
    path = tmp_path / "data.sqlite"
    fill("sqlite", path)
    change(path, "UPDATE facts SET value = 3 WHERE name = 'last_oid'")
    with opened("sqlite", path) as storage:
        new: Oid = storage.new_oid()
        assert int.from_bytes(new, "big") >= 100


def test_opened_by_many_threads_at_once(tmp_path: Path) -> None:
    """However threads meet while they open one database, SQLite keeps its locks: another process
    that comes and goes meanwhile takes no log away."""
    for number in range(15):
        path = tmp_path / f"data{number}.sqlite"
        objdb.SQLiteStorage(path).close()
        gate = threading.Barrier(6)
        opened: list[Any] = []

        def open_it(path: Path = path, gate: Any = gate, opened: list[Any] = opened) -> None:
            gate.wait(60)
            opened.append(objdb.SQLiteStorage(path))

        threads = [threading.Thread(target=open_it) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        locks = Path("/proc/locks").read_text()
        here = f" {os.getpid()} ", f":{path.stat().st_ino} "
        assert any("POSIX" in line and all(word in line for word in here)
                   for line in locks.splitlines())
        for storage in opened:
            storage.close()
        assert not has_locks(str(path))


def test_a_failed_opening_holds_nothing(tmp_path: Path) -> None:
    """A database that could not be opened is not taken for one that is open here."""
    path = tmp_path / "data.sqlite"
    fill("sqlite", path)
    change(path, "UPDATE facts SET value = 7 WHERE name = 'keeps_history'")
    for _ in range(2):
        with pytest.raises(CorruptedDataError, match="keeps_history"):
            objdb.SQLiteStorage(path)
        gc.collect()
        assert not has_locks(str(path))
