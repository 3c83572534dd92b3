"""Aborted read: a transaction reads, or builds on, what another wrote and took back."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", "taken back")
    seen = b.read("x")
    a.abort()
    b.write("y", seen)
    b.commit()
    return "taken back" in schedule.values().values()
