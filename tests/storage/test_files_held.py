"""The files of storages: one writer under all their names, what is in their place, whose they
are."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    PackError,
    StorageError,
    StorageFailedError,
    StorageLockedError,
)
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage import staging
from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.storage.pickled import PickledMappingStorage
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import commit

ONE_FILE = {"file": FileStorage, "pickle": PickledMappingStorage}
LOCKED = {**ONE_FILE, "berkeley": BerkeleyStorage}
ALL = {**LOCKED, "sqlite": SQLiteStorage}


@pytest.fixture(params=sorted(ONE_FILE))
def one_file(request: pytest.FixtureRequest) -> Any:
    """A storage in one file that is replaced."""
    return ONE_FILE[request.param]


def replace(storage: Any) -> None:
    """Let a storage put a new file in the place of the old one."""
    commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"new")})
    storage.pack(storage.lastTransaction(), lambda record: [])


@pytest.mark.parametrize("kind", sorted(LOCKED))
def test_other_names(kind: str, tmp_path: Path) -> None:
    """Who opens what another writes is refused, whatever name of the file or directory is used,
    also without the lock file, and after a pack."""
    make, path = LOCKED[kind], tmp_path / "data"
    with make(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").symlink_to(tmp_path)
    names = [path, tmp_path / "link", tmp_path / "folder" / "data"]
    with make(path) as storage:
        if path.is_file():
            os.link(path, tmp_path / "hard")
            names.append(tmp_path / "hard")
        for change in (lambda: None, lambda: replace(storage)):
            for name in names:
                with pytest.raises(StorageLockedError):
                    make(name)
            for lock in tmp_path.rglob("*.lock"):
                lock.unlink()
            for name in names:
                with pytest.raises(StorageLockedError):
                    make(name)
            change()
            names = names[:3]  # the hard link leads to what was there before
    for name in names:
        make(name).close()


def test_through_a_link(one_file: Any, tmp_path: Path) -> None:
    """What is reached through a symbolic link stays where it is, with its mode."""
    (tmp_path / "big").mkdir()
    path, link = tmp_path / "big" / "data", tmp_path / "data"
    link.symlink_to(path)
    with one_file(link) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        path.chmod(0o600)
        replace(storage)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600
    with one_file(path, read_only=True) as storage:
        assert storage.load(ROOT_OID)[0] == b"new"


@pytest.mark.parametrize("kind", sorted(ALL))
def test_a_fifo(kind: str, tmp_path: Path) -> None:
    """A FIFO is refused at once, in the place of the database or of its lock."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileFormatError, match=r"FIFO|is a file"):
        ALL[kind](tmp_path / "fifo")
    path = tmp_path / "data"
    with ALL[kind](path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    lock = path / "objdb.lock" if path.is_dir() else Path(f"{path}.lock")
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(FileFormatError, match=r"lock is a FIFO"):
        ALL[kind](path)


def test_a_link_in_the_place_of_what_is_made(tmp_path: Path) -> None:
    """Files of a pack are not written through a link that somebody has put there."""
    path, other = tmp_path / "data", tmp_path / "other"
    other.write_bytes(b"somebody else's")
    with FileStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        Path(f"{path}.pack").symlink_to(other)
        replace(storage)
        assert not path.is_symlink() and storage.load(ROOT_OID)[0] == b"new"
        assert other.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("gone", ["removed", "replaced"])
def test_a_file_that_is_not_in_place(gone: str, tmp_path: Path) -> None:
    """A pack does not take the place of a file that somebody else put there, or removed; commits
    stop when the index is written, at the latest, and closing tells it."""
    path = tmp_path / "data"
    storage = FileStorage(path, checkpoint_records=5)
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    path.rename(tmp_path / "kept")
    if gone == "replaced":
        path.write_bytes(b"somebody else's")
    with pytest.raises(PackError, match=r"data was removed, or replaced"):
        replace(storage)
    with pytest.raises(StorageFailedError, match=f"data was {gone}"):
        for _ in range(5):
            tid = commit(storage, {ROOT_OID: (storage.lastTransaction(), b"root")})
    storage.close()  # all is told
    assert gone == "removed" or path.read_bytes() == b"somebody else's"
    (tmp_path / "kept").rename(path)
    storage = FileStorage(path)
    assert storage.lastTransaction() == tid
    path.rename(tmp_path / "kept")
    if gone == "replaced":
        path.write_bytes(b"somebody else's")
    with pytest.raises(StorageError, match=rf"data was {gone}.*no file of this name"):
        storage.close()


@pytest.mark.parametrize("gone", ["removed", "replaced", "created"])
def test_a_pickled_storage_that_is_not_in_place(gone: str, tmp_path: Path) -> None:
    """A commit does not take the place of somebody else's file, nor make one anew that was removed;
    nothing is committed then."""
    path = tmp_path / "data"
    with PickledMappingStorage(path) as storage:
        tid = NO_TID
        if gone != "created":
            tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
            path.rename(tmp_path / "kept")
        if gone != "removed":
            path.write_bytes(b"somebody else's")
        with pytest.raises(StorageError, match=f"data was {gone}.*Nothing was committed"):
            commit(storage, {ROOT_OID: (tid, b"another")})
        assert storage.lastTransaction() == tid
    assert path.exists() == (gone != "removed")


# What is made beside a database, under names that anybody can foretell.
BESIDE = [
    ("file", ".lock"), ("file", ".oidx"), ("file", ".pack"), ("file", ".oidx.pack"),
    ("file", ".new"), ("pickle", ".lock"), ("pickle", ".new"), ("sqlite", ".lock"),
    ("sqlite", ".new"), ("sqlite", "-wal"), ("berkeley", "/objdb.lock"),
    ("berkeley", "/objdb.json.new"),
]
MAKE: dict[str, Any] = {
    "file": FileStorage, "pickle": PickledMappingStorage, "sqlite": SQLiteStorage,
    "berkeley": BerkeleyStorage,
}


@pytest.mark.parametrize(("kind", "ending"), BESIDE)
def test_planted_links(kind: str, ending: str, tmp_path: Path) -> None:
    """A link in such a place is refused, or replaced: nothing is written to where it leads."""
    path, victim = tmp_path / "data", tmp_path / "victim"
    victim.write_bytes(b"somebody else's")
    if ending.startswith("/"):
        path.mkdir()
    Path(f"{path}{ending}").symlink_to(victim)
    with (
        suppress(FileFormatError, OSError, StorageError, CorruptedDataError),
        MAKE[kind](path) as storage,
    ):
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        storage.pack(storage.lastTransaction(), lambda record: [])
    assert victim.read_bytes() == b"somebody else's"


def test_modes_of_copies(tmp_path: Path) -> None:
    """A backup is for whom the database is; nothing is readable by others even for a moment."""
    for kind in ("sqlite", "berkeley"):
        path, backup = tmp_path / kind, tmp_path / f"{kind}-backup"
        with MAKE[kind](path) as storage:
            commit(storage, {ROOT_OID: (NO_TID, b"root")})
            for each in [path, *(path.iterdir() if path.is_dir() else ())]:
                each.chmod(0o700 if each.is_dir() else 0o640)
            storage.backup(backup)
        assert backup.stat().st_mode & 0o777 == (0o700 if backup.is_dir() else 0o640)
        for each in backup.iterdir() if backup.is_dir() else ():
            assert each.name == "objdb.json" or each.stat().st_mode & 0o777 == 0o640, each


def test_modes_while_packing(tmp_path: Path) -> None:
    """What a pack makes is its owner's alone until it has the mode of the file."""
    path, seen = tmp_path / "data", set()
    path_was = os.umask(0)
    try:
        with FileStorage(path) as storage:
            commit(storage, {ROOT_OID: (NO_TID, b"root")})
            path.chmod(0o600)
            made = os.open

            def watch(name: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
                file = made(name, flags, mode, **options)
                if str(name).endswith(".pack") and flags & os.O_CREAT:
                    seen.add(stat.S_IMODE(os.fstat(file).st_mode))
                return file

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "open", watch)
                replace(storage)
    finally:
        os.umask(path_was)
    assert seen == {0o600}


def test_owners_are_kept(tmp_path: Path) -> None:
    """A pack by root leaves the file its owner's, and a commit of a pickled storage too; anybody
    else has but himself to give it to."""
    owner = (12345, 12346) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    for kind in ("file", "pickle"):
        path = tmp_path / kind
        with MAKE[kind](path) as storage:
            commit(storage, {ROOT_OID: (NO_TID, b"root")})
            os.chown(path, *owner)
            replace(storage)
        assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_what_is_staged_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary files of transactions that have begun, and of one that has voted, are closed
    with the storage."""

    def spools() -> int:
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return sum("(deleted)" in os.readlink(link) for link in links if os.path.islink(link))

    monkeypatch.setattr(staging, "SPOOL_BYTES", 1000)
    before = spools()
    with FileStorage(tmp_path / "data.fs") as storage:
        for _ in range(2):
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction)
            storage.store(storage.new_oid(), NO_TID, b"x" * 3000, "", transaction)
        assert spools() == before + 2
        storage.tpc_vote(transaction)
        assert spools() == before + 1
        storage.tpc_abort(transaction)
    assert spools() == before
