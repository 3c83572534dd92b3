"""Commits: large and small, alone and by several threads. All are durable when they return.

What is timed is the commit. Making the objects is not, and for the object databases, putting them
into the tree in memory is not either; pickling and writing always is.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.sizes import Sizes
from benchmarks.systems import Store, System
from benchmarks.threads import Start, run_threads

MICROSECONDS = 1e6
BATCH_OBJECTS = 100
CHANGED_ITEMS = 50
"""Small commits change these many items in turn."""

PROCESSES = 4


def bulk(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """One commit of many new objects into a new database, per object."""
    store = system.create(path)
    store.stage(range(sizes.new_objects))
    started = perf_counter()
    store.commit()
    elapsed = perf_counter() - started
    store.close()
    return {"bulk_us": elapsed / sizes.new_objects * MICROSECONDS}


def batch(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Commits of 100 new objects each: the median, per object."""
    store = system.open(path)
    times = batch_times(store, sizes.objects, sizes.batch_commits)
    store.close()
    return {"batch_us": median(times) / BATCH_OBJECTS * MICROSECONDS}


def batch_times(store: Store, first: int, commits: int) -> list[float]:
    """Seconds taken by each of several commits of 100 new objects, under keys from `first` on."""
    times = []
    for key in range(first, first + commits * BATCH_OBJECTS, BATCH_OBJECTS):
        store.stage(range(key, key + BATCH_OBJECTS))
        started = perf_counter()
        store.commit()
        times.append(perf_counter() - started)
    return times


def small(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Commits of one changed object each: the median."""
    store = system.open(path)
    items = [store.item(key) for key in range(CHANGED_ITEMS)]
    times = []
    for commit in range(sizes.small_commits):
        key = commit % CHANGED_ITEMS
        item = items[key]
        started = perf_counter()
        item.number += 1
        store.save(key, item)
        times.append(perf_counter() - started)
    store.close()
    return {"small_us": median(times) * MICROSECONDS}


def threads(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Small commits by several threads, each changing an object of its own: commits per second."""
    store = system.open(path)

    def work(index: int, start: Start) -> None:
        with store.session() as session:
            key = index * (sizes.objects // sizes.threads)
            item = session.item(key)
            start()
            for _ in range(sizes.thread_commits):
                item.number += 1
                session.save(key, item)

    elapsed = run_threads(sizes.threads, work)
    store.close()
    return {"threads_per_second": sizes.threads * sizes.thread_commits / elapsed}


def processes(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Small commits by several processes on one file, each changing an object of its own: commits
    per second."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES + 1), context.SimpleQueue()
    arguments = system.name, str(path), sizes.objects, sizes.thread_commits * 2
    running = [
        context.Process(target=_commit_in_process, args=(index, *arguments, barrier, results))
        for index in range(PROCESSES)
    ]
    for process in running:
        process.start()
    barrier.wait()
    started = perf_counter()
    times = [results.get() for _ in running]
    elapsed = perf_counter() - started
    for process in running:
        process.join()
    return {"processes_per_second": sum(times) / elapsed}


def _commit_in_process(
    index: int, name: str, path: str, objects: int, commits: int, barrier: Any, results: Any
) -> None:
    from benchmarks.systems import SYSTEMS

    store = SYSTEMS[name].open(Path(path))
    key = index * (objects // PROCESSES)
    item = store.item(key)
    item.number += 1
    store.save(key, item)
    barrier.wait()
    for _ in range(commits):
        item.number += 1
        store.save(key, item)
    results.put(commits)
    store.close()
