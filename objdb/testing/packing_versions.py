"""What a pack does to versions: a part of the conformance suite. See `packing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from objdb.ids import NO_TID, Oid, Tid
from objdb.interfaces import IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import current, require, undo
from objdb.testing.packing_model import current_tid, record


class VersionPackConformance:
    """The tests; for `PackConformance`, which has the rest."""

    if TYPE_CHECKING:

        def chain(self, storage: Any) -> tuple[Oid, Oid, Oid, list[Tid]]: ...
        def pack(self, storage: Any, to: Any = None, **options: Any) -> Any: ...

    def test_versions(self, packable: Any) -> None:
        """Of an object in a version stays what is seen there, and what is seen outside; with
        what both refer to. A version whose objects are all garbage goes."""
        require(packable, IStorageVersions)
        a, b, c, tids = self.chain(packable)
        inside, garbage = packable.new_oid(), packable.new_oid()
        transaction = TransactionMetaData()
        packable.tpc_begin(transaction)
        packable.store(garbage, NO_TID, record("garbage"), "idea", transaction)
        packable.tpc_vote(transaction)
        packable.tpc_finish(transaction)
        assert packable.versions() == ["idea"]
        for name in "34":
            transaction = TransactionMetaData()
            packable.tpc_begin(transaction)
            packable.store(a, current_tid(packable, a), record(name, inside), "plan", transaction)
            serial = current_tid(packable, inside)
            packable.store(inside, serial, record("in" + name), "plan", transaction)
            packable.tpc_vote(transaction)
            last_tid = packable.tpc_finish(transaction)
        self.pack(packable)
        assert packable.load(a)[0] == record("a2", b) and packable.load(b)[0] == record("b2")
        assert packable.loadSerial(a, tids[2]) == record("a2", b)
        assert packable.load(a, "plan")[0] == record("4", inside)
        assert packable.load(inside, "plan")[0] == record("in4")
        assert packable.loadBefore(a, last_tid, "plan") is None  # and not what is seen outside
        assert packable.versions() == ["plan"] and packable.modifiedInVersion(a) == "plan"
        assert current(packable, c) is None

    def test_a_version_brought_back(self, packable: Any) -> None:
        """What undoing brings back to a version stays to be found in its old revision too, and
        what is seen outside is what was seen outside of that, also after another pack."""
        require(packable, IStorageVersions)
        a, b, _c, _tids = self.chain(packable)

        def end_version(way: str, *arguments: Any) -> Tid:
            transaction = TransactionMetaData()
            packable.tpc_begin(transaction)
            getattr(packable, way)("plan", *arguments, transaction)
            packable.tpc_vote(transaction)
            tid: Tid = packable.tpc_finish(transaction)
            return tid

        transaction = TransactionMetaData()
        packable.tpc_begin(transaction)
        packable.store(a, current_tid(packable, a), record("plan"), "plan", transaction)
        packable.tpc_vote(transaction)
        inside = packable.tpc_finish(transaction)
        aborted = end_version("abortVersion")
        undo(packable, aborted)
        self.pack(packable, aborted)
        assert packable.loadSerial(a, inside) == record("plan")
        committed = end_version("commitVersion", "")
        assert packable.load(a)[0] == record("plan")
        undone = undo(packable, committed)
        for _ in range(2):
            assert packable.load(a)[0] == record("a2", b)
            assert packable.load(a, "plan") == (record("plan"), undone)
            found = packable.loadBefore(a, undone)
            assert found == (record("plan"), committed, undone)
            self.pack(packable, aborted)
