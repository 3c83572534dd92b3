"""The files of an SQLiteStorage: what is no database, or damaged; full disks; backups; what the
sqlite3 program sees."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    ObjdbError,
    ReadOnlyError,
    StorageError,
    StorageLockedError,
    StorageWriteError,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID, format_tid
from objdb.storage.sql import opening
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.helpers import commit, contents, undo
from tests.models import Person
from tests.storage.test_sqlite import fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of the test is."""
    return tmp_path / "data.sqlite"


# -- what is no database, or damaged


def test_files_of_something_else(tmp_path: Path) -> None:
    """They are refused by name, and not touched."""
    foreign = tmp_path / "foreign.sqlite"
    program = sqlite3.connect(foreign)
    program.execute("CREATE TABLE notes (text TEXT)")
    program.commit()
    program.close()
    (tmp_path / "text").write_text("something else, and long enough to be a header")
    for name, told in (("foreign.sqlite", "another program"), ("text", "not an SQLite database")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(FileFormatError, match=told) as caught:
            SQLiteStorage(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(FileFormatError, match="directory"):
        SQLiteStorage(tmp_path)
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(FileNotFoundError):
            SQLiteStorage(tmp_path / "nosuch.sqlite", **options)
    with pytest.raises(FileNotFoundError, match="folder"):
        SQLiteStorage(tmp_path / "nosuch" / "a.sqlite")
    assert not (tmp_path / "nosuch.sqlite").exists()


def test_a_database_that_is_gone(path: Path) -> None:
    """An emptied file, or one that is missing beside its log, is not begun anew; nor is one by
    half, when making it was interrupted."""
    with SQLiteStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        kept = path.read_bytes()
        (path.parent / "wal").write_bytes(Path(f"{path}-wal").read_bytes())
    path.write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"is empty.*Remove it"):
        SQLiteStorage(path)
    assert path.read_bytes() == b""
    path.unlink()
    (path.parent / "wal").rename(f"{path}-wal")
    with pytest.raises(CorruptedDataError, match=r"missing.*-wal.*Restore"):
        SQLiteStorage(path)
    path.write_bytes(kept)
    with SQLiteStorage(path) as storage:
        assert storage.load(ROOT_OID)[0] == b"root"


def test_a_database_that_was_not_finished(path: Path) -> None:
    """What an interrupted making has left is made anew."""
    for name in ("", "-wal"):
        Path(f"{path}.new{name}").write_bytes(b"half")
    with SQLiteStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
    assert sorted(os.listdir(path.parent)) == ["data.sqlite", "data.sqlite.lock"]


def test_a_newer_release(path: Path) -> None:
    """A schema that is not known yet is not touched."""
    fill(path)
    program = sqlite3.connect(path)
    program.execute("PRAGMA user_version=7")
    program.close()
    with pytest.raises(FileFormatError, match=r"newer release.*schema 7; this one knows 2"):
        SQLiteStorage(path)


WRONG = [
    {"durability": "some"}, {"busy_seconds": -1}, {"busy_seconds": "long"}, {"cache_bytes": -5},
    {"keep_seconds": -1},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_options_that_make_no_sense(path: Path, options: dict[str, Any]) -> None:
    """They are told with what there is, before anything is made."""
    with pytest.raises(UsageError, match=next(iter(options))):
        SQLiteStorage(path, **options)
    assert not path.exists()
    with pytest.raises(UsageError, match="empty"):
        SQLiteStorage("")


def test_damage(path: Path) -> None:
    """Pages that were overwritten are told by name, wherever they are met; others are read."""
    with objdb.DB(SQLiteStorage(path)) as db, db.transaction() as connection:
        for number in range(300):
            connection.root()[str(number)] = Person("x" * 300)
    content = bytearray(path.read_bytes())
    page = 4096
    for number in range(8, len(content) // page, 2):
        content[number * page : (number + 1) * page] = os.urandom(page)
    path.write_bytes(content)
    with SQLiteStorage(path) as storage:
        assert storage.self_check()
        told = 0
        for number in range(301):
            try:
                storage.load(number.to_bytes(8, "big"))
            except (CorruptedDataError, KeyError) as error:
                told += isinstance(error, CorruptedDataError)
        assert told and check(storage).problems


def test_a_truncated_file(path: Path) -> None:
    """A file that was cut off is told, at opening or at the first page that is missing."""
    with objdb.DB(SQLiteStorage(path)) as db, db.transaction() as connection:
        for number in range(300):
            connection.root()[str(number)] = Person("x" * 300)
    os.truncate(path, 5 * 4096)
    with pytest.raises((CorruptedDataError, StorageError)), SQLiteStorage(path) as storage:
        list(storage.iterator())


def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that finds no room is told, and takes nothing; with room it can be tried again.
    SQLite itself would find out when it is too late, in the second phase."""
    fill(path)
    with SQLiteStorage(path) as storage:
        tid, before = storage.getTid(ROOT_OID), contents(storage)
        monkeypatch.setattr("objdb.storage.sql.space.free_bytes", lambda place: 5000)
        with pytest.raises(StorageWriteError, match=r"5000 are free.*Free disk space"):
            commit(storage, {ROOT_OID: (tid, b"x")})
        monkeypatch.undo()
        assert contents(storage) == before
        commit(storage, {ROOT_OID: (tid, b"x")})
    with SQLiteStorage(path) as storage:
        tid, before = storage.getTid(ROOT_OID), contents(storage)
        writer = storage.engine._writer.connection
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(StorageWriteError, match=r"full.*Free disk space"):
            commit(storage, {storage.new_oid(): (NO_TID, b"x" * 100_000)})
        assert contents(storage) == before
        writer.execute("PRAGMA max_page_count=1000000")
        commit(storage, {ROOT_OID: (tid, b"x" * 100_000)})


def test_read_only(path: Path) -> None:
    """A storage for reading follows the one that writes, and refuses changes."""
    fill(path)
    with SQLiteStorage(path) as writer, objdb.DB(f"sqlite:{path}?read_only=yes") as db:
        with pytest.raises(ReadOnlyError):
            commit(db.storage, {ROOT_OID: (NO_TID, b"x")})
        with db.transaction() as connection:
            assert connection.root()["ann"].age == 1
        assert db.pack(dry_run=True).objects_after == 2
        oid = writer.new_oid()
        tid = commit(writer, {oid: (NO_TID, b"new")})
        with db.transaction():
            assert db.storage.load(oid) == (b"new", tid)


# -- backups, and the sqlite3 program


def test_a_backup_survives_a_crash(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and directory are on the medium when the backup has ended."""
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    fill(path)
    with SQLiteStorage(path) as storage:
        monkeypatch.setattr(os, "fsync", note)
        storage.backup(tmp_path / "backup.sqlite")
    assert synced == [f"{tmp_path}/backup.sqlite.objdb-unfinished", str(tmp_path)]


def test_backup(path: Path, tmp_path: Path) -> None:
    """A backup has all that was committed when it was taken, while others commit; what exists is
    not overwritten."""
    fill(path)
    (tmp_path / "backup.sqlite.new").write_text("somebody's")
    told: list[tuple[int, int]] = []
    with SQLiteStorage(path) as storage:
        tid = storage.getTid(ROOT_OID)
        expected = contents(storage)
        storage.backup(tmp_path / "backup.sqlite", lambda done, of: told.append((done, of)))
        commit(storage, {ROOT_OID: (tid, b"later")})
        with pytest.raises(FileExistsError):
            storage.backup(tmp_path / "backup.sqlite")
    assert told and told[-1][0] == told[-1][1] > 0
    with SQLiteStorage(tmp_path / "backup.sqlite") as copy:
        assert contents(copy) == expected
        assert copy.self_check() == []
    assert sorted(os.listdir(tmp_path)) == [
        "backup.sqlite", "backup.sqlite.lock", "backup.sqlite.new", "data.sqlite",
        "data.sqlite.lock",
    ]


def test_copied_with_its_log(path: Path, tmp_path: Path) -> None:
    """The file and its write-ahead log, copied together, are the database, as a crash leaves
    them."""
    fill(path)
    copy = tmp_path / "copy.sqlite"
    with SQLiteStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"last")})
        shutil.copy(path, copy)
        shutil.copy(f"{path}-wal", f"{copy}-wal")
    with SQLiteStorage(copy) as storage:
        assert storage.load(ROOT_OID) == (b"last", tid)


def test_what_a_program_sees(path: Path) -> None:
    """The view `history` shows transactions with their times; `revisions` shows all revisions."""
    fill(path)
    with SQLiteStorage(path) as storage:
        tids = [found.tid for found in storage.iterator()]
    program = sqlite3.connect(path)
    rows = program.execute("SELECT tid, time, description, objects FROM history").fetchall()
    assert [row[0] for row in rows] == [tid.hex() for tid in tids]
    assert [row[2:] for row in rows] == [("initial database creation", 1), ("ann", 2)]
    for tid, row in zip(tids, rows, strict=True):
        assert row[1][:19] in format_tid(tid)
        moment = datetime.fromisoformat(row[1]).replace(tzinfo=timezone.utc)
        assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 1000
    assert program.execute("SELECT count(*) FROM revisions WHERE oid = 0").fetchone() == (2,)
    program.close()
    assert int.from_bytes(b"objd", "big") == opening.APPLICATION_ID


_DAMAGE = (
    ("objects", "tid", "'x'"), ("objects", "tid", "x'00'"), ("objects", "data", "'text'"),
    ("objects", "data", "5"), ("objects", "version", "x'ff'"), ("objects", "outside", "'x'"),
    ("objects", "repeat", "1.5"), ("objects", "follows_gap", "'x'"),
    ("objects", "tid", "cast(x'fffe' AS TEXT)"), ("objects", "version", "cast(x'ff' AS TEXT)"),
    ("old_revisions", "data", "'text'"), ("old_revisions", "version", "5.5"),
    ("transactions", "status", "''"), ("transactions", "status", "x'20'"),
    ("transactions", "user", "cast(x'ff' AS TEXT)"), ("transactions", "description", "x'ff'"),
    ("transactions", "extension", "'x'"), ("transactions", "oids", "x'00'"),
    ("transactions", "oids", "'text'"), ("transactions", "size", "'x'"),
    ("facts", "value", "'x'"),
)


@pytest.mark.parametrize(("table", "column", "value"), _DAMAGE)
def test_damaged_rows(path: Path, table: str, column: str, value: str) -> None:
    """A value of a kind that no column has is a named error wherever it is met, if any: never
    another exception."""
    with SQLiteStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"one")})
        tid = commit(storage, {ROOT_OID: (tid, b"two")})
    with closing(sqlite3.connect(path)) as tables:
        tables.execute(f"UPDATE {table} SET {column} = {value}")
        tables.commit()

    def call(action: Any) -> None:
        with suppress(ObjdbError), SQLiteStorage(path) as storage:
            action(storage)

    for action in (
        lambda storage: storage.load(ROOT_OID), lambda storage: storage.loadSerial(ROOT_OID, tid),
        lambda storage: storage.loadBefore(ROOT_OID, tid), lambda storage: storage.poll(),
        lambda storage: [list(each) for each in storage.iterator()],
        lambda storage: storage.history(ROOT_OID, 9), lambda storage: storage.undoLog(0, 9),
        lambda storage: storage.pack(tid, lambda record: []), lambda storage: storage.new_oid(),
        lambda storage: storage.versions(), lambda storage: storage.packed_tid,
        lambda storage: undo(storage, tid), lambda storage: storage.self_check(),
        lambda storage: commit(storage, {ROOT_OID: (tid, b"three")}),
        lambda storage: objdb.DB(storage).close(),
    ):
        call(action)


def test_another_name(path: Path) -> None:
    """A hard link has a log of its own: opening the database by two names at once is refused, and
    by one after the other is not."""
    fill(path)
    link = path.with_name("link.sqlite")
    os.link(path, link)
    with SQLiteStorage(path), pytest.raises(StorageLockedError, match="another name of the same"):
        SQLiteStorage(link)
    with SQLiteStorage(link) as storage:
        assert storage.load(ROOT_OID)
        with pytest.raises(StorageLockedError, match=r"link\.sqlite"):
            SQLiteStorage(path)
