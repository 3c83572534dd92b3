"""Old revisions: the part of the conformance suite
about `IStorageHistory` and `IStorageIteration`. See `conformance`."""

from __future__ import annotations

from typing import Any

import pytest

from objdb.errors import POSKeyError
from objdb.ids import NO_TID, next_tid
from objdb.interfaces import IStorageHistory, IStorageIteration
from objdb.testing.helpers import commit, require


class HistoryConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""


    def test_history(self, storage: Any) -> None:
        """history lists revisions, newest first, with what their transactions say."""
        require(storage, IStorageHistory)
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"1")}, user="anna", description="début")
        second = commit(storage, {oid: (first, b"22")}, extension={"ticket": 7})
        newest, oldest = storage.history(oid, 9)
        assert (newest["tid"], newest["size"], newest["ticket"]) == (second, 2, 7)
        assert (oldest["user_name"], oldest["description"]) == ("anna", "début")
        assert len(storage.history(oid)) == 1
        with pytest.raises(POSKeyError):
            storage.history(b"\0\0\0\0\0\xbb\xbb\xbb")

    def test_iterator(self, storage: Any) -> None:
        """iterator lists transactions oldest first, within bounds, with their records."""
        require(storage, IStorageIteration)
        require(storage, IStorageHistory)
        oid = storage.new_oid()
        first = commit(storage, {oid: (NO_TID, b"1")}, user="u", description="d")
        second = commit(storage, {oid: (first, b"2")}, extension={"a": [1]})
        third = commit(storage, {oid: (second, None)})
        seen = list(storage.iterator())
        assert [t.tid for t in seen[1:]] == [first, second, third]
        assert (seen[1].user, seen[1].description, seen[2].extension) == (b"u", b"d", {"a": [1]})
        assert [(r.oid, r.tid, r.data) for t in seen[1:] for r in t] == [
            (oid, first, b"1"), (oid, second, b"2"), (oid, third, None),
        ]
        assert [t.tid for t in storage.iterator(second)] == [second, third]
        assert [t.tid for t in storage.iterator(first, second)] == [first, second]
        assert list(storage.iterator(next_tid(third))) == []
