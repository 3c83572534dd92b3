"""MappingStorage, looked at in the middle of a commit."""

from __future__ import annotations

from typing import Any

import pytest

import objdb
from objdb.ids import ROOT_OID, Oid, oid_from_int


def test_in_the_middle_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread sees of a commit that is under way is the state before it: in the
    history of an object, and in the size."""
    db = objdb.DB()
    storage: Any = db.storage
    seen: list[Any] = []

    def look(oid: Oid) -> None:
        seen.append([entry["description"] for entry in storage.history(ROOT_OID, 9)])
        with pytest.raises(objdb.POSKeyError):
            storage.history(oid_from_int(1))
        assert storage.getSize() > 0

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_note_oid", look)
        with db.transaction(note="the second") as connection:
            connection.root()["new"] = objdb.PersistentMapping()
    assert seen == [["initial database creation"]] * 2
    assert storage.history(ROOT_OID)[0]["description"] == "the second"
    assert len(storage.history(oid_from_int(1))) == 1
    db.close()


@pytest.mark.parametrize("data", [5, [], "text"])
def test_data_that_are_no_mapping(data: Any) -> None:
    """They are refused by what they are."""
    with pytest.raises(objdb.UsageError, match="a mapping of bytes to bytes"):
        objdb.MappingStorage(data=data)
