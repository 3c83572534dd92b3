"""Layers over layers, with databases over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
from zope.interface import providedBy
from zope.interface.verify import verifyObject

import objdb
from objdb import (
    BeforeStorage,
    CompressedStorage,
    DemoStorage,
    EncryptedStorage,
    FileStorage,
    LoggedStorage,
    MappingStorage,
    ReadOnlyStorage,
)
from objdb.check import check
from objdb.errors import CorruptedDataError, NotEncryptedError
from objdb.ids import ROOT_OID, next_tid
from objdb.testing.helpers import contents
from tests.storage.layers.helpers import Note, fill, texts

KEY = bytes(range(32))
Stack = Callable[[Any], Any]


def quiet(line: str) -> None:
    """Listen to nothing."""


STACKS: dict[str, Stack] = {
    "compressed over encrypted": lambda base: CompressedStorage(EncryptedStorage(base, KEY)),
    "encrypted over compressed": lambda base: EncryptedStorage(
        CompressedStorage(base, "zstd"), KEY
    ),
    "compressed twice": lambda base: CompressedStorage(CompressedStorage(base, "zstd")),
    "encrypted twice": lambda base: EncryptedStorage(EncryptedStorage(base, KEY), KEY[::-1]),
    "logged everywhere": lambda base: LoggedStorage(
        CompressedStorage(LoggedStorage(EncryptedStorage(base, KEY), quiet)), quiet
    ),
    "changes over encrypted": lambda base: DemoStorage(
        MappingStorage(), EncryptedStorage(base, KEY)
    ),
    "compressed over changes": lambda base: CompressedStorage(
        DemoStorage(MappingStorage(), base), "zstd"
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_database_over_a_stack(tmp_path: Path, name: str) -> None:
    """Objects, conflicts, undo, versions, packs and reopening, whatever is over what."""
    path = tmp_path / "data.fs"
    with objdb.DB(STACKS[name](FileStorage(path))) as db:
        with db.transaction("first") as connection:
            connection.root()["long"] = Note("first words " * 100)
            connection.root()["length"] = objdb.PersistentMapping(count=0)
        with db.transaction("second") as connection:
            connection.root()["long"].text = "second words " * 100
        db.undo(db.undoLog(0, 1)[0]["id"])
        transaction.commit()
        with db.transaction(version="plan") as connection:
            connection.root()["long"].text = "planned words " * 100
        managers = [transaction.TransactionManager() for _ in range(2)]
        one, two = (db.open(transaction_manager=manager) for manager in managers)
        one.root()["length"]["count"] = 1
        two.root()["length"]["count"] = 2
        managers[0].commit()
        with pytest.raises(objdb.ConflictError) as caught:
            managers[1].commit()
        assert caught.value.explain() == {"data": ({"count": 0}, {"count": 1}, {"count": 2})}
        managers[1].abort()
        db.pack()
        assert check(db.storage).problems == []
    with objdb.DB(STACKS[name](FileStorage(path))) as db:
        assert db.open().root()["long"].text == "first words " * 100
        assert db.open(version="plan").root()["long"].text == "planned words " * 100
        assert db.versions() == ["plan"]
        assert check(db.storage).problems == []


def test_a_dictionary_under_encryption(tmp_path: Path) -> None:
    """A dictionary is a record like others to the layers below: encrypted, packed, found again."""
    def opened() -> CompressedStorage:
        return CompressedStorage(EncryptedStorage(FileStorage(tmp_path / "data.fs"), KEY), "zstd")

    storage = opened()
    fill(storage, 300)
    dictionary = storage.train_dictionary(size=2048)
    assert storage.rewrite() > 250
    assert storage.base.base.load(dictionary)[0].startswith(b".e")
    with objdb.DB(storage) as db:
        db.pack()
    storage = opened()
    assert len(texts(storage)) == 300
    assert storage.base.load(dictionary)[0].startswith(b".d")
    storage.close()


def test_the_past_and_changes(tmp_path: Path) -> None:
    """Going another way from a moment in the past of an encrypted file."""
    path = tmp_path / "data.fs"
    storage = EncryptedStorage(FileStorage(path), KEY)
    fill(storage)
    moment = storage.lastTransaction()
    with objdb.DB(storage) as db, db.transaction() as connection:
        connection.root().clear()
    reading = EncryptedStorage(FileStorage(path, read_only=True), KEY)
    past = BeforeStorage(reading, next_tid(moment))
    with objdb.DB(DemoStorage(past)) as db:
        connection = db.open()
        assert len(connection.root()) == 40
        connection.root()["other"] = Note("way")
        transaction.commit()
        assert len(contents(db.storage)) == 3
        assert check(db.storage).problems == []


def test_read_only_over_layers() -> None:
    """Looking at compressed and encrypted records takes their layers, and nothing else does."""
    base = MappingStorage()
    fill(CompressedStorage(EncryptedStorage(base, KEY)))
    shown = ReadOnlyStorage(CompressedStorage(EncryptedStorage(base, KEY)))
    assert len(texts(shown)) == 40
    with pytest.raises(CorruptedDataError):
        CompressedStorage(base).load(ROOT_OID)
    with pytest.raises(NotEncryptedError):
        EncryptedStorage(CompressedStorage(EncryptedStorage(base, KEY)), KEY)


@pytest.mark.parametrize("name", ["compressed", "dictionary", "encrypted"])
def test_packing_without_the_layers(tmp_path: Path, name: str) -> None:
    """A pack that does not have the layers, and so cannot see what refers to what, is refused, and
    nothing is lost."""
    base = FileStorage(tmp_path / "data.fs")
    layer: Any = EncryptedStorage(base, KEY) if name == "encrypted" else CompressedStorage(
        base, "zstd"
    )
    fill(layer, 300)
    if name == "dictionary":
        layer.train_dictionary(size=1024)
    before = contents(base)
    with pytest.raises(CorruptedDataError):
        objdb.DB(base).pack()
    assert contents(base) == before
    layer.close()


@pytest.mark.parametrize("name", STACKS)
def test_stacks_declare_what_they_do(name: str) -> None:
    """A layer has every method of the interfaces it declares, with its signature."""
    storage = STACKS[name](MappingStorage())
    declared = list(providedBy(storage))
    # A DemoStorage lists no single objects.
    assert len(declared) == (9 if "changes" in name else 10)
    for interface in declared:
        verifyObject(interface, storage)
