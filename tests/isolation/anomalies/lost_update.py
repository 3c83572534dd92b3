"""Lost update: two transactions add to the same value, and one addition is lost."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", a.read("x") + 1)
    b.write("x", b.read("x") + 1)
    committed = a.commit() + b.commit()
    return bool(schedule.values()["x"] != committed)
