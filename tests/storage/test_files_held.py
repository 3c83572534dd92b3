"""The files of storages: one writer under all their names, what is in their place, whose they
are."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import FileFormatError, PackError, StorageLockedError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.berkeley.storage import BerkeleyStorage
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
def test_a_pack_of_what_is_not_in_place(gone: str, tmp_path: Path) -> None:
    """A pack does not take the place of a file that somebody else put there, or removed."""
    path = tmp_path / "data"
    with FileStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        path.rename(tmp_path / "kept")
        if gone == "replaced":
            path.write_bytes(b"somebody else's")
        with pytest.raises(PackError, match=r"data was removed, or replaced"):
            replace(storage)
    assert gone == "removed" or path.read_bytes() == b"somebody else's"
