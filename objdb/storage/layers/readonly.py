"""A read-only layer over any storage."""

from __future__ import annotations

from typing import Any, NoReturn

from objdb.errors import ReadOnlyError
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePacked,
    IStoragePolling,
    IStoragePrefetch,
    IStorageSelfCheck,
    IStorageShared,
    IStorageSync,
    IStorageVersions,
)
from objdb.storage.layers.layer import Layer


class ReadOnlyStorage(Layer):
    """Shows *base* and refuses every call that would write, with `ReadOnlyError`.

    It declares neither undo, nor pack, nor copying to it. Transactions of others are visible as
    far as *base* follows them.
    """

    honours: tuple[Any, ...] = (
        IStorage, IStorageHistory, IStorageIteration, IStorageVersions, IStoragePacked,
        IStorageSelfCheck, IStoragePolling, IStorageShared, IStorageSync, IStoragePrefetch,
    )

    def isReadOnly(self) -> bool:
        """Return true."""
        return True

    def registerDB(self, db: Any) -> None:
        """Register *db* with a base that follows other processes and sends their invalidations.
        Other bases do not need it here."""
        if self.base.isReadOnly() or IStorageShared.providedBy(self.base):
            self.base.registerDB(db)

    def refused(self, *arguments: object, **options: object) -> NoReturn:
        """Raise `ReadOnlyError`."""
        raise ReadOnlyError(
            f"{self.getName()} is open through a {type(self).__name__}, which is read-only. Open "
            "the storage under it directly to change it"
        )

    new_oid = tpc_begin = store = restore = deleteObject = refused
    checkCurrentSerialInTransaction = tpc_vote = tpc_finish = refused
    commitVersion = abortVersion = undo = pack = copyTransactionsFrom = refused

    def tpc_abort(self, transaction: Any) -> None:
        """Do nothing: no transaction has begun."""
