"""Threads racing in one database."""

from __future__ import annotations

import random

import objdb
from tests.campaign.races import race
from tests.conftest import Databases


def test_a_race(db: objdb.DB) -> None:
    """Transfers, pairs and counters of ten threads: views never mix two commits, no update is
    lost, and all threads end."""
    race(db, rounds=250, seed=random.randrange(10**9))


def test_a_race_with_small_caches(databases: Databases) -> None:
    """The same with two connections, whose caches hold almost nothing, and checkpoints all the
    time."""
    storage = objdb.FileStorage(databases.directory / "data.fs", checkpoint_records=10)
    db = databases.open(storage, cache_size=3, pool_size=2)
    race(db, rounds=120, seed=random.randrange(10**9))
