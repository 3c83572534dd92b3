"""A storage that cannot be written, whatever is under it."""

from __future__ import annotations

from typing import Any, NoReturn

from objdb.errors import ReadOnlyError
from objdb.interfaces import (
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePacked,
    IStoragePolling,
    IStorageSelfCheck,
    IStorageShared,
    IStorageVersions,
)
from objdb.storage.layers.layer import Layer


class ReadOnlyStorage(Layer):
    """Shows *base* and refuses every call that would write, with `ReadOnlyError`.

    It declares neither undo, nor pack, nor that it takes copies. Transactions that others commit
    are seen as far as *base* follows them.
    """

    honours: tuple[Any, ...] = (
        IStorage, IStorageHistory, IStorageIteration, IStorageVersions, IStoragePacked,
        IStorageSelfCheck, IStoragePolling, IStorageShared,
    )

    def isReadOnly(self) -> bool:
        """Return true."""
        return True

    def registerDB(self, db: Any) -> None:
        """Hand *db* to a base that follows other processes and says what they changed. Any other
        has no use for it here."""
        if self.base.isReadOnly() or IStorageShared.providedBy(self.base):
            self.base.registerDB(db)

    def refused(self, *arguments: object, **options: object) -> NoReturn:
        """Raise `ReadOnlyError`."""
        raise ReadOnlyError(
            f"{self.getName()} is shown through a {type(self).__name__}, which writes nothing. "
            "Open the storage under it by itself to change something"
        )

    new_oid = tpc_begin = store = restore = deleteObject = refused
    checkCurrentSerialInTransaction = tpc_vote = tpc_finish = refused
    commitVersion = abortVersion = undo = pack = copyTransactionsFrom = refused

    def tpc_abort(self, transaction: Any) -> None:
        """Do nothing: no transaction has begun."""
