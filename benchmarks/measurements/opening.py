"""Opening large files: time, memory, and how both grow with the number of objects.

A small database of the same system is made, opened and read first, so that importing its modules
is not counted as opening. Opening ends when the root (or a first record) was read.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.measurements.commits import BATCH_OBJECTS, batch_times
from benchmarks.memory import Memory, memory
from benchmarks.sizes import Sizes
from benchmarks.systems import Store, System
from benchmarks.systems.persistent_store import PersistentStore
from benchmarks.templates import size_mib

MICROSECONDS = 1e6
MILLISECONDS = 1e3
GROWTH_COMMITS = 20
NEIGHBOURS = 100
TOUCH_EVERY = 50
"""Of 8-byte entries, 512 are on a page: every 50th touches all pages of any dense index."""


def timed_open(system: System, path: Path) -> tuple[Store, float, Memory]:
    """The open store, the milliseconds it took, and the memory it took."""
    with tempfile.TemporaryDirectory(dir=path.parent) as small:
        store = system.create(Path(small))
        store.stage(range(10))
        store.commit()
        store.close()
        store = system.open(Path(small))
        store.ready()
        store.close()
    before = memory()
    started = perf_counter()
    store = system.open(path)
    store.ready()
    elapsed = perf_counter() - started
    return store, elapsed * MILLISECONDS, memory().since(before)


def opening(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """A large file that was closed cleanly."""
    store, open_ms, growth = timed_open(system, path)
    store.close()
    return {"open_ms": open_ms, "open_mib": growth.resident}


def after_kill(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The same file, left behind by a process that was killed after its last commit."""
    store, open_ms, growth = timed_open(system, path)
    items = store.read_by_key([0, sizes.large - 1])
    assert [item.number for item in items] == [0, sizes.large - 1]
    store.close()
    return {"killed_ms": open_ms, "killed_mib": growth.resident}


def index(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Memory after objects all over the file were read, without making objects of them."""
    store, open_ms, _ = timed_open(system, path)
    store.close()
    before = memory()
    store = system.open(path)
    store.ready()
    assert isinstance(store, PersistentStore)
    for number in range(0, sizes.index_objects, TOUCH_EVERY):
        store.load_record(number.to_bytes(8, "big"))
    growth = memory().since(before)
    store.close()
    return {
        "index_mib": growth.resident,
        "index_private_mib": growth.private,
        "index_mapped_mib": growth.mapped,
        "index_open_ms": open_ms,
    }


def growth(system: System, path: Path, sizes: Sizes, objects: int) -> dict[str, float]:
    """Opening, loading and committing with `objects` items in the file."""
    file_mib = size_mib(path)
    store, open_ms, taken = timed_open(system, path)
    keys = _neighbourhoods(objects, sizes.sample)
    started = perf_counter()
    loaded = store.read_by_key(keys)
    load_seconds = perf_counter() - started
    assert len(loaded) == len(keys)
    times = batch_times(store, objects, GROWTH_COMMITS)
    store.close()
    return {
        "growth_open_ms": open_ms,
        "growth_open_mib": taken.resident,
        "growth_load_us": load_seconds / len(keys) * MICROSECONDS,
        "growth_commit_us": median(times) / BATCH_OBJECTS * MICROSECONDS,
        "growth_file_mib": file_mib,
    }


def _neighbourhoods(objects: int, sample: int) -> list[int]:
    """Runs of neighbouring keys at random places.

    With single random keys, a larger container would mean more tree nodes loaded per item, which
    says nothing about how loading grows.
    """
    runs = range(0, objects, NEIGHBOURS)
    starts = random.Random(5).sample(runs, min(sample // NEIGHBOURS, len(runs)))
    return [key for start in starts for key in range(start, start + NEIGHBOURS)]
