"""What every test gets: after it, databases hold together, and nothing is left open."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.check import check
from tests.leftovers import now_open, without_abandoned

ROOT = Path(__file__).resolve().parents[1]
SKIPS = Path(__file__).parent / "skips.txt"
_skipped: set[str] = set()
_PATIENCE_SECONDS = 5.0
_mapped = [frozenset[str]()]  # what files were mapped when the last test had ended


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


def pytest_collection_finish() -> None:
    """Have garbage looked for in what tests make only, not in all modules and tests each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread, no open or mapped file, no lock and no transaction outlives its test."""
    before = now_open(_mapped[0])
    yield
    transaction.abort()
    for thread in set(threading.enumerate()) - before.threads:
        thread.join(_PATIENCE_SECONDS)  # one that is about to end by itself
    left = now_open().beside(before)
    if left:
        gc.collect()
        left = now_open().beside(before)
        _mapped[0] = now_open().maps
    if request.node.get_closest_marker("abandons"):
        left = without_abandoned(left)
    assert not left, f"left open: {left}"


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
