"""Long fork: two transactions see the commits of two others in opposite orders."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b, early = schedule.begin("A"), schedule.begin("B"), schedule.begin("early")
    a.write("x", 1)
    a.commit()
    one = schedule.begin("one")
    b.write("y", 1)
    b.commit()
    other = schedule.begin("other")
    seen = {(o.read("x"), o.read("y")) for o in (early, one, other)}
    return (1, 0) in seen and (0, 1) in seen
