"""What the tests of the tutorials share."""

import random
from contextlib import ExitStack
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import transaction

import objdb
from tutorials.calendar.check import double_bookings, index_faults
from tutorials.calendar.model import Calendar

PEOPLE = ("anna", "ben", "chiara", "dev")


@pytest.fixture
def berlin():
    """The zone of the calendars in these tests."""
    return ZoneInfo("Europe/Berlin")


@pytest.fixture
def hour():
    """An hour."""
    return timedelta(hours=1)


@pytest.fixture
def at(berlin):
    """Make a time in March 2026 in Berlin."""

    def make(day, hour, minute=0):
        return datetime(2026, 3, day, hour, minute, tzinfo=berlin)

    return make


@pytest.fixture
def calendar():
    """A calendar with four people that is in no database; must be in order at the end."""
    made = Calendar("Europe/Berlin")
    for username in PEOPLE:
        made.add_person(username)
    yield made
    assert_in_order(made)


@pytest.fixture(params=["memory", "file"])
def db(request, tmp_path):
    """A database with a calendar of four people; the calendar must be in order at the end."""
    path = None if request.param == "memory" else tmp_path / "cal.fs"
    with objdb.DB(path) as opened:
        with opened.transaction() as connection:
            made = connection.root()["calendar"] = Calendar("Europe/Berlin")
            for username in PEOPLE:
                made.add_person(username)
        yield opened
        with opened.transaction() as connection:
            assert_in_order(connection.root()["calendar"])


@pytest.fixture
def two_views(db):
    """Two connections with a transaction manager each, to be stepped through by hand."""
    with ExitStack() as stack:
        views = []
        for _ in range(2):
            manager = transaction.TransactionManager()
            connection = db.open(transaction_manager=manager)
            stack.callback(connection.close)
            stack.callback(manager.abort)
            manager.begin()
            views.append((manager, connection.root()["calendar"]))
        yield views


@pytest.fixture
def dice():
    """Random numbers that are the same in every run."""
    return random.Random(20260302)


def assert_in_order(calendar):
    """Assert that nobody is double-booked and that the indexes agree."""
    assert double_bookings(calendar) == []
    assert index_faults(calendar) == []
