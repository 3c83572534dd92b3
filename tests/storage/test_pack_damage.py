"""A pack, and a copy, never makes damage final: what they take over was verified."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import transaction

import objdb
from objdb.errors import CorruptedDataError, ObjdbError, PackError
from objdb.records.references import references
from objdb.storage.file.index import PAGE
from objdb.testing.helpers import contents

TEXT = b"the text of the first"


def make(path: Path) -> Path:
    """A file in which the current record of an object points back to an older one."""
    with objdb.DB(path) as db:
        for text in (None, TEXT.decode(), "the second"):
            with db.transaction(str(text)) as connection:
                root = connection.root()
                root.setdefault("m", objdb.PersistentMapping())["text"] = text
        db.undo(db.undoLog()[0]["id"])
        transaction.commit()
    return path


def change(path: Path, function: Callable[[bytearray], None]) -> None:
    """Change the bytes of a file."""
    content = bytearray(path.read_bytes())
    function(content)
    path.write_bytes(content)


def test_a_damaged_index_page(tmp_path: Path) -> None:
    """Whichever page of the index reads as zeros, a pack is refused, says what to do, and loses
    nothing."""
    path, index = tmp_path / "data.fs", tmp_path / "data.fs.oidx"
    with objdb.DB(path) as db:
        with db.transaction() as connection:
            for number in range(1000):
                connection.root()[number] = objdb.PersistentMapping(number=number)
        with db.transaction() as connection:
            connection.root()[0]["number"] = 0
    whole, log = index.read_bytes(), path.read_bytes()
    pages = [at for at in range(2 * PAGE, len(whole), PAGE) if any(whole[at : at + PAGE])]
    assert len(pages) >= 4
    for page in pages:
        index.write_bytes(whole[:page] + bytes(PAGE) + whole[page + PAGE :])
        refused = pytest.raises(CorruptedDataError, match=r"remove the index beside it \(.oidx\)")
        with objdb.FileStorage(path) as storage, refused:
            storage.pack(storage.lastTransaction(), references)
        assert path.read_bytes() == log
    index.unlink()
    with objdb.DB(path) as db:
        db.pack()
        with db.transaction() as connection:
            assert all(connection.root()[n]["number"] == n for n in range(1000))


def flip(content: bytearray) -> None:
    content[content.index(TEXT) + 4] ^= 0x20


def uncreate(content: bytearray) -> None:
    """Zeros over the length of a record's data, and its first bytes: it says un-created then."""
    place = content.rindex(b"\x80\x03cpersistent.mapping")
    content[place - 8 : place + 8] = bytes(16)


@pytest.mark.parametrize("damage", [flip, uncreate])
def test_damage_is_not_packed(tmp_path: Path, damage: Callable[[bytearray], None]) -> None:
    """A pack verifies what it copies, also where a pointer leads to it, and what it drops."""
    path = make(tmp_path / "data.fs")
    change(path, damage)
    content = path.read_bytes()
    refused = pytest.raises(CorruptedDataError, match="checksum")
    with objdb.FileStorage(path) as storage, refused:
        storage.pack(storage.lastTransaction(), references)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_damage_is_not_copied(kind: str, tmp_path: Path) -> None:
    """A copy that is continued verifies the transactions that pointers lead to."""
    path = make(tmp_path / "data.fs")
    uri = {"file": f"{tmp_path}/copy.fs", "sqlite": f"sqlite:{tmp_path}/copy.sqlite"}[kind]
    with objdb.FileStorage(path, read_only=True) as source:
        before_last = sorted(entry[0] for entry in contents(source))[-2]
        copy, _ = objdb.database.opening.open_storage(uri)
        with copy:
            for found in list(source.iterator(None, before_last)):
                copy.tpc_begin(found, found.tid, found.status)
                for r in found:
                    copy.restore(r.oid, r.tid, r.data, r.version, r.data_txn, found)
                copy.tpc_vote(found)
                copy.tpc_finish(found)
            change(path, flip)
            with pytest.raises(CorruptedDataError, match="checksum"):
                copy.copyTransactionsFrom(source)
            assert copy.lastTransaction() == before_last


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed: int, tmp_path: Path) -> None:
    """Whatever is damaged in a file and its index, a pack is refused, or leaves what it leaves of
    the file as it was."""
    chance = random.Random(seed)
    path, index = make(tmp_path / "data.fs"), tmp_path / "data.fs.oidx"
    log, entries = path.read_bytes(), index.read_bytes()
    with objdb.FileStorage(path) as storage:
        storage.pack(storage.lastTransaction(), references)
        packed = contents(storage)
    refused = 0
    for _ in range(150):
        path.write_bytes(log)
        index.write_bytes(entries)
        damaged = chance.choice([path, path, index])
        start = chance.randrange(4, damaged.stat().st_size)
        size = chance.choice([1, 1, 4, 30, 512])
        new = chance.choice([bytes(size), chance.randbytes(size)])
        change(damaged, lambda content, at=start, new=new: overwrite(content, at, new))
        try:
            with objdb.FileStorage(path) as storage:
                storage.pack(storage.lastTransaction(), references)
                assert contents(storage) == packed
        except ObjdbError:
            refused += 1
    assert refused > 30


def overwrite(content: bytearray, at: int, new: bytes) -> None:
    end = min(at + len(new), len(content))
    content[at:end] = new[: end - at]


def test_a_missing_row(tmp_path: Path) -> None:
    """An object whose rows are lost stops a pack of a table, which would drop what only that one
    led to."""
    path = tmp_path / "data.sqlite"
    with objdb.DB(f"sqlite:{path}") as db:
        with db.transaction() as connection:
            connection.root()["a"] = a = objdb.PersistentMapping()
            a["b"] = objdb.PersistentMapping(precious=1)
        with db.transaction() as connection:
            oid, child = connection.root()["a"]._p_oid, connection.root()["a"]["b"]._p_oid
    with sqlite3.connect(path) as connection:
        for (table,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if "oid" in columns:
                number = int.from_bytes(oid, "big")
                connection.execute(f"DELETE FROM {table} WHERE oid IN (?, ?)", (oid, number))
    connection.close()
    with objdb.SQLiteStorage(path) as storage:
        assert b"precious" in storage.load(child)[0]
        with pytest.raises(PackError, match="do not exist"):
            storage.pack(storage.lastTransaction(), references)
        assert b"precious" in storage.load(child)[0]
