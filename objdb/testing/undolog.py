"""The undo log: the part of the conformance suite
about `undoLog` and `undoInfo`. See `conformance`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from objdb.errors import UsageError
from objdb.ids import NO_TID
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit


class UndoLogConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    def test_undo_log(self, undoable: Any) -> None:
        """Entries, newest first, say what their transactions say, and the size."""
        oid = undoable.new_oid()
        commit(undoable, {oid: (NO_TID, b"1" * 100)}, user="änna", description="début",
               extension={"ticket": 7, "time": "no", "id": "none"})
        commit(undoable, {}, user=b"\xff")
        empty, full = undoable.undoLog(0, -2)
        assert set(empty) == {"id", "time", "user_name", "description", "size"}
        assert (full["user_name"], full["description"], full["ticket"]) == ("änna", "début", 7)
        assert full["size"] - empty["size"] >= 100
        assert isinstance(full["time"], float) and full["id"] != "none"
        assert empty["time"] >= full["time"]

    def test_undo_log_by_position(self, undoable: Any) -> None:
        """Integers are positions from the newest, the end excluded; a negative one is a number."""
        for i in range(30):
            commit(undoable, {}, description=str(i))

        def listed(*span: Any) -> list[int]:
            return [int(entry["description"]) for entry in undoable.undoLog(*span)]

        assert listed(0, 3) == [29, 28, 27]
        assert listed(2, 4) == [27, 26]
        assert listed(2, -3) == [27, 26, 25]
        assert listed(4, 4) == listed(4, 2) == listed(100, 200) == []
        assert listed() == list(range(29, 9, -1))
        assert len(undoable.undoLog(0, -1000)) == 31
        with pytest.raises(UsageError):
            undoable.undoLog(-1, 3)

    def test_undo_log_by_time(self, undoable: Any) -> None:
        """Floats and datetimes are times, both ends included."""
        base = int.from_bytes(undoable.lastTransaction(), "big")
        for i in range(1, 20):  # a second apart
            transaction = TransactionMetaData(description=str(i))
            tid = (base + i * 2**32 // 60).to_bytes(8, "big")
            undoable.tpc_begin(transaction, tid)
            undoable.tpc_vote(transaction)
            undoable.tpc_finish(transaction)
        entries = {e["description"]: e["time"] for e in undoable.undoLog(0, -19)}

        def listed(*span: Any) -> list[int]:
            return [int(entry["description"]) for entry in undoable.undoLog(*span)]

        start, stop = entries["5"], entries["8"]
        assert listed(start, stop) == [8, 7, 6, 5]
        assert listed(start + 0.1, stop - 0.1) == [7, 6]
        assert listed(start, start) == [5]
        assert listed(stop, start) == []
        moments = [datetime.fromtimestamp(time, timezone.utc) for time in (start, stop)]
        assert listed(*moments) == [8, 7, 6, 5]
        assert listed(entries["17"], -2) == [19, 18]
        assert listed(entries["18"], 1e18) == [19, 18]
        assert len(undoable.undoLog(0, stop)) == 9
        assert undoable.undoLog(0.0, -1e9) == []
        for wrong in ((3, stop), (start, 3), (start, float("nan")), (True, 3), ("0", 3),
                      (datetime(2026, 1, 1), stop)):
            with pytest.raises(UsageError):
                undoable.undoLog(*wrong)

    def test_undo_log_filter(self, undoable: Any) -> None:
        """A filter chooses entries before positions are counted; undoInfo takes what they have to
        be equal to."""
        for i in range(12):
            commit(undoable, {}, user="anna" if i % 2 else "ben", description=str(i),
                   extension={"kind": i % 3})
        annas = undoable.undoLog(1, 3, lambda entry: entry["user_name"] == "anna")
        assert [entry["description"] for entry in annas] == ["9", "7"]
        found = undoable.undoInfo(0, -20, {"user_name": "anna", "kind": 0})
        assert [entry["description"] for entry in found] == ["9", "3"]
        assert undoable.undoInfo(0, -20, {"nothing": None}) == []
        assert undoable.undoInfo(0, -3) == undoable.undoLog(0, -3)
