"""What every test gets: after it, databases hold together, and nothing is left open."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.check import check

ROOT = Path(__file__).resolve().parents[1]
SKIPS = Path(__file__).parent / "skips.txt"
_skipped: set[str] = set()
_PATIENCE_SECONDS = 5.0
_TEMPORARY = tempfile.gettempdir() + "/"
# Module safes stay open until the process ends, and Berkeley DB keeps the files of one that failed.
_KEPT_OPEN = "/safe", "/host."


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        _skipped.add(f"{report.nodeid} | {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail on a skip that is not in the table, which may only shrink."""
    lines = SKIPS.read_text().splitlines()
    unknown = _skipped - {line for line in lines if line and not line.startswith("#")}
    for line in sorted(unknown):
        print(f"\nskipped, and not in {SKIPS.name}: {line}")
    if unknown:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No thread, no open file and no transaction outlives its test."""
    threads, files = set(threading.enumerate()), _open_files()
    yield
    transaction.abort()
    for thread in set(threading.enumerate()) - threads:
        thread.join(_PATIENCE_SECONDS)  # one that is about to end by itself
    assert set(threading.enumerate()) <= threads, "threads left running"
    left = _open_files() - files
    if left:
        gc.collect()
        left = _open_files() - files
    assert not left, f"files left open: {left}"


def _open_files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(_TEMPORARY) and not any(part in target for part in _KEPT_OPEN):
            found.add(f"{number} {target}")
    return found


class Databases:
    """Opens databases for a test, and closes and checks them at its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: list[Any] = []

    def open(self, where: Any = None, **options: Any) -> objdb.DB:
        """Open a database: on a file of the test's directory if *where* is a file name."""
        if isinstance(where, str) and ":" not in where:
            where = str(self.directory / where)
        db = objdb.DB(where, **options)
        self.opened.append(db)
        return db

    def close(self) -> None:
        """Check and close all."""
        transaction.abort()
        for db in self.opened:
            if not db._is_closed:
                slot = getattr(db.storage, "_slot", None)  # a layer has none
                assert slot is None or not slot._staged, "a transaction neither ended nor aborted"
                check(db.storage).raise_if_damaged()
                db.close()


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    """A function-like object whose `open` makes databases that are checked and closed."""
    made = Databases(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["memory", "file"])
def db(request: pytest.FixtureRequest, databases: Databases) -> objdb.DB:
    """A new database, over each kind of storage."""
    return databases.open(None if request.param == "memory" else "data.fs")
