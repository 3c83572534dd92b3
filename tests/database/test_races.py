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


def test_a_race_with_packs(db: objdb.DB) -> None:
    """The same while two threads pack: nothing that is reached is lost, and what a view may not
    see any more is told, never replaced by something else."""
    race(db, rounds=100, seed=random.randrange(10**9), packs=True)
