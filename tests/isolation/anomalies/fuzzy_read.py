"""Fuzzy read: a transaction reads a value twice, and finds another the second time."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    before = a.read("x")
    b.write("x", "changed")
    b.commit()
    a.connection.cacheMinimize()
    return bool(a.read("x") != before)
