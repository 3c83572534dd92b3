"""Locks that are held across several calls, whatever is raised in between.

An exception can be raised between any two bytecodes: by a signal, by another thread, for want
of memory. Were a lock acquired by one, and noted as held by the next, it could stay locked for
ever. So both are one call of C, in which nothing is raised:

    hold     held.extend(… lock.acquire() …)     the lock is acquired, and in the list
    let_go   … held.pop().release() …            it is out of the list, and released

What was interrupted is done again: `let_go` of an empty list does nothing. A lock that is acquired
and released in one function is held by `with`, which has no such gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from operator import methodcaller
from typing import Any

_ONCE = (True,)
_release = methodcaller("release")


def hold(lock: Any, held: list[Any]) -> None:
    """Acquire *lock*, and add it to *held*."""
    held.extend(compress((lock,), map(lock.acquire, _ONCE)))


def hold_for(lock: Any, seconds: float, held: list[Any]) -> None:
    """The same, unless that takes more than so many seconds."""
    held.extend(compress((lock,), map(lock.acquire, _ONCE, (seconds,))))


@contextmanager
def held_for(lock: Any, seconds: float) -> Iterator[bool]:
    """Hold *lock* inside `with`, unless that takes more than so many seconds; give whether it is
    held."""
    held: list[Any] = []
    try:
        hold_for(lock, seconds, held)
        yield bool(held)
    finally:
        try:
            let_go(held)
        except BaseException:
            let_go(held)  # what is left of it
            raise


def let_go(held: list[Any]) -> None:
    """Release the locks in *held*, and remove them."""
    call_each(held, _release)


def call_each(items: list[Any], call: Any) -> None:
    """Remove each of *items*, the last first, and call *call* with it; both in one call of C."""
    items.insert(0, None)  # where it ends
    deque(map(call, iter(items.pop, None)), 0)
