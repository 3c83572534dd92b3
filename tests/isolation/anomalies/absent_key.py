"""Write skew on absent keys: two transactions each find the other's key absent,
and add their own."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = {"snapshot", "read-current"}


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    for one, mine, other in ((a, "one", "other"), (b, "other", "one")):
        if one.read(other) is None:
            one.write(mine, "the only one")
    a.commit()
    b.commit()
    return "one" in schedule.values() and "other" in schedule.values()
