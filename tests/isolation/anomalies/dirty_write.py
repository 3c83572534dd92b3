"""Dirty write: a transaction overwrites what another has written and not committed, so that
the two are mixed."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", "A")
    b.write("x", "B")
    b.write("y", "B")
    a.write("y", "A")
    a.commit()
    b.commit()
    values = schedule.values()
    return values["x"] != values["y"]
