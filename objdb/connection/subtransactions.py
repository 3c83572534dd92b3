"""The historical spelling of transactions, with subtransactions, built on savepoints.

    get_transaction().commit(1)     state leaves memory and can be rolled back; nobody sees it
    get_transaction().abort(1)      back to the last commit(1), or to the beginning
    get_transaction().commit()      everything, for good
"""

from __future__ import annotations

from typing import Any

import transaction

_PARTS = object()  # the key under which a transaction keeps its subtransactions' savepoints


class SubtransactionView:
    """A transaction of the `transaction` package, whose `commit` and `abort` take a flag. All
    else is the transaction's."""

    def __init__(self, txn: Any) -> None:
        self._txn = txn

    def commit(self, subtransaction: bool | int = False) -> None:
        """Commit; with *subtransaction*, only so far that `abort(1)` comes back to here, and that
        what was changed can leave memory.

        Data managers that know no savepoints may be part of it; `abort(1)` then raises
        TypeError, and everything can still be committed or aborted as a whole.
        """
        if subtransaction:
            self._txn.set_data(_PARTS, [*self._parts(), self._txn.savepoint(optimistic=True)])
        else:
            self._txn.commit()

    def abort(self, subtransaction: bool | int = False) -> None:
        """Drop everything; with *subtransaction*, what came after the last `commit(1)`."""
        parts = self._parts() if subtransaction else []
        if parts:
            parts[-1].rollback()
        else:
            self._txn.abort()

    def _parts(self) -> list[Any]:
        """The savepoints of the subtransactions, but for those that an earlier savepoint has
        rolled back."""
        try:
            return [part for part in self._txn.data(_PARTS) if part.valid]
        except KeyError:
            return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_txn":
            super().__setattr__(name, value)
        else:
            setattr(self._txn, name, value)


def get_transaction(transaction_manager: Any = None) -> SubtransactionView:
    """Return the thread's transaction, or that of *transaction_manager*, begun if need be."""
    return SubtransactionView((transaction_manager or transaction.manager).get())
