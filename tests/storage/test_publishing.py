"""What readers of a file see while a transaction is being published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.ids import MAX_TID, NO_TID, ROOT_OID
from objdb.storage.file.index import Index
from objdb.storage.file.lookup import PageTable
from objdb.storage.file.storage import FileStorage
from objdb.testing.conformance import commit


@pytest.mark.parametrize("is_polled", [False, True], ids=["written here", "polled"])
def test_the_index_leads_to_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_polled: bool
) -> None:
    """From the moment that the index leads to a new record, the record and those before it can
    be read, though the transaction is not the last one yet."""
    with FileStorage(tmp_path / "data.fs") as writer:
        old = commit(writer, {ROOT_OID: (NO_TID, b"old")})
        with FileStorage(tmp_path / "data.fs", read_only=True) as other:
            storage = other if is_polled else writer
            seen: list[Any] = []
            set_many = Index.set_many

            def look(index: Index, *args: Any) -> None:
                set_many(index, *args)
                if index is storage.engine.generation.index:
                    seen.append(storage.lastTransaction())
                    seen.append(storage.loadBefore(ROOT_OID, storage_before))
                    seen.append(storage.loadBefore(ROOT_OID, MAX_TID))

            monkeypatch.setattr(Index, "set_many", look)
            storage_before = (int.from_bytes(old, "big") + 1).to_bytes(8, "big")
            new = commit(writer, {ROOT_OID: (old, b"new")})
            other.poll()
            assert seen == [old, (b"old", old, new), (b"new", new, None)]


def test_a_reader_loads_what_was_changed_since_it_read_on(tmp_path: Path) -> None:
    """The writer changes the index that a reader beside it has mapped: what the reader has not
    read on to yet does not look like damage, and its own view is loaded as before."""
    path = tmp_path / "data.fs"
    with FileStorage(path) as writer:
        old = commit(writer, {ROOT_OID: (NO_TID, b"old")})
    after_old = (int.from_bytes(old, "big") + 1).to_bytes(8, "big")
    with FileStorage(path) as writer, FileStorage(path, read_only=True) as reader:
        new = commit(writer, {ROOT_OID: (old, b"new")})
        assert reader.lastTransaction() == old
        assert reader.loadBefore(ROOT_OID, after_old) == (b"old", old, new)
        assert reader.loadSerial(ROOT_OID, old) == b"old"
        assert [entry["tid"] for entry in reader.history(ROOT_OID, size=9)] == [new, old]
        reader.poll()
        assert reader.lastTransaction() == new
        assert reader.loadBefore(ROOT_OID, after_old) == (b"old", old, new)
        assert reader.load(ROOT_OID) == (b"new", new)


def test_an_entry_is_read_again_while_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of which one half is old and the other new is not taken for damage."""
    with FileStorage(tmp_path / "data.fs") as storage:
        old = commit(storage, {ROOT_OID: (NO_TID, b"old")})
        first = storage.engine.generation.index.get(ROOT_OID)
        new = commit(storage, {ROOT_OID: (old, b"new")})
        second = storage.engine.generation.index.get(ROOT_OID)
        assert first is not None and second is not None
        seen = iter([(second[0], old), (first[0], new), None])
        engine = storage.engine
        monkeypatch.setattr(engine, "load_current", lambda oid, tid, version: None)
        monkeypatch.setattr(engine.generation.index, "get", lambda oid: next(seen, None) or second)
        assert storage.loadBefore(ROOT_OID, MAX_TID) == (b"new", new, None)
        assert next(seen, "all seen") == "all seen"


def test_an_entry_is_written_in_one_piece(tmp_path: Path) -> None:
    """Neither half of an entry is written by itself, nor zeros before it. (The accelerator does it
    with one `memcpy`, which cannot be watched.)"""

    class Watched(bytearray):
        def __setitem__(self, place: Any, value: Any) -> None:
            written.append((place, bytes(value)))
            super().__setitem__(place, value)

    written: list[tuple[slice, bytes]] = []
    with FileStorage(tmp_path / "data.fs") as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"old")})
        index = storage.engine.generation.index
        entry, page = index.get(ROOT_OID), index.pages[ROOT_OID[:7]]
        mapped, index.map = index.map, Watched(index.map[:])
        index.set_many({ROOT_OID: 77}, tid)
        assert index.get(ROOT_OID) == (77, tid) != entry
        index.map = mapped
    if PageTable.__module__ != "objdb._accelerator":
        assert written == [(slice(page, page + 16, None), (77).to_bytes(8, "big") + tid)]


def test_a_reader_counts_objects(tmp_path: Path) -> None:
    """A reader that follows a writer knows how many objects there are, though the index that
    both have mapped has the new ones already."""
    path = tmp_path / "data.fs"
    objdb.DB(path).close()
    with objdb.DB(path) as db, FileStorage(path, read_only=True) as reader:
        for number in range(3):
            with db.transaction() as connection:
                connection.root()[number] = objdb.PersistentMapping()
            with db.transaction() as connection:
                connection.root()[number]["changed"] = True
            reader.poll()
            assert len(reader) == len(db.storage) == 2 + number
