"""Random transactions of several connections, stepped through a random order in one thread."""

from __future__ import annotations

import random
from typing import Any

import objdb
from objdb.testing.anomalies import Report, check
from objdb.testing.recording import Recorder, interleave, random_plan

CLIENTS = 3


def interleaved(seed: int, isolation: str, where: Any = None) -> Report:
    """Return the report on a random interleaving, over a new storage."""
    chance = random.Random(seed)
    plans = [[random_plan(chance) for _ in range(6)] for _ in range(CLIENTS)]
    order = [chance.randrange(CLIENTS) for _ in range(150)]
    cache_size = chance.choice([1, 20, 1000])
    with objdb.DB(where, isolation=isolation, cache_size=cache_size) as db:
        recorder = Recorder(db)
        interleave(recorder, plans, order)
        return check(recorder.history(), is_opaque=True)
