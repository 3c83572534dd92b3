"""The transactions that attempts make: those of the package `transaction`, which format the stack
of every commit that fails, whether a program looks at it or not. That took four fifths of the time
of a conflict. These keep the error, and format it when they are asked."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import transaction
from transaction._transaction import Status, Transaction


class Failure:
    """Why a transaction can only be aborted; `getvalue` formats it."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def getvalue(self) -> str:
        """Return the error with its traceback."""
        error = self._error
        return "" if error is None else "".join(traceback.format_exception(error))


class AttemptTransaction(Transaction):
    """One transaction."""

    _failure_traceback: Any

    def _saveAndGetCommitishError(self) -> Any:
        self.status = Status.COMMITFAILED
        found = sys.exc_info()
        self._failure_traceback = Failure(found[1])
        return found

    def _free(self) -> None:
        super()._free()
        self._failure_traceback = None  # with the frames of who committed


class AttemptTransactions(transaction.TransactionManager):
    """The manager of an attempt, whose transactions are begun explicitly."""

    _txn: Any

    def __init__(self) -> None:
        super().__init__(explicit=True)

    def begin(self) -> AttemptTransaction:
        """Begin a transaction; `AlreadyInTransaction` in one."""
        if self._txn is not None:
            raise transaction.interfaces.AlreadyInTransaction
        txn = self._txn = AttemptTransaction(self._synchs, self)
        self._synchs.map(lambda synch: synch.newTransaction(txn))
        return txn


class OneTransaction:
    """A transaction manager that knows one transaction, that another one began."""

    explicit = True

    def __init__(self, txn: Any) -> None:
        self._txn = txn

    def get(self) -> Any:
        """Return the transaction."""
        return self._txn

    def abort(self) -> None:
        """Abort the transaction."""
        self._txn.abort()

    def registerSynch(self, synch: Any) -> None:
        """Do nothing: the hooks of the transaction notify of its end."""

    unregisterSynch = registerSynch
