"""Bulk loads: many objects by a few messages, for `Connection.prefetch`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from BTrees.OOBTree import OOBTree

import objdb
from objdb.ids import MAX_TID, ROOT_OID
from objdb_zeo import ClientStorage
from objdb_zeo.protocol import extension
from tests.zeo.serving import Serving

COUNT = 300


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A server of a tree of objects."""
    with Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving:
        layer = objdb.CompressedStorage(ClientStorage(serving.address))
        with objdb.DB(layer) as db, db.transaction() as connection:
            tree = connection.root()["tree"] = OOBTree()
            for number in range(COUNT):
                tree[f"{number:05}"] = objdb.PersistentMapping(n=number, text="x" * 200)
        yield serving


@pytest.mark.parametrize("is_awaited", [False, True])
def test_prefetch(serving: Serving, sent: list[str], is_awaited: bool) -> None:
    """Prefetching a tree and what is in it takes some messages; then nothing is asked for. Also
    through a layer."""
    storage = objdb.CompressedStorage(ClientStorage(serving.address))
    with objdb.DB(storage) as db, db.transaction() as connection:
        tree = connection.root()["tree"]
        sent.clear()
        if is_awaited:
            async def load() -> int:
                count: int = await connection.prefetch(tree, depth=1)
                return count

            assert asyncio.run(load()) > COUNT
        else:
            connection.prefetch(tree, depth=1)
        assert sent.count("objdb.load") < COUNT / 20 and sent.count("loadBefore") < 5
        sent.clear()
        assert sum(each["n"] for each in tree.values()) == sum(range(COUNT))
        assert sent == []


def test_much_comes_in_part(
    serving: Serving, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be too much for a message is left out, and loaded when it is read."""
    monkeypatch.setattr(extension, "_LOADED_BYTES", 100)
    with objdb.DB(objdb.CompressedStorage(ClientStorage(serving.address))) as db:
        connection = db.open()
        tree = connection.root()["tree"]
        connection.prefetch(tree, depth=1)
        assert sum(each["n"] for each in tree.values()) == sum(range(COUNT))
        assert sent.count("loadBefore") > COUNT / 2
        connection.close()


def test_objects_that_there_are_not(serving: Serving) -> None:
    """Prefetching an object that there is not raises nothing: reading it does."""
    with ClientStorage(serving.address) as storage:
        storage.prefetch([ROOT_OID, b"\0\0\0\0\0\0\xff\xff"], MAX_TID)
        assert storage.load(ROOT_OID)[1] <= storage.lastTransaction()
        with pytest.raises(objdb.errors.POSKeyError):
            storage.load(b"\0\0\0\0\0\0\xff\xff")
