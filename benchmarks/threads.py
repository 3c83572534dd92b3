"""Threads that are measured together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

Start = Callable[[], object]


def run_threads(count: int, work: Callable[[int, Start], None]) -> float:
    """Run `work(index, start)` in so many threads. Each calls `start` when it is prepared, which
    returns when all are. Return the seconds from then until the last one ends; raise what the
    first that failed has raised.
    """
    barrier = threading.Barrier(count + 1)
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index, barrier.wait)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:  # one has failed, and `failures` says why
        pass
    started = perf_counter()
    for thread in threads:
        thread.join()
    elapsed = perf_counter() - started
    if failures:
        raise failures[0]
    return elapsed
