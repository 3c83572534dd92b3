"""What readers of a file see while a transaction is being published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from objdb.ids import MAX_TID, NO_TID, ROOT_OID
from objdb.storage.file.index import Index
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
                if index is storage._index:
                    seen.append(storage.lastTransaction())
                    seen.append(storage.loadBefore(ROOT_OID, storage_before))
                    seen.append(storage.loadBefore(ROOT_OID, MAX_TID))

            monkeypatch.setattr(Index, "set_many", look)
            storage_before = (int.from_bytes(old, "big") + 1).to_bytes(8, "big")
            new = commit(writer, {ROOT_OID: (old, b"new")})
            other.poll()
            assert seen == [old, (b"old", old, new), (b"new", new, None)]
