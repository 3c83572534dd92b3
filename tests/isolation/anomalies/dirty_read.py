"""Dirty read: a transaction reads what another has written and not committed."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", "not committed")
    return bool(b.read("x") == "not committed")
