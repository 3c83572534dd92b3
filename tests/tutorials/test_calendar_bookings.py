"""Ten thousand tries to book the same few people at the same time, by many threads."""

import random

import pytest

import objdb
from tests.campaign.bookings import book, book_in_processes, booked_twice, careful, naive

TRIES = 10_000


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("isolation", "way"), [("serializable", naive), ("snapshot", careful)],
    ids=["serializable", "snapshot with the cure"],
)  # fmt: skip
def test_nobody_is_booked_twice(tmp_path, isolation, way):
    """In serializable mode looking first is enough; in snapshot mode the tutorial's cure is."""
    seed = random.randrange(10**9)
    with objdb.DB(tmp_path / "cal.fs", isolation=isolation) as db:
        total = book(db, TRIES, seed, way)
        assert total.total() == TRIES
        assert total["booked"] and total["busy"]
        assert booked_twice(db) == [], f"seed {seed}"
        assert db.conflicts.count, "nothing was contended"


@pytest.mark.parametrize("processes", [2, 8])
def test_in_processes(tmp_path, processes):
    """Nor is anybody when processes book, each with its own database on one SQLite file; no
    booking is lost."""
    seed = random.randrange(10**9)
    total = book_in_processes(f"sqlite:{tmp_path}/data.sqlite", processes, TRIES, seed)
    assert total.total() == TRIES
    assert total["booked"] and total["busy"]
