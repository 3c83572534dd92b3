"""Following another process that commits to, and packs, a file that is open read-only.

    poll ─► the file is still at its path: the new transactions are entered
         ─► it was replaced: the new file is opened, and all caches are invalidated
"""

from __future__ import annotations

import threading
import time
from typing import Any

from objdb.errors import CorruptedDataError
from objdb.storage.file.generation import Generation
from objdb.storage.file.open_file import OpenFile
from objdb.storage.file.recovery import next_transaction, tail_problem
from objdb.storage.foreign import database_of

_LOOKS_AT_TAIL, _BETWEEN_LOOKS_SECONDS = 4, 0.01


def open_beside_writer(engine: OpenFile) -> Generation:
    """Open a log and its index while another process writes them, and may pack them between the
    two opens."""
    for attempts_left in range(9, -1, -1):
        try:
            generation = engine.open_generation()
        except CorruptedDataError:
            if not attempts_left:
                raise
            continue
        if generation.file.is_in_place():
            break
        generation.close()
    return generation


class Follower:
    """Takes in, for *engine*, the commits of another process. `db`, if set, receives the
    invalidations. The thread that takes in transactions holds `_lock`."""

    def __init__(self, engine: OpenFile) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.db: Any = database_of(None)

    def poll(self) -> None:
        """Take in the new commits of another process."""
        with self._lock:
            if not self._engine.generation.file.is_in_place():
                self._open_replaced()
            self._read_on()

    def _open_replaced(self) -> None:
        """Go on in the file by which a pack has replaced this one.

        Transactions committed before the pack and not seen here may be gone from the log, so the
        changed objects are not known.
        """
        engine = self._engine
        generation = open_beside_writer(engine)
        if generation.published.tid < engine.visibility.tid:
            generation.close()
            raise CorruptedDataError(
                f"{engine.name} was replaced by a file that ends with an earlier transaction. "
                "Close and reopen it", path=engine.name,
            )
        engine.note_packed(generation.published.tid)
        engine.use(generation)
        self.db.invalidateCache()  # both before and after the new transactions are visible
        engine.visibility.show(generation.published.tid)
        self.db.invalidateCache()

    def _read_on(self) -> None:
        engine = self._engine
        generation = engine.generation
        log, size = generation.log, generation.file.size()
        while True:
            try:
                header = next_transaction(log, generation.end, size, engine.visibility.tid)
                if header is None:
                    return
                records = list(log.records(header))
            except CorruptedDataError:
                return  # the writer is in the middle of it
            positions = {record.oid: record.place for record in records}
            versions = {record.oid: record.version for record in records}
            # The writer may have entered them into the shared index.
            new = len({record.oid for record in records if not record.previous})
            generation.reader.end = header.end  # before the index refers to it
            generation.index.set_many(positions, header.tid)
            generation.versions.update(versions, positions, header.tid)
            self.db.invalidate(header.tid, list(positions))
            generation.end = header.end
            engine.show(generation, header.end, header.tid, generation.published.objects + new)

    def tail_problem(self) -> str | None:
        """Return what is wrong behind the last transaction, where nobody has recovered that; not
        what the other process is just writing, which is something else a moment later."""
        engine, found = self._engine, ""
        for _ in range(_LOOKS_AT_TAIL):
            self.poll()
            seen = engine.generation.published
            problem = tail_problem(engine.generation.log, seen.end, seen.tid)
            if problem is None:
                return None
            found = problem
            time.sleep(_BETWEEN_LOOKS_SECONDS)
        return found
