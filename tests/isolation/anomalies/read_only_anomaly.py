"""The read-only anomaly: a transaction that only reads sees a state that fits no order of
the others.

Fekete, O'Neil and O'Neil, "A read-only transaction anomaly under snapshot isolation", 2004.
"""

from objdb.testing.schedule import Schedule

ALLOWED_IN = {"snapshot", "read-current"}


def happens(schedule: Schedule) -> bool:
    withdraws = schedule.begin("withdraws")
    have = withdraws.read("x") + withdraws.read("y")
    deposits = schedule.begin("deposits")
    deposits.write("y", deposits.read("y") + 20)
    deposits.commit()
    looks = schedule.begin("looks")
    seen = looks.read("x"), looks.read("y")
    looks.commit()
    # Ten are taken from x; one more as a fine, if there is not enough.
    withdraws.write("x", -10 if have >= 10 else -11)
    withdraws.commit()
    # Who looks saw the deposit and no withdrawal: then no fine can be due.
    return seen == (0, 20) and bool(schedule.values()["x"] == -11)
