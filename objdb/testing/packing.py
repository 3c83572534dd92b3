"""Packing: the part of the conformance suite about
`IStoragePackable`. See `conformance`.

A record here is a name and the oids that it refers to: `b"name->" + oid + oid`.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from objdb.errors import (
    ConflictError,
    PackError,
    POSKeyError,
    StorageClosedError,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid, next_tid, time_from_tid
from objdb.interfaces import (
    IStorageHistory,
    IStoragePackable,
    IStorageRestoreable,
    IStorageSelfCheck,
)
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import commit, contents, current, require
from objdb.testing.packing_model import (
    pack_at_random,
    record,
    refer,
)


def oids_in(storage: Any) -> list[list[Oid]]:
    """Return the oids of each transaction."""
    return [[revision[0] for revision in entry[5]] for entry in contents(storage)]


class PackConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    @pytest.fixture
    def packable(self, storage: Any) -> Any:
        """A storage with a root record that can be packed; its structure is checked after the
        test."""
        require(storage, IStoragePackable)
        yield storage
        with suppress(StorageClosedError):
            assert not IStorageSelfCheck.providedBy(storage) or storage.self_check() == []

    def chain(self, storage: Any) -> tuple[Oid, Oid, Oid, list[Tid]]:
        """Make root → a → b, and c, large, which nothing refers to; change a and b twice."""
        a, b, c = (storage.new_oid() for _ in range(3))
        tids = [commit(storage, {
            ROOT_OID: (storage.getTid(ROOT_OID), record("root", a)), a: (NO_TID, record("a0", b)),
            b: (NO_TID, record("b0")), c: (NO_TID, record("c" * 20_000)),
        }, user="me", extension={"key": "value"})]
        for name in "12":
            tids.append(commit(storage, {
                a: (tids[-1], record("a" + name, b)), b: (tids[-1], record("b" + name)),
            }, description=name))
        return a, b, c, tids

    def pack(self, storage: Any, to: Any = None, **options: Any) -> Any:
        """Pack to a moment, by default the last transaction."""
        return storage.pack(storage.lastTransaction() if to is None else to, refer, **options)

    # -- what stays

    def test_dry_run(self, packable: Any) -> None:
        """A dry run changes nothing, and says how many objects would stay."""
        _, _, _, tids = self.chain(packable)
        before = contents(packable)
        for moment in tids:
            for collects in (False, True):
                planned = self.pack(packable, moment, gc=collects, dry_run=True)
                assert contents(packable) == before
        done = self.pack(packable)
        assert planned.objects_after == done.objects_after == len(packable)
        assert planned.size_before == done.size_before > planned.size_after

    def test_to_a_time(self, packable: Any) -> None:
        """Seconds since 1970 mean what was committed up to then."""
        a, b, _c, tids = self.chain(packable)
        self.pack(packable, time_from_tid(tids[2]))
        assert oids_in(packable) == [[ROOT_OID], [a, b]]

    @pytest.mark.parametrize("moment", ["now", None, b"short", True, [], float("nan")])
    def test_no_moment(self, packable: Any, moment: Any) -> None:
        """A value that is not a moment is refused."""
        with pytest.raises(UsageError):
            packable.pack(moment, refer)

    def test_the_future(self, packable: Any) -> None:
        """A moment to come is now, as for a clock that is not quite right."""
        for moment in (time.time() + 1000, b"\x7f" + bytes(7)):
            oid = packable.new_oid()
            tid = commit(packable, {oid: (NO_TID, record("one"))})
            commit(packable, {oid: (tid, record("two"))})
            packable.pack(moment, refer, gc=False)
            assert packable.load(oid)[0] == record("two")
            assert packable.loadBefore(oid, next_tid(tid)) is None

    def test_dangling_and_garbage(self, packable: Any) -> None:
        """Where an object is missing, none is dropped as garbage: the missing one may have led to
        it. Without collecting, old revisions go."""
        missing, garbage = packable.new_oid(), packable.new_oid()
        tid = commit(packable, {garbage: (NO_TID, record("garbage"))})
        tid = commit(packable, {ROOT_OID: (packable.getTid(ROOT_OID), record("root", missing))})
        commit(packable, {ROOT_OID: (tid, record("root", missing))})
        before = contents(packable)
        for dry_run in (True, False):
            with pytest.raises(PackError, match=format_oid(missing)):
                packable.pack(packable.lastTransaction(), refer, dry_run=dry_run)
        assert contents(packable) == before
        packable.pack(packable.lastTransaction(), refer, gc=False)
        assert packable.load(garbage)[0] == record("garbage")
        assert len(packable) == 2

    # -- what is linked again

    def test_roots_from_elsewhere(self, packable: Any) -> None:
        """Objects that `roots` returns stay, with those that they refer to."""
        _a, b, c, _ = self.chain(packable)
        commit(packable, {c: (packable.getTid(c), record("c", b))})
        self.pack(packable, roots=lambda: [c])
        assert current(packable, c) is not None

    # -- undoing

    def test_restore_across_a_pack(self, packable: Any) -> None:
        """A copied revision keeps its data, when a pack removes the target of its back pointer."""
        require(packable, IStorageRestoreable)
        a, b, _c, tids = self.chain(packable)
        transaction = TransactionMetaData()
        packable.tpc_begin(transaction, next_tid(tids[2]))
        packable.restore(a, next_tid(tids[2]), record("a0", b), "", tids[0], transaction)
        packable.restore(b, next_tid(tids[2]), record("b2"), "", tids[2], transaction)
        self.pack(packable)
        packable.tpc_vote(transaction)
        packable.tpc_finish(transaction)
        assert packable.load(a)[0] == record("a0", b) and packable.load(b)[0] == record("b2")

    # -- what others do meanwhile

    def test_commits_meanwhile(self, packable: Any) -> None:
        """Transactions committed beside a pack are there after it."""
        a, b, _c, _tids = self.chain(packable)
        new: list[Oid] = []

        def work(phase: str, done: int, total: int) -> None:
            if len(new) < 3:
                new.append(packable.new_oid())
                commit(packable, {
                    a: (packable.getTid(a), record("new", b, *new)), new[-1]: (NO_TID, b"new"),
                })

        self.pack(packable, progress=work)
        assert new and all(current(packable, oid) == b"new" for oid in new)
        assert packable.load(a)[0] == record("new", b, *new)
        assert packable.new_oid() not in new

    def test_linked_again_meanwhile(self, packable: Any) -> None:
        """So is an object that nothing led to, and that was linked while the pack was under
        way; time and again."""
        _a, b, c, _tids = self.chain(packable)
        lost = [c]
        for number in range(6):
            oid = packable.new_oid()
            commit(packable, {oid: (NO_TID, record(f"lost {number}"))})
            lost.append(oid)
        linked: list[Oid] = []

        def work(phase: str, done: int, total: int) -> None:
            if phase == "copy" and lost and done == total:
                linked.append(lost.pop())
                commit(packable, {b: (packable.getTid(b), record("b", *linked))})

        self.pack(packable, progress=work)
        assert linked and all(current(packable, oid) for oid in linked)
        assert packable.load(b)[0] == record("b", *linked)

    def test_one_at_a_time(self, packable: Any) -> None:
        """A second pack at the same time is refused."""
        self.chain(packable)
        errors: list[Exception] = []

        def again(phase: str, done: int, total: int) -> None:
            if not errors:
                with pytest.raises(PackError) as caught:
                    self.pack(packable)
                errors.append(caught.value)

        self.pack(packable, progress=again)
        assert errors
        self.pack(packable)

    def test_cancelled(self, packable: Any) -> None:
        """What the progress callback raises ends the pack, at whatever call, with everything as
        it was."""
        self.chain(packable)
        before, calls = contents(packable), 0

        last = 0

        def stop(phase: str, done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt

        for call in range(1, 9):
            last, calls = call, 0
            try:
                self.pack(packable, progress=stop)
                break
            except KeyboardInterrupt:
                assert contents(packable) == before
        assert last > 1

    def test_an_iterator_goes_on(self, packable: Any) -> None:
        """An iterator that was begun before a pack shows what was there."""
        self.chain(packable)
        before = contents(packable)
        iterator = packable.iterator()
        shown = [next(iterator)]
        self.pack(packable)
        shown += iterator
        assert [(each.tid, [(r.oid, r.data) for r in each]) for each in shown] == [
            (entry[0], [(oid, data) for oid, _, data, _, _ in entry[5]]) for entry in before
        ]

    def test_readers_meanwhile(self, packable: Any) -> None:
        """Threads that read while packs are under way always see the objects as they are."""
        a, b, _c, tids = self.chain(packable)
        is_over, seen = threading.Event(), set()

        def read() -> None:
            while not is_over.is_set():
                seen.add((packable.load(a)[0], packable.loadBefore(b, next_tid(tids[2]))[0]))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            self.pack(packable)
        is_over.set()
        for thread in threads:
            thread.join()
        assert seen <= {(record("a2", b), record("b2"))}

    # -- what is gone

    def test_asked_for_again(self, packable: Any) -> None:
        """No call finds a revision that a pack has removed."""
        a, _b, c, tids = self.chain(packable)
        self.pack(packable)
        assert packable.loadBefore(a, tids[1]) is None
        for oid, tid in ((a, tids[0]), (a, tids[1]), (c, tids[0])):
            with pytest.raises(POSKeyError):
                packable.loadSerial(oid, tid)
        with pytest.raises(POSKeyError):
            packable.loadBefore(c, tids[1])
        if IStorageHistory.providedBy(packable):
            assert [entry["tid"] for entry in packable.history(a, 9)] == [tids[2]]
            with pytest.raises(POSKeyError):
                packable.history(c)
        with pytest.raises(ConflictError):
            commit(packable, {c: (tids[0], record("c1"))})

    def test_packed_by_another_thread(self, packable: Any) -> None:
        """A thread that has read before a pack of another thread reads what is there after it."""
        a, _b, c, tids = self.chain(packable)
        assert packable.load(c) and packable.loadBefore(a, tids[1]) and len(packable) == 4
        thread = threading.Thread(target=self.pack, args=(packable,))
        thread.start()
        thread.join()
        assert current(packable, c) is None and len(packable) == 3
        assert packable.loadBefore(a, tids[1]) is None

    def test_oids_are_not_used_again(self, packable: Any) -> None:
        """The oids of objects that went, and those handed out, are not handed out again."""
        _a, _b, c, _ = self.chain(packable)
        handed_out = packable.new_oid()
        self.pack(packable)
        assert packable.new_oid() > handed_out > c

    def test_reopened(self, packable: Any, make_storage: Any) -> None:
        """A packed storage is the same when it is opened again."""
        if not self.persistent:  # type: ignore[attr-defined]
            return
        self.chain(packable)
        self.pack(packable)
        before = contents(packable)
        packable.close()
        with make_storage() as again:
            assert contents(again) == before
            assert len(again) == 3
            self.chain(again)

    # -- at random

    @pytest.mark.parametrize("seed", range(4))
    def test_random(self, packable: Any, seed: int) -> None:
        """After a random history, a pack to any moment leaves what a calculation of its own
        says; what is seen from then on is what was seen, and so is what undoing would do."""
        require(packable, IStorageHistory)
        pack_at_random(packable, random.Random(seed))
