"""Seeing what another process commits to a file that is open for reading only, and packs.

    poll ─► the file is still in its place: what follows in the log is entered
         ─► another one is: it is opened, and nothing is known of what changed
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from objdb.errors import CorruptedDataError
from objdb.ids import Tid
from objdb.storage.file.history import FileHistory
from objdb.storage.file.medium import Medium, Published
from objdb.storage.file.recovery import next_transaction


class FollowingFile(FileHistory):
    """The part of a FileStorage that follows another process. `_poll_lock` is held by the thread
    that takes in what is new."""

    _poll_lock: threading.Lock
    _decided: Tid
    _db: Any
    _packed_tid: Tid

    if TYPE_CHECKING:

        def _open_medium(self, path: str) -> Medium: ...
        def _use(self, medium: Medium) -> None: ...

    def _open_current(self, path: str) -> Medium:
        """Open a log and its index beside the process that writes them, and that may have packed
        them between the one and the other."""
        for attempts_left in range(9, -1, -1):
            try:
                medium = self._open_medium(path)
            except CorruptedDataError:
                if not attempts_left:
                    raise
                continue
            if medium.file.is_in_place():
                break
            medium.close()
        return medium

    def poll(self) -> None:
        """Take in what another process has committed since, when open for reading only."""
        if not self._is_read_only:
            return
        with self._poll_lock:
            if not self._medium.file.is_in_place():
                self._open_replaced()
            self._read_on()

    def _open_replaced(self) -> None:
        """Go on in the file that a pack has put in the place of this one.

        What was committed before the pack and not seen here may be gone from the log, so nothing
        is known of what changed.
        """
        medium = self._open_current(self._name)
        if medium.published.tid < self._last_tid:
            medium.close()
            raise CorruptedDataError(
                f"{self._name} was replaced by a file that ends with an earlier transaction. "
                "Close it and open it again", path=self._name,
            )
        self._packed_tid = medium.published.tid
        self._use(medium)
        if self._db is not None:  # both before and after others can see that there is more
            self._db.invalidateCache()
        self._last_tid = self._decided = medium.published.tid
        if self._db is not None:
            self._db.invalidateCache()

    def _read_on(self) -> None:
        medium = self._medium
        log, size = medium.log, medium.file.size()
        while True:
            try:
                header = next_transaction(log, medium.end, size, self._last_tid)
                if header is None:
                    return
                records = list(log.records(header))
            except CorruptedDataError:
                return  # the writer is in the middle of it
            positions = {record.oid: record.place for record in records}
            versions = {record.oid: record.version for record in records}
            # The writer may have entered them into the index that we share.
            new = len({record.oid for record in records if not record.previous})
            medium.reader.end = header.end  # before the index leads there
            medium.index.set_many(positions, header.tid)
            medium.versions.update(versions, positions, header.tid)
            if self._db is not None:
                self._db.invalidate(header.tid, list(positions))
            medium.end = header.end
            objects = medium.published.objects + new
            self._publish_state(medium, header.end, header.tid, objects)

    def _publish_state(self, medium: Medium, end: int, tid: Tid, objects: int) -> None:
        medium.publish(Published(end, tid, self._max_oid, objects))
        self._last_tid = tid
