"""The log of a BerkeleyStorage, its checkpoints, and backups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import objdb
from objdb.check import check
from objdb.errors import (
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.testing.helpers import commit, contents
from tests.storage.test_berkeley import fill

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data"


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
    one that was interrupted goes, and nothing else."""
    for name in ("copy.objdb-unfinished", "copy.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
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
    assert not (tmp_path / "copy.objdb-unfinished").exists()
    assert (tmp_path / "copy.new" / "half").exists()


def test_backup_to_a_path_with_a_slash(path: Path, tmp_path: Path) -> None:
    """The directory can be named with a slash at its end."""
    fill(path)
    with BerkeleyStorage(path) as storage:
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
