"""Phantom: a transaction looks twice at a range of keys, and finds another key the second time."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    before = a.read_range("a", "z"), a.read("new")
    b.write("new", "here")
    b.commit()
    a.connection.cacheMinimize()
    return (a.read_range("a", "z"), a.read("new")) != before
