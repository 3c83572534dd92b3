"""Whether a race notices what goes wrong in it."""

from __future__ import annotations

import random
import threading

import pytest

import objdb
from objdb.storage import conflicts
from tests.campaign import races
from tests.campaign.races import Race, race
from tests.database.staging import Gate, Worker


class StuckRace(Race):
    """A race whose reader does not come back until the gate is opened."""

    gate = Gate()

    def read(self, chance: random.Random, number: int) -> None:
        self.gate.pass_through()


def test_a_deadlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not go on, when no other does, ends the race with all stacks."""
    monkeypatch.setattr(races, "DEADLOCK_SECONDS", 0.5)
    with objdb.DB() as db:
        try:
            with pytest.raises(AssertionError, match="deadlock, seed 5") as caught:
                StuckRace(db, rounds=1, seed=5).run()
        finally:
            StuckRace.gate.open()
            for thread in threading.enumerate():
                if isinstance(thread, Worker):
                    thread.finish()
    assert "in pass_through" in str(caught.value)


def test_lost_updates_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that lets every change overwrite those made meanwhile is caught."""
    monkeypatch.setattr(conflicts, "resolve_conflicts", lambda *arguments: None)
    with objdb.DB() as db, pytest.raises(AssertionError, match="seed"):
        for seed in range(20):
            race(db, rounds=50, seed=seed)
