"""Whether what a test leaves open is found."""

from __future__ import annotations

import fcntl
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objdb.storage.libraries import note_locks
from tests.leftovers import now_open, without_abandoned
from tests.storages import STORAGES

# What has its file open all the time.
IN_FILES = [kind for kind in STORAGES if kind not in ("memory", "pickle")]


def left_by(leave: Callable[[], Any]) -> dict[str, list[str]]:
    """Return what is found left while what *leave* returns is kept."""
    before = now_open()
    kept = leave()
    try:
        return now_open().beside(before)
    finally:
        kept.close()
        assert not now_open().beside(before)


@pytest.mark.parametrize("kind", IN_FILES)
def test_storages(kind: str, tmp_path: Path) -> None:
    """A storage that is not closed."""
    left = left_by(lambda: STORAGES[kind](tmp_path))
    assert all(str(tmp_path) in file for file in left["files"])


def test_removed_files(tmp_path: Path) -> None:
    """A file that is open and has no name any more."""

    def leave() -> Any:
        file = (tmp_path / "data").open("wb")
        (tmp_path / "data").unlink()
        return file

    assert list(left_by(leave)) == ["files"]


def test_maps(tmp_path: Path) -> None:
    """A file that is mapped, and so is not gone."""
    (tmp_path / "data").write_bytes(bytes(4096))

    def leave() -> Any:
        with (tmp_path / "data").open("r+b") as file:
            return mmap.mmap(file.fileno(), 4096)

    assert [str(tmp_path) in one for one in left_by(leave)["maps"]] == [True]


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_locks(lock: Any, tmp_path: Path) -> None:
    """A file that this process has locked, in either way."""

    def leave() -> Any:
        file = (tmp_path / "lock").open("wb")
        lock(file, fcntl.LOCK_EX)
        return file

    (left,) = left_by(leave)["files"]
    assert left.endswith(" (locked)")


def test_locks_of_libraries(tmp_path: Path) -> None:
    """A file that is noted as locked by a library, when nobody has it open."""

    class Noted:
        def __init__(self) -> None:
            self.close = note_locks(str(tmp_path))

    assert len(left_by(Noted)["locks"]) == 1


def test_threads() -> None:
    """A thread that goes on, a daemon, too."""

    class Waiting:
        def __init__(self) -> None:
            self.end = threading.Event()
            self.thread = threading.Thread(target=self.end.wait, daemon=True)
            self.thread.start()

        def close(self) -> None:
            self.end.set()
            self.thread.join()

    assert len(left_by(Waiting)["threads"]) == 1


def test_what_is_abandoned(tmp_path: Path) -> None:
    """Of what is left, only files of Berkeley DB may be abandoned: locks and others may not."""
    left = left_by(lambda: STORAGES["berkeley"](tmp_path))
    kept = without_abandoned(left)["files"]
    assert any(file.endswith(" (locked)") for file in kept)
    names = "7 /tmp/safe.bdb", "8 /tmp/__db.001 (deleted)", "9 /tmp/gate", "9 /tmp/__db.2 (locked)"
    assert without_abandoned({"files": list(names)}) == {"files": list(names[2:])}
