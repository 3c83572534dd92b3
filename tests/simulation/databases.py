"""Clients of the simulation that are real databases: `objdb.DB` on the real `ClientStorage`."""

from __future__ import annotations

import io
import pickle
from typing import Any

import transaction
from greenlet import GreenletExit
from persistent import Persistent

import objdb
from objdb.errors import ConflictError, StorageError
from objdb_zeo.errors import CommitInDoubtError
from objdb_zeo.transport import DisconnectedError
from tests.simulation.clients import Job, Process, require_link_error
from tests.simulation.model import require, short

ACCOUNTS, BALANCE = 3, 100
DATABASE_KINDS = {"pay": 4, "sum_up": 3, "open_account": 1}


class Account(Persistent):
    """An object with a value."""

    def __init__(self, value: int) -> None:
        self.value = value


def value_in(record: bytes) -> int:
    """Return the value in the record of an account: its second pickle is its state."""
    file = io.BytesIO(record)
    pickle.Unpickler(file).load()
    value: int = pickle.Unpickler(file).load()["value"]
    return value


def make_accounts(storage: Any) -> None:
    """Make the first accounts, in a storage that is empty."""
    db = objdb.DB(storage)
    with db.transaction(note="accounts") as connection:
        for number in range(ACCOUNTS):
            connection.root()[f"account {number}"] = Account(BALANCE)


class DatabaseProcess(Process):
    """A process with a database, and one thread."""

    def _main(self) -> None:
        while any(self.jobs):
            self._open()
            DatabaseWorker(self, self.jobs[0]).run()
            if self.must_reopen:
                self.close()

    def _open(self) -> None:
        while self.storage is None:
            super()._open()
            try:
                self.db = objdb.DB(self.storage)
                self.world.databases.append(self.db)
            except StorageError as error:
                require_link_error(error)
                self.storage.close()
                self.storage = None

    def close(self) -> None:
        """Close the database."""
        self.db.close()
        self.storage = None

    def judge(self) -> None:
        """Look at everything, at the end."""
        self.reach()
        self.jobs = [[Job("sum_up", 0)]]
        self._main()
        require(
            self.storage.lastTransaction() == self.world.lineage.last, "all is told in the end",
            f"{self.name} is at another transaction",
        )


class DatabaseWorker:
    """What the thread of a database does."""

    def __init__(self, process: DatabaseProcess, jobs: list[Job]) -> None:
        self.process, self.world, self.jobs = process, process.world, jobs
        self.manager = transaction.TransactionManager()
        self.connection: Any = None

    def run(self) -> None:
        """Do the jobs."""
        while self.jobs and not self.process.must_reopen:
            self.world.events.rest()
            job = self.jobs[0]
            try:
                is_done = self._do(job)
            except GreenletExit:
                self.jobs[:1] = []
                raise
            if is_done:
                self.jobs.pop(0)
            elif not self.process.must_reopen:
                self.world.events.pause(self.world.chance.random() * 0.02)
        if not self.process.must_reopen and self.connection is not None:
            self.connection.close()

    def _do(self, job: Job) -> bool:
        """Try a job; return whether it is done."""
        process, ledger = self.process, self.world.ledger
        process.names += 1
        name = f"{process.name}:{process.names}:{job.kind}:{job.amount}"
        is_committing = False
        try:
            if self.connection is None:
                self.connection = process.db.open(transaction_manager=self.manager)
            self.manager.begin()
            getattr(self, job.kind)(job.amount)
            self.manager.get().description = name
            ledger.begin(name)
            is_committing = True
            self.manager.commit()
        except CommitInDoubtError:
            ledger.doubt(name)
            self._abort()
            return True
        except (ConflictError, DisconnectedError) as error:
            if is_committing:
                ledger.refuse(name, process.lineage(), error)
            self._abort()
            return False
        except StorageError as error:
            require_link_error(error)
            process.must_reopen = True
            self._abort()
            return False
        tid = process.lineage().by_name.get(name)
        if job.kind != "sum_up":
            require(tid is not None, "acknowledged is there", f"{name} is not committed")
            assert tid is not None
            ledger.acknowledge(name, tid)
        return True

    def _abort(self) -> None:
        """Abort, which begins the next view: that may fail for the same reasons."""
        try:
            self.manager.abort()
        except StorageError as error:
            require_link_error(error)
            self.process.must_reopen |= not isinstance(error, DisconnectedError)

    def _accounts(self) -> dict[str, Account]:
        root = self.connection.root()
        return {name: root[name] for name in sorted(root)}

    def _read(self, account: Account) -> int:
        value, at = account.value, self.connection.view.snapshot
        data = self.process.lineage().value(account._p_oid, at)
        require(
            data is not None and value_in(data) == value, "snapshot",
            lambda: f"{self.process.name} at {short(at)} reads {short(account._p_oid)}: {value}",
        )
        return value

    def pay(self, amount: int) -> None:
        """Move an amount between two accounts."""
        one, other = self.world.chance.sample(list(self._accounts().values()), 2)
        one.value = self._read(one) - amount
        other.value = self._read(other) + amount

    def sum_up(self, amount: int) -> None:
        """Read all accounts in one snapshot: their sum stays."""
        accounts = list(self._accounts().values())
        self.world.chance.shuffle(accounts)
        total = 0
        for account in accounts:
            total += self._read(account)
            if amount % 2:
                self.world.events.rest()
        require(
            total == ACCOUNTS * BALANCE, "snapshot", f"{self.process.name}: the sum is {total}"
        )

    def open_account(self, amount: int) -> None:
        """Make another account."""
        self.process.names += 1
        self.connection.root()[f"{self.process.name} {self.process.names}"] = Account(0)
