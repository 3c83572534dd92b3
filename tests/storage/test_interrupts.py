"""Interrupts: an exception from outside, at random places of commits, undo, versions, packs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction.interfaces import AlreadyInTransaction

import objdb
from objdb.storage.files import sync_path
from objdb.storage.holding import call_each, hold, hold_for, let_go
from objdb.testing.interrupts import (
    _ROOTS,
    OPERATIONS,
    Exploration,
    Interrupter,
    OpeningExploration,
)
from tests.leftovers import now_open
from tests.storages import FORGETFUL, STORAGES, open_database

POINTS = 6
ROOT = Path(__file__).resolve().parents[2]


class TimeLimit(Exception):
    """What a server raises in a thread that works for too long."""


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupts_at_random(tmp_path: Path, kind: str, name: str) -> None:
    """Wherever it is interrupted, a transaction is wholly in or wholly out, others go on, and it is
    the same when the database is opened again."""
    seed = random.randrange(10**9)
    exploration = Exploration(
        STORAGES[kind], tmp_path, OPERATIONS[name], persists=kind not in FORGETFUL
    )
    exploration.run(POINTS, seed)
    assert exploration.faults == [], f"seed {seed}"


@pytest.mark.parametrize("kind", STORAGES)
def test_opening_and_closing(tmp_path: Path, kind: str) -> None:
    """Wherever opening or closing a database is interrupted, it can be opened at once, and no file
    and no thread stays."""
    seed = random.randrange(10**9)
    opens = partial(open_database, kind)
    exploration = OpeningExploration(opens, tmp_path, persists=kind not in FORGETFUL)
    exploration.run(3 * POINTS, seed)
    assert exploration.faults == [], f"seed {seed}"


@pytest.mark.parametrize("storage", ["file.fs", "compressed+file:file.fs", "sqlite:file.sqlite"])
def test_opening_by_settings(tmp_path: Path, storage: str) -> None:
    """The same where a settings file says what to open."""

    def opens(folder: Path) -> objdb.DB:
        settings = folder / "objdb.toml"
        settings.write_text(f'[it]\nstorage = "{storage}"\n')
        databases = objdb.open_databases(settings)
        try:
            return databases["it"]
        except BaseException:
            databases.close()
            raise

    seed = random.randrange(10**9)
    exploration = OpeningExploration(opens, tmp_path)
    exploration.run(5 * POINTS, seed)
    assert exploration.faults == [], f"seed {seed}"


@pytest.mark.parametrize("exception", [SystemExit, MemoryError, TimeLimit])
def test_other_exceptions(tmp_path: Path, exception: type[BaseException]) -> None:
    """The same holds for other exceptions."""
    seed = random.randrange(10**9)
    exploration = Exploration(STORAGES["file"], tmp_path, OPERATIONS["commit"], exception)
    exploration.run(40, seed)
    assert exploration.faults == [], f"seed {seed}"


CARELESS = """
import os, tempfile
from pathlib import Path
from objdb.storage import commit, storage
from objdb.testing import interrupts
from tests.storages import STORAGES

def careless(lock, held):
    lock.acquire()
    held.append(lock)

commit.hold = careless
interrupts._ROOTS = ("<string>",)
interrupts._PATIENCE_SECONDS = storage._CLOSE_SECONDS = 0.2
with tempfile.TemporaryDirectory() as folder:
    explored = interrupts.Exploration(
        STORAGES["memory"], Path(folder), interrupts.OPERATIONS["commit"], persists=False
    )
    explored.run()
print({fault.what for fault in explored.faults})
os._exit(0)
"""


def test_faults_are_found() -> None:
    """A storage that acquires its lock by one call, and notes it by the next, is found out."""
    done = subprocess.run(
        [sys.executable, "-c", CARELESS], capture_output=True, text=True, timeout=100, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "a thread does not go on" in done.stdout, done.stderr


def test_the_interrupter() -> None:
    """It counts the places of a call, and raises at one of them."""
    with objdb.DB() as db:
        with Interrupter() as counting:
            db.open().close()
        assert counting.count > 10
        with pytest.raises(KeyboardInterrupt), Interrupter(3) as raising:
            db.open().close()
        assert raising.where is not None and "objdb" in raising.where


def test_no_interrupt_leaves_a_folder_open(tmp_path: Path) -> None:
    """A folder whose names are made durable is closed again, wherever that is interrupted."""
    before = now_open()
    with Interrupter() as counting:
        sync_path(str(tmp_path))
    assert counting.count > 1
    for at in range(counting.count):
        with pytest.raises(KeyboardInterrupt), Interrupter(at):
            sync_path(str(tmp_path))
        assert not now_open().beside(before)


def test_locks_that_are_held() -> None:
    """A lock is in the list when it is held; releasing twice does nothing."""
    lock, held = threading.Lock(), list[Any]()
    hold(lock, held)
    assert lock.locked() and held == [lock]
    hold_for(lock, 0.01, other := [])
    assert other == []
    for _ in range(2):
        let_go(held)
        assert not lock.locked() and not any(held)
    called: list[int] = []
    call_each([1, 2], called.append)
    assert called == [2, 1]


STEPS: dict[str, Any] = {
    "hold": hold, "hold for": lambda lock, held: hold_for(lock, 1.0, held),
    "let go": lambda lock, held: let_go(held),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_lock_is_held_and_noted_in_one_step(name: str) -> None:
    """Wherever acquiring or releasing a lock is interrupted, the list says whether it is held."""
    places = 0
    is_interrupted = True
    while is_interrupted:
        lock, held = threading.Lock(), list[Any]()
        if name == "let go":
            hold(lock, held)
        try:
            with Interrupter(places):
                STEPS[name](lock, held)
            is_interrupted = False
        except KeyboardInterrupt:
            places += 1
        assert lock.locked() == (lock in held)
    assert places > 1


def test_signals(tmp_path: Path) -> None:
    """Signals at random in the main thread, which commits beside three threads: all go on, and what
    was committed is there."""
    db = objdb.DB(objdb.FileStorage(tmp_path / "data.fs", durability="os"), pool_size=5)
    with db.transaction() as connection:
        for number in range(4):
            connection.root()[number] = objdb.PersistentMapping(n=0)
    ending = threading.Event()
    counts = [0] * 4

    def work(number: int) -> None:
        while not ending.is_set():
            with db.transaction() as connection:
                connection.root()[number]["n"] += 1
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    armed = [False]

    def alarm(number: int, frame: Any) -> None:
        # Python's own modules, `logging` above all, do not bear interrupts.
        if armed[0] and frame.f_code.co_filename.startswith(_ROOTS):
            armed[0] = False
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_VIRTUAL, 1e-4)

    before = signal.signal(signal.SIGVTALRM, alarm)
    manager = transaction.TransactionManager(explicit=True)
    connection = db.open(transaction_manager=manager)
    interrupts, least, end = 0, 0, time.monotonic() + 60
    try:
        while interrupts < 300 and time.monotonic() < end:
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_VIRTUAL, random.random() ** 2 * 0.005 + 1e-5)
                while True:
                    manager.begin()
                    connection.root()[0]["n"] += 1
                    manager.commit()
                    least += 1
            except KeyboardInterrupt:
                interrupts += 1
            except AlreadyInTransaction:  # the manager itself was interrupted
                armed[0] = False
                manager._txn = None
            if manager._txn is not None:
                manager.abort()
    finally:
        armed[0] = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        ending.set()
        for thread in threads:
            thread.join()
    connection.close()
    with db.transaction() as connection:
        found = [connection.root()[number]["n"] for number in range(4)]
    db.close()
    assert found[1:] == counts[1:] and interrupts == 300
    assert least <= found[0] <= least + interrupts
