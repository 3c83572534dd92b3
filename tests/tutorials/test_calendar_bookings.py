"""Thousands of tries to book the same few people at the same time, by many threads."""

import random

import pytest

import objdb
from tests.campaign.bookings import book, book_in_processes, booked_twice, careful, naive

# While a calendar is empty, most tries book: ten calendars show a double booking sooner than one
# that takes as many tries, or five times as many.
CALENDARS = 10
TRIES = 2000


@pytest.mark.parametrize(
    ("isolation", "way"), [("serializable", naive), ("snapshot", careful)],
    ids=["serializable", "snapshot with the cure"],
)  # fmt: skip
def test_nobody_is_booked_twice(tmp_path, isolation, way):
    """In serializable mode looking first is enough; in snapshot mode the tutorial's cure is."""
    seed = random.randrange(10**9)
    with objdb.DB(tmp_path / "cal.fs", isolation=isolation) as db:
        for number in range(CALENDARS):
            total = book(db, TRIES // CALENDARS, seed + number, way)
            assert total.total() == TRIES // CALENDARS
            assert total["booked"] and total["busy"]
            assert booked_twice(db) == [], f"seed {seed + number}"
        assert db.conflicts.count, "nothing was contended"


def test_looking_first_is_not_enough(tmp_path):
    """So many tries do show a double booking where there is one: in snapshot mode, without the
    cure."""
    with objdb.DB(tmp_path / "cal.fs", isolation="snapshot") as db:
        for seed in range(3 * CALENDARS):
            book(db, TRIES // CALENDARS, seed, naive)
            if booked_twice(db):
                return
    raise AssertionError("nobody was booked twice")


@pytest.mark.parametrize("processes", [2, 8])
def test_in_processes(tmp_path, processes):
    """Nor is anybody when processes book, each with its own database on one SQLite file; no
    booking is lost."""
    seed = random.randrange(10**9)
    total = book_in_processes(f"sqlite:{tmp_path}/data.sqlite", processes, TRIES, seed)
    assert total.total() == TRIES
    assert total["booked"] and total["busy"]
