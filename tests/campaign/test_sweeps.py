"""The sweeps, for seconds; and whether they notice a storage that does not keep its word."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest

from objdb.errors import ObjdbError
from objdb.storage.commit import CommitSlot
from objdb.storage.file import recovery
from objdb.storage.file.engine import FileEngine
from objdb.storage.file.log import Log
from objdb.testing.faults import FaultyFile
from tests.campaign import sweeps
from tests.campaign.sweeps import sweep


def test_a_sweep() -> None:
    """Whatever a random workload was doing when the power went or the process was killed, and
    wherever the disk failed: nothing acknowledged is lost, nothing is there by half, nothing
    aborted comes back."""
    assert sweep(random.randrange(10**9)) > 100


def test_two_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when the work goes on after every crash, and power is lost again."""
    monkeypatch.setattr(sweeps, "SECOND_PART", 1)
    monkeypatch.setattr(sweeps, "SECOND_STEPS", 1)
    assert sweep(random.randrange(10**9), steps=2) > 100


def nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for what a broken storage forgets."""


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (FileEngine, "sync"), (FileEngine, "erase"), (CommitSlot, "fail"),
        (recovery, "check_crc"), (Log, "decide"), (FaultyFile, "sync"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_storage_that_forgets_is_found_out(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """A storage that leaves out a step of its commits is caught by one of a few sweeps."""
    monkeypatch.setattr(owner, name, nothing)
    with pytest.raises((AssertionError, ObjdbError)):
        for seed in (3, *range(20)):  # the third is short, and finds all of them for now
            sweep(seed)
    gc.collect()  # the transaction in which it was found out, and the file that this has open
