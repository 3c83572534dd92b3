"""The log of what transactions changed."""

from __future__ import annotations

from objdb.database.invalidations import InvalidationLog
from objdb.ids import NO_TID


def test_a_transaction_that_is_told_late() -> None:
    """A transaction that is added behind later ones hides none of them."""
    log = InvalidationLog(NO_TID)
    one, two, three = (bytes(7) + bytes([number]) for number in (1, 2, 3))
    log.add(one, [b"a"])
    log.add(two, [b"b"])
    log.add(one, [b"a"], "the committer")
    log.add(three, [b"c"])
    assert log.between(one, two, "other") == [b"b"]
    assert log.between(one, three, "other") == [b"c", b"b"]
    assert log.between(NO_TID, one, "the committer") == [b"a"]
