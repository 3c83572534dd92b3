"""Write skew: two transactions each read what the other writes: each is right about what it saw,
and together they are wrong."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = {"snapshot", "read-current"}


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    for one, mine in ((a, "x"), (b, "y")):
        if one.read("x") + one.read("y") == 0:
            one.write(mine, 1)  # there shall be one at most
    a.commit()
    b.commit()
    values = schedule.values()
    return bool(values["x"] + values["y"] > 1)
