"""Circular information flow: two transactions each read what the other wrote."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", "A")
    b.write("y", "B")
    seen = a.read("y"), b.read("x")
    a.commit()
    b.commit()
    return seen == ("B", "A")
