"""Locks held across several calls, safe against exceptions in between.

An exception can be raised between any two bytecodes: by a signal, by another thread, for lack of
memory. If one bytecode acquired a lock and the next noted it as held, the lock could stay locked
forever. So both happen in one C call, in which nothing is raised:

    hold     held.extend(… lock.acquire() …)     the lock is acquired, and in the list
    let_go   … held.pop().release() …            it is out of the list, and released

Interrupted calls are repeated: `let_go` of an empty list does nothing. A lock acquired and
released in one function is held by `with`, which has no such gap.
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
    """Acquire *lock* within *seconds*, and add it to *held*; else do nothing."""
    held.extend(compress((lock,), map(lock.acquire, _ONCE, (seconds,))))


@contextmanager
def held_for(lock: Any, seconds: float) -> Iterator[bool]:
    """Hold *lock* inside `with`, unless acquiring it takes longer than *seconds*; yield whether
    it is held."""
    held: list[Any] = []
    try:
        hold_for(lock, seconds, held)
        yield bool(held)
    finally:
        try:
            let_go(held)
        except BaseException:
            let_go(held)  # the remaining locks
            raise


def let_go(held: list[Any]) -> None:
    """Release the locks in *held*, and remove them."""
    call_each(held, _release)


def call_each(items: list[Any], call: Any) -> None:
    """Remove each of *items*, the last first, and call *call* with it; both in one C call."""
    items.insert(0, None)  # the end mark
    deque(map(call, iter(items.pop, None)), 0)
