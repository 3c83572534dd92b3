"""Files, locks and threads that a constructor has opened, whatever it is interrupted by.

    DB.__init__ ─► FileStorage.__init__ ─► FileEngine.__init__ ─► lock, log, index ─► clock
       notes itself    notes itself            notes itself
       ╰──────────── raised anywhere in here: all that noted themselves drop what they have ──╯

Nobody else could: who calls a constructor that is interrupted has no object to close. Between the
end of an inner constructor and the moment that the outer one has its object, there is nobody who
has it; so the inner one stays noted until the outermost has ended. That it has ended is noted by
one assignment, behind which nothing can be raised before the object is returned.

An object that is made already is closed. One that is being made drops what it has, by
`drop_opened()`, which writes nothing, and takes attributes that are not there yet for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from objdb.storage.holding import held_for

Constructor = TypeVar("Constructor", bound=Callable[..., None])


class _Note:
    """An object that a constructor of this thread makes, or has made."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.is_made = False


class _Current(threading.local):
    """What is noted in the outermost constructor of this thread; None outside of one."""

    noted: list[_Note] | None = None


_current = _Current()


def drops_what_it_opened(init: Constructor) -> Constructor:
    """Return the constructor *init* of a class with `drop_opened()`, so that whatever is raised in
    it leaves nothing open."""

    @wraps(init)
    def constructor(self: Any, *arguments: Any, **options: Any) -> None:
        outer = _current.noted
        noted: list[_Note] = [] if outer is None else outer
        first = len(noted)
        note = _Note(self)
        try:
            _current.noted = noted
            noted.append(note)
            init(self, *arguments, **options)
            note.is_made = True
            _current.noted = outer
        except BaseException:
            _current.noted = outer
            _drop(noted, first)
            raise

    return constructor  # type: ignore[return-value]


def _drop(noted: list[_Note], first: int) -> None:
    """Let those that are noted from number *first* on go, the outermost first: those that are made
    are closed, the others drop what they have."""
    failure: BaseException | None = None
    while len(noted) > first:
        note = noted.pop(first)
        try:
            if note.is_made:
                note.owner.close()
            else:
                note.owner.drop_opened()
        except Exception as error:  # noqa: BLE001  the others go, too
            failure = failure or error
    if failure is not None:
        raise failure


class Closing:
    """The end of an object: what it takes is done once, and once more where it was interrupted.
    Whoever closes it meanwhile does nothing: the first may be waiting for that thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_over = False

    def run(self, close: Callable[[], None]) -> None:
        """Call *close*, whose steps can be done twice."""
        with held_for(self._lock, 0) as is_first:
            if self.is_over or not is_first:
                return
            try:
                close()
            except BaseException:
                close()
                self.is_over = True
                raise
            self.is_over = True
