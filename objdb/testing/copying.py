"""Copying: the part of the conformance suite
about `IStorageRestoreable`. See `conformance`."""

from __future__ import annotations

from typing import Any

import pytest

from objdb.errors import StorageError, UsageError
from objdb.ids import NO_TID, ROOT_OID
from objdb.interfaces import IStorageHistory, IStorageIteration, IStorageRestoreable
from objdb.storage.commit import TransactionMetaData
from objdb.storage.copying import CopyProgress
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import Make, commit, contents, current, require, undo


class Interrupted(Exception):
    """The progress callback interrupts the copy."""


class CopyConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    @pytest.fixture
    def source(self) -> MappingStorage:
        """A storage in memory with transactions of every kind."""
        source = MappingStorage("source")
        first = commit(source, {ROOT_OID: (NO_TID, b"root")}, description="the beginning")
        oids = [source.new_oid() for _ in range(4)]
        tid = commit(
            source, dict.fromkeys(oids, (NO_TID, b"one")), user="\u00e4nna",
            extension={"ticket": [7]},
        )
        second = commit(source, dict.fromkeys(oids[:2], (tid, b"two" * 5000)))
        commit(source, {}, description="empty")
        commit(source, {oids[2]: (tid, None), ROOT_OID: (first, b"again")})
        redone = undo(source, undo(source, second), user="ben")
        undo(source, redone, description="back again")
        packed = TransactionMetaData("", "packed")
        source.tpc_begin(packed, (int.from_bytes(redone, "big") + 2**30).to_bytes(8, "big"), "p")
        source.store(oids[3], tid, b"packed", "", packed)
        source.tpc_vote(packed)
        source.tpc_finish(packed)
        return source

    @pytest.fixture
    def copy(self, make_storage: Make) -> Any:
        """An empty storage."""
        copy = make_storage()
        if not (IStorageRestoreable.providedBy(copy) and IStorageIteration.providedBy(copy)):
            copy.close()
            require(copy, IStorageRestoreable)
            require(copy, IStorageIteration)
        yield copy
        copy.close()

    def test_copy(self, copy: Any, source: MappingStorage) -> None:
        """A copy has the same transactions: tids, texts, extensions, statuses, records,
        tombstones and back pointers."""
        require(copy, IStorageHistory)
        seen: list[CopyProgress] = []
        count = copy.copyTransactionsFrom(source, seen.append)
        assert contents(copy) == contents(source)
        assert (count, len(seen)) == (9, 9)
        revisions = sum(len(transaction[-1]) for transaction in contents(source))
        assert seen[-1] == CopyProgress(9, revisions, source.lastTransaction())
        assert copy.lastTransaction() == source.lastTransaction()
        assert len(copy) == len(source)
        assert copy.new_oid() >= source.new_oid()
        for transaction in contents(source):
            for oid, *_ in transaction[-1]:
                assert current(copy, oid) == current(source, oid)

    def test_copy_goes_on(self, copy: Any, source: MappingStorage) -> None:
        """An interrupted copy is continued; a complete one is brought up to date."""
        require(copy, IStorageHistory)

        def interrupt(progress: CopyProgress) -> None:
            if progress.transactions == 2:
                raise Interrupted

        for _ in range(4):
            with pytest.raises(Interrupted):
                copy.copyTransactionsFrom(source, interrupt)
        assert contents(copy) == contents(source)[:8]
        assert copy.copyTransactionsFrom(source) == 1
        assert copy.copyTransactionsFrom(source) == 0
        commit(source, {source.new_oid(): (NO_TID, b"new")})
        commit(source, {ROOT_OID: (source.getTid(ROOT_OID), b"newer")})
        assert copy.copyTransactionsFrom(source) == 2
        assert contents(copy) == contents(source)

    def test_copy_of_broken_transactions(self, copy: Any, source: MappingStorage) -> None:
        """A source that fails in the middle of a transaction leaves those before it."""
        require(copy, IStorageHistory)

        class Breaking:
            def iterator(self, start: Any = None, stop: Any = None) -> Any:
                for number, transaction in enumerate(source.iterator(start, stop)):
                    yield _Broken(transaction) if number == 3 else transaction

        with pytest.raises(Interrupted):
            copy.copyTransactionsFrom(Breaking())
        assert contents(copy) == contents(source)[:3]
        copy.copyTransactionsFrom(source)
        assert contents(copy) == contents(source)

    def test_copy_to_something_else(self, copy: Any, source: MappingStorage) -> None:
        """A destination with other transactions is refused, and does not change."""
        commit(copy, {ROOT_OID: (NO_TID, b"another root")})
        before = contents(copy)
        with pytest.raises(StorageError, match="does not have"):
            copy.copyTransactionsFrom(source)
        assert contents(copy) == before
        with pytest.raises(UsageError, match="itself"):
            copy.copyTransactionsFrom(copy)

    def test_copy_of_a_fork(self, copy: Any, source: MappingStorage) -> None:
        """So is one whose last transaction has the tid of one of the source, and another
        content."""
        copy.copyTransactionsFrom(source)
        tid = (int.from_bytes(source.lastTransaction(), "big") + 2**20).to_bytes(8, "big")
        for storage, record in ((source, b"one way"), (copy, b"another way")):
            transaction = TransactionMetaData()
            storage.tpc_begin(transaction, tid)
            storage.restore(ROOT_OID, tid, record, "", None, transaction)
            storage.tpc_vote(transaction)
            storage.tpc_finish(transaction)
        with pytest.raises(StorageError, match="another content"):
            copy.copyTransactionsFrom(source)

    def test_copy_lives(self, copy: Any, source: MappingStorage) -> None:
        """A copy can be committed to; and copied back to another storage."""
        require(copy, IStorageHistory)
        copy.copyTransactionsFrom(source)
        commit(copy, {ROOT_OID: (copy.getTid(ROOT_OID), b"changed in the copy")})
        with MappingStorage() as back:
            back.copyTransactionsFrom(copy)
            assert contents(back) == contents(copy)

    def test_restore_repeats_what_is_there(self, copy: Any) -> None:
        """restore keeps the data given, if the target of the back pointer has other data, or is
        missing."""
        require(copy, IStorageHistory)
        tids = [(2**56 + n).to_bytes(8, "big") for n in range(4)]
        for tid, record, repeated in (
            (tids[0], b"one", None), (tids[1], b"two", tids[0]), (tids[2], b"one", tids[0]),
            (tids[3], b"three", b"\0" * 7 + b"\1"),
        ):
            transaction = TransactionMetaData()
            copy.tpc_begin(transaction, tid)
            copy.restore(ROOT_OID, tid, record, "", repeated, transaction)
            copy.tpc_vote(transaction)
            copy.tpc_finish(transaction)
        found = [revision for transaction in contents(copy) for revision in transaction[-1]]
        assert [(record, repeats) for _, _, record, repeats, _ in found] == [
            (b"one", None), (b"two", None), (b"one", tids[0]), (b"three", None),
        ]


class _Broken:
    """A transaction that cannot be read to its end."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __iter__(self) -> Any:
        yield from self._transaction
        raise Interrupted
