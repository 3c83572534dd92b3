"""Intermediate read: a transaction reads a value that another wrote on the way to a later one."""

from objdb.testing.schedule import Schedule

ALLOWED_IN = set[str]()


def happens(schedule: Schedule) -> bool:
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("x", "on the way")
    a.connection.transaction_manager.savepoint()
    seen = b.read("x")
    a.write("x", "there")
    a.commit()
    return bool(seen == "on the way")
