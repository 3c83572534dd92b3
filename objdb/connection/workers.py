"""The threads that wait in place of coroutines, so that the event loop goes on.

    event loop                          worker
    await workers.run(call) ─► queue ─► call() ─────────────► the loop is told, the coroutine
    await workers.commit(…) ─► queue ─► commit, commit, … ─┐  goes on
                                        wait for all ◄─────┘

Commits that can wait for the medium together (see `objdb.connection.tasks`) go through one thread,
back to back; then that thread waits for all of them, and tells the loop once. All other calls have
a thread each, up to a limit.

A coroutine that is cancelled waits until its call has ended: what the call uses stays in use until
then, and what came of it is known. Only then is the cancellation raised.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from objdb.errors import StorageClosedError

if TYPE_CHECKING:
    import asyncio

# How many calls that are not commits run at a time.
MOST_THREADS = 16
# How many commits wait for the medium together.
MOST_TOGETHER = 32
# A thread that has had nothing to do for so long ends.
_IDLE_SECONDS = 1.0


class Job:
    """A call made in a worker, for a coroutine that waits for it.

    *later* is a list to which the call adds what it leaves to be waited for.
    """

    def __init__(
        self, call: Callable[[], Any], later: list[Callable[[], None]] | None = None
    ) -> None:
        from asyncio import get_running_loop

        self.loop = get_running_loop()
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._later = later
        self._future = self.loop.create_future()
        self._has_ended = False  # for the coroutine; changed by its loop
        self._running = threading.Lock()  # held until the worker is done with this job
        self._running.acquire()

    def start(self) -> None:
        """Make the call (in the worker)."""
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Wait for what the call left to be waited for (in the worker)."""
        try:
            for wait in self._later or ():
                wait()
        except BaseException as error:
            self.error = error
        self._running.release()

    def tell(self) -> None:
        """Let the coroutine go on (in its loop)."""
        self._has_ended = True
        if not self._future.done():
            self._future.set_result(None)

    async def outcome(self, cancel: Callable[[], None] | None = None) -> Any:
        """Return what the call returned, or raise what it raised.

        When cancelled: call *cancel*, wait for the call to end all the same, and raise
        CancelledError, from the error of the call if there was one.
        """
        from asyncio import CancelledError

        cancelled: CancelledError | None = None
        while not self._has_ended:
            try:
                await self._future
            except CancelledError as error:
                cancelled = error
                self._future = self.loop.create_future()
                if cancel is not None:
                    cancel()
            except GeneratorExit:  # the loop is gone, and nobody awaits this any more
                with self._running:
                    raise
        failure, self.error = self.error, None
        try:
            if cancelled is not None:
                raise cancelled from failure
            if failure is not None:
                raise failure
            return self.result
        finally:
            del failure, cancelled  # their tracebacks lead back here


class Workers:
    """Up to *most* threads, started when there is something to do; each takes up to *together*
    jobs from the queue at a time.

    `_lock` covers the attributes below it, and putting into the queue.
    """

    def __init__(self, name: str, most: int, together: int = 1) -> None:
        self._name = name
        self._most = most
        self._together = together
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._unfinished = 0
        self._threads: set[threading.Thread] = set()
        self._ending: set[threading.Thread] = set()  # those that end on their own
        self._pid = os.getpid()
        self._is_closed = False

    def submit(self, job: Job) -> Job:
        """Have a thread do *job*."""
        if self._pid != os.getpid():  # a fork has none of the threads
            self.__init__(self._name, self._most, self._together)  # type: ignore[misc]
        with self._lock:
            if self._is_closed:
                raise StorageClosedError("the database is closed")
            self._jobs.put(job)
            self._unfinished += 1
            if len(self._threads) < min(self._unfinished, self._most):
                thread = threading.Thread(target=self._work, name=f"{self._name} worker")
                self._threads.add(thread)
                thread.start()
        return job

    def _work(self) -> None:
        while True:
            jobs = self._next_jobs()
            if not jobs:
                return
            for job in jobs:
                job.start()
            for job in jobs:
                job.finish()
            with self._lock:
                self._unfinished -= len(jobs)
            _tell(jobs)

    def _next_jobs(self) -> list[Job]:
        """Wait for jobs; return none when this thread is to end."""
        first = self._first_job()
        if first is None:
            return []
        jobs = [first]
        while len(jobs) < self._together:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:
                self._jobs.put(job)
                break
            jobs.append(job)
        return jobs

    def _first_job(self) -> Job | None:
        while True:
            try:
                return self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._ending = {one for one in self._ending if one.is_alive()}
                        self._ending.add(threading.current_thread())
                        self._threads -= self._ending
                        return None

    def close(self) -> None:
        """Let the threads do what they were given, and end."""
        with self._lock:
            self._is_closed = True
            threads = (self._threads | self._ending) - {threading.current_thread()}
            for _ in self._threads:
                self._jobs.put(None)
        for thread in threads:
            thread.join()


def run_elsewhere(job: Job) -> Job:
    """Have a thread of the event loop's own do *job*."""

    def work() -> None:
        job.start()
        job.finish()
        _tell([job])

    job.loop.run_in_executor(None, work)
    return job


def _tell(jobs: list[Job]) -> None:
    """Tell each loop once that jobs have ended."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, ended in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_all, ended)
        except RuntimeError:  # the loop is closed: nobody waits
            continue


def _tell_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.tell()
