"""Read skew: a transaction reads two values that never were together."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    x = a.read("x")
    b.write("x", 1)
    b.write("y", 1)
    b.commit()
    return bool(x != a.read("y"))
