"""What has to be done around `os.fork()`, in one order, whatever was imported first.

    before the fork        SAFES ─► DATABASES ─► STORAGES ─► FILES
    behind it, parent      FILES ─► STORAGES ─► DATABASES ─► SAFES
    behind it, child       the same

Outer things rest first, and go on last: what is inside them is as it was before. A call that fails
keeps no other from being made; Python tells what it raised, and goes on.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

Call = Callable[[], object]


class Stage(enum.IntEnum):
    """Where something stands in the order, the outermost first."""

    SAFES = 1
    DATABASES = 2
    STORAGES = 3
    FILES = 4


class _Calls(NamedTuple):
    stage: Stage
    before: Call | None
    in_parent: Call | None
    in_child: Call | None


_registered: list[_Calls] = []  # by stage; by registration within one


def at_fork(
    stage: Stage, *, before: Call | None = None, in_parent: Call | None = None,
    in_child: Call | None = None,
) -> None:
    """Have these functions called at every fork, from now on; *before* in the process that
    forks."""
    _registered.append(_Calls(stage, before, in_parent, in_child))
    _registered.sort(key=lambda calls: calls.stage)


def _call(functions: Iterable[Call | None]) -> None:
    failed: BaseException | None = None
    for function in functions:
        try:
            if function is not None:
                function()
        except BaseException as error:  # noqa: BLE001  raised when all were called
            failed = failed or error
    if failed is not None:
        raise failed


os.register_at_fork(
    before=lambda: _call([calls.before for calls in _registered]),
    after_in_parent=lambda: _call([calls.in_parent for calls in reversed(_registered)]),
    after_in_child=lambda: _call([calls.in_child for calls in reversed(_registered)]),
)
