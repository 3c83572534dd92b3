"""Predicate write skew: two transactions each count the keys of a range, and each adds one that the
other has not seen."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = {"snapshot", "read-current"}


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    for one, mine in ((a, "guest1"), (b, "guest2")):
        if not one.read_range("guest0", "guest9"):
            one.write(mine, "the only guest")
    a.commit()
    b.commit()
    return "guest1" in schedule.values() and "guest2" in schedule.values()
