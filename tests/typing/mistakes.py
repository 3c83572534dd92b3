"""Mistakes that a type checker finds: each line that has one says which. See `test_typing`."""

from __future__ import annotations

import objdb
from objdb import PersistentList, PersistentMapping
from objdb.btrees import IOBTree, OOBTree


def mistakes(db: objdb.DB) -> None:
    """Do it wrong."""
    objdb.DB(isolation="snapshots")  # wrong: isolation
    objdb.FileStorage("a.fs", durability="never")  # wrong: durability
    numbers: PersistentList[int] = PersistentList()
    numbers.append("one")  # wrong: item
    names: PersistentMapping[str, int] = PersistentMapping()
    names[1] = 1  # wrong: key
    tree: OOBTree[str, int] = OOBTree()
    tree["a"] = "b"  # wrong: value
    by_number: IOBTree[str] = IOBTree()
    by_number["a"] = "b"  # wrong: number
    db.run(lambda connection: 1, tries="5")  # wrong: tries
