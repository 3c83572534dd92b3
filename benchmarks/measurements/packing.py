"""Packing: how long it takes, how much memory, and what it does to those who commit meanwhile.

The file holds objects in three generations: all were written, and then changed twice. A small file
of the same system is packed first, so that importing is not counted.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from benchmarks.measurements.opening import timed_open
from benchmarks.memory import memory, peak_resident, reset_peak
from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.systems.persistent_store import PersistentStore

MILLISECONDS = 1e3
ALONE_SECONDS = 2.0


def pack(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The time, and the most memory taken at once, above what was resident before."""
    with _opened(system, path) as store:
        before = memory().resident
        reset_peak()
        started = perf_counter()
        store.database.pack()
        elapsed = perf_counter() - started
        return {"pack_s": elapsed, "pack_mib": peak_resident() - before}


def pack_many(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The same, of many more objects, written once."""
    found = pack(system, path, sizes)
    return {"many_s": found["pack_s"], "many_mib": found["pack_mib"]}


def pack_beside(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Commits by another thread, alone and while the file is packed."""
    with _opened(system, path) as store:
        committer = _Committer(store)
        committer.start()
        committer.is_counted.wait(ALONE_SECONDS)
        alone = len(committer.times) / ALONE_SECONDS
        first = len(committer.times)
        started = perf_counter()
        store.database.pack()
        elapsed = perf_counter() - started
        during = committer.times[first:]
        committer.stop()
        return {
            "beside_alone_per_second": alone,
            "beside_per_second": len(during) / elapsed,
            "beside_share": len(during) / elapsed / alone,
            "beside_longest_ms": max(during, default=elapsed) * MILLISECONDS,
            "beside_pack_s": elapsed,
        }


@contextmanager
def _opened(system: System, path: Path) -> Iterator[PersistentStore]:
    with tempfile.TemporaryDirectory(dir=path.parent) as small:
        store = system.create(Path(small))
        store.stage(range(10))
        store.commit()
        assert isinstance(store, PersistentStore)
        store.database.pack()
        store.close()
    store, _, _ = timed_open(system, path)
    assert isinstance(store, PersistentStore)
    try:
        yield store
    finally:
        store.close()


class _Committer(threading.Thread):
    """Commits one changed object, over and over; `times` has the seconds that each commit took."""

    def __init__(self, store: PersistentStore) -> None:
        super().__init__()
        self._store = store
        self._is_over = False
        self.is_counted = threading.Event()  # never set: for waiting
        self.times: list[float] = []

    def run(self) -> None:
        from persistent.mapping import PersistentMapping

        with self._store.session() as session:
            session.root()["beside"] = side = PersistentMapping(n=0)
            session.commit()
            while not self._is_over:
                side["n"] += 1
                started = perf_counter()
                session.commit()
                self.times.append(perf_counter() - started)

    def stop(self) -> None:
        self._is_over = True
        self.join()
