"""Simulated time: events in their order, tasks that wait, and the locks of tasks, in one thread.

    after(seconds, …) ─► queue, by time ─► step() ─► a function is called, or a task goes on
                           ▲                            │
                           ╰── pause, a lock, wake ─────╯

A task is a greenlet: it runs code that blocks, in its ordinary style, and gives way only where that
waits. `Threading` stands for the module `threading` meanwhile, so that what that code calls a
thread is a task. All chance comes from one generator: the same seed makes the same events. It needs
the package greenlet.
"""

from __future__ import annotations

import heapq
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

_SHORT_SECONDS = 0.001  # until a task that was woken goes on, at most


class Event:
    """Something that happens at a time, in seconds. *what* says it in the log, unless it is
    empty."""

    __slots__ = ("function", "time", "what")

    def __init__(self, time: float, what: str, function: Callable[[], object] | None) -> None:
        self.time = time
        self.what = what
        self.function = function

    def cancel(self) -> None:
        """Prevent it."""
        self.function = None


class Task:
    """Code that may wait. *name* is its name in the log. `preempted`: how often it gives way where
    it takes a lock, as a thread may do anywhere; from 0 to 1. `owner`: whatever started it."""

    def __init__(self, events: Events, number: int, name: str, run: Callable[[], object]) -> None:
        self.name = name
        self.number = number
        self.preempted = 0.0
        self.owner: Any = None
        self.is_over = self.is_killed = self.is_frozen = False
        self.error: BaseException | None = None
        self.going_on: Event | None = None
        self.is_woken = False
        self._run_it = run
        self.greenlet = greenlet(self._run, parent=events.main)

    def _run(self, *_: Any) -> None:
        try:
            self._run_it()
        except GreenletExit:
            pass
        except BaseException as error:  # noqa: BLE001  raised by `step`
            self.error = error
        finally:
            self.is_over = True


class Events:
    """Time, and what happens in it. `now`: in seconds; `log`: (time, what) of all events so far;
    `count`: how many there were; `active`: the task that went on last."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.count = 0
        self.log: list[tuple[float, str]] = []
        self.current: Task | None = None
        self.active: Task | None = None
        self.tasks: list[Task] = []
        self.main = getcurrent()
        self.is_over = False
        self._queue: list[tuple[float, int, Event]] = []
        self._last = 0

    # -- events

    def after(self, seconds: float, what: str, function: Callable[[], object]) -> Event:
        """Let something happen after so many seconds."""
        self._last += 1
        event = Event(self.now + seconds, what, function)
        heapq.heappush(self._queue, (event.time, self._last, event))
        return event

    def soon(self, what: str, function: Callable[[], object]) -> Event:
        """Let something happen after a moment."""
        return self.after(self.chance.random() * _SHORT_SECONDS, what, function)

    def note(self, what: str) -> None:
        """Write a line into the log."""
        self.log.append((self.now, what))

    def step(self) -> bool:
        """Let the next event happen; return whether there was one. Raises what a task raised."""
        while self._queue:
            event = heapq.heappop(self._queue)[2]
            function = event.function
            if function is None:
                continue
            self.now = event.time
            self.active = None
            self.count += 1
            if event.what:
                self.note(event.what)
            function()
            return True
        return False

    # -- tasks

    def start(
        self, name: str, run: Callable[[], object], preempted: float = 0.0, owner: Any = None
    ) -> Task:
        """Start a task, which begins soon."""
        self._last += 1
        task = Task(self, self._last, name, run)
        task.preempted, task.owner = preempted, owner
        self.tasks = [each for each in self.tasks if not each.is_over]
        self.tasks.append(task)
        task.going_on = self.soon(f"{name} begins", partial(self._go_on, task, None))
        return task

    def pause(self, seconds: float | None = None) -> bool:
        """Let the task wait, for so many seconds at most; return whether it was woken."""
        task = self.current
        if self.is_over or task is None or task.is_killed:
            if task is None and not self.is_over:
                raise RuntimeError("only a task can wait")
            raise GreenletExit
        task.is_woken = False
        task.going_on = None
        if seconds is not None:
            task.going_on = self.after(seconds, "", partial(self._go_on, task, False))
        return bool(self.main.switch())

    def rest(self) -> None:
        """Let the task give way, for a moment."""
        self.pause(self.chance.random() * _SHORT_SECONDS)

    def perhaps_rest(self) -> None:
        """Let the task give way, if it is one that is preempted."""
        task = self.current
        if task is not None and task.preempted and self.chance.random() < task.preempted:
            self.rest()

    def wake(self, task: Task) -> None:
        """Let a task that waits go on soon."""
        if task.is_woken or task.is_over or task is self.current:
            return
        task.is_woken = True
        if task.going_on is not None:
            task.going_on.cancel()
        task.going_on = self.soon("", partial(self._go_on, task, True))

    def _go_on(self, task: Task, value: Any) -> None:
        if not (task.is_over or task.is_frozen):
            self._switch(task, partial(task.greenlet.switch, value))

    def _switch(self, task: Task, into: Callable[[], object]) -> None:
        before, self.current = self.current, task
        self.active = task
        try:
            into()
        finally:
            self.current = before
        if task.error is not None:
            error, task.error = task.error, None
            self.note(f"{task.name} raises {error!r}")
            raise error

    def kill(self, task: Task) -> None:
        """End a task: it is raised `GreenletExit` where it waits. Not called by tasks."""
        assert self.current is None
        task.is_killed = True
        if task.going_on is not None:
            task.going_on.cancel()
        if not task.is_over and task.greenlet:
            self._switch(task, partial(task.greenlet.throw, GreenletExit))
        task.is_over = True

    def freeze(self, tasks: Iterable[Task]) -> None:
        """Let tasks never go on, as those of a process that was killed; nothing of them runs."""
        for task in tasks:
            task.is_frozen = True
            if task.going_on is not None:
                task.going_on.cancel()

    def close(self) -> None:
        """End everything. What tasks do in their last moments counts for nothing."""
        self.is_over = True
        self._queue.clear()
        for task in self.tasks:
            try:
                self.kill(task)
            except Exception:  # noqa: BLE001  nobody is interested any more
                pass


class Lock:
    """A lock of tasks."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._is_held = False
        self._waiting: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock, and take it; return whether that was done in time."""
        events = self._events
        events.perhaps_rest()
        end = None if timeout < 0 else events.now + timeout
        while self._is_held:
            if not blocking or (end is not None and events.now >= end):
                return False
            _wait_in(self._waiting, events, end)
        self._is_held = True
        return True

    def release(self) -> None:
        """Let go of it."""
        if not self._is_held:
            raise RuntimeError("release unlocked lock")
        self._is_held = False
        if self._waiting:
            self._events.wake(self._waiting[0])

    def locked(self) -> bool:
        """Whether it is held."""
        return self._is_held

    def release_all(self) -> int:
        """Let go of it; return how often it was taken."""
        self.release()
        return 1

    def take_again(self, count: int) -> None:
        """Take it so many times."""
        self.acquire()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def _wait_in(waiting: deque[Task], events: Events, end: float | None) -> bool:
    """Wait in a queue, until *end* at most; return whether the task was woken."""
    task = events.current
    if task is None:
        raise RuntimeError("only a task can wait")
    waiting.append(task)
    try:
        return events.pause(None if end is None else max(0.0, end - events.now))
    finally:
        if task in waiting:
            waiting.remove(task)


class RLock:
    """A lock of tasks that its holder can take again."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = Lock(events)
        self._holder: Task | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock, and take it; return whether that was done in time."""
        if not self._count or self._holder is not self._events.current:
            if not self._lock.acquire(blocking, timeout):
                return False
            self._holder = self._events.current
        self._count += 1
        return True

    def release(self) -> None:
        """Let go of it, once."""
        self._count -= 1
        if not self._count:
            self._holder = None
            self._lock.release()

    def release_all(self) -> int:
        """Let go of it; return how often it was taken."""
        count, self._count = self._count, 1
        self.release()
        return count

    def take_again(self, count: int) -> None:
        """Take it so many times."""
        self.acquire()
        self._count = count

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


class Condition:
    """A condition that tasks wait for."""

    def __init__(self, events: Events, lock: Any = None) -> None:
        self._events = events
        self._lock = lock or RLock(events)
        self._waiting: deque[Task] = deque()
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return bool(self._lock.acquire())

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task is notified; return whether it was in time."""
        count = self._lock.release_all()
        end = None if timeout is None else self._events.now + timeout
        try:
            return _wait_in(self._waiting, self._events, end)
        finally:
            self._lock.take_again(count)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until *predicate* holds; return what it returned last."""
        end = None if timeout is None else self._events.now + timeout
        while not (found := predicate()):
            if end is not None and self._events.now >= end:
                break
            self.wait(None if end is None else end - self._events.now)
        return found

    def notify(self, n: int = 1) -> None:
        """Wake so many tasks."""
        for task in list(self._waiting)[:n]:
            self._events.wake(task)

    def notify_all(self) -> None:
        """Wake all."""
        self.notify(len(self._waiting))


class Flag:
    """What `threading.Event` is, for tasks."""

    def __init__(self, events: Events) -> None:
        self._condition = Condition(events, Lock(events))
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all that wait."""
        self._is_set = True
        self._condition.notify_all()

    def clear(self) -> None:
        """Set it back."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; return whether it is."""
        with self._condition:
            return bool(self._condition.wait_for(self.is_set, timeout))


class Local:
    """What `threading.local` is, for tasks. *defaults*: what each begins with."""

    def __init__(self, events: Events, **defaults: Any) -> None:
        self.__dict__.update(_events=events, _values={}, _defaults=defaults)

    def _own(self) -> dict[str, Any]:
        number = self._events.current.number if self._events.current else 0
        own: dict[str, Any] = self._values.setdefault(number, dict(self._defaults))
        return own

    def __getattr__(self, name: str) -> Any:
        try:
            return self._own()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._own()[name] = value


class Threading:
    """Stands for the module `threading`: its locks are those of tasks."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.Lock = partial(Lock, events)
        self.RLock = partial(RLock, events)
        self.Condition = partial(Condition, events)
        self.Event = partial(Flag, events)
        self.local = partial(Local, events)

    def get_ident(self) -> int:
        """Return the number of the task."""
        current = self._events.current
        return 1 if current is None else current.number + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)

    @contextmanager
    def in_modules(self, *prefixes: str) -> Iterator[None]:
        """Stand for it, inside the block, in the modules whose names begin so."""
        changed: list[tuple[Any, str, Any]] = []
        for name, module in list(sys.modules.items()):
            if name.startswith(prefixes):
                for attribute, own in (("threading", self), ("get_ident", self.get_ident)):
                    if attribute in vars(module):
                        changed.append((module, attribute, vars(module)[attribute]))
                        setattr(module, attribute, own)
        try:
            yield
        finally:
            for module, attribute, value in changed:
                setattr(module, attribute, value)
