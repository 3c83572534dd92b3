"""Several threads: a part of the conformance suite. See
`conformance`."""

from __future__ import annotations

import threading
from typing import Any

from objdb.errors import ConflictError
from objdb.ids import NO_TID, next_tid
from objdb.testing.helpers import commit


class ThreadConformance:
    """The tests; for `StorageConformance`, which has the fixtures."""

    def test_readers_beside_writers(self, storage: Any) -> None:
        """Threads that read as of a tid see one whole commit, whatever is being committed."""
        oids = [storage.new_oid() for _ in range(5)]
        tid = commit(storage, dict.fromkeys(oids, (NO_TID, b"0")))
        failures: list[Any] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                before = next_tid(storage.lastTransaction())
                found = {storage.loadBefore(oid, before)[0] for oid in oids}
                if len(found) != 1:
                    failures.append(found)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for i in range(100):
            tid = commit(storage, dict.fromkeys(oids, (tid, b"%d" % i)))
        done.set()
        for reader in readers:
            reader.join()
        assert failures == []

    def test_writers_lose_nothing(self, storage: Any) -> None:
        """Counters added to by several threads, retrying on conflict, end at the right sum."""
        oid = storage.new_oid()
        commit(storage, {oid: (NO_TID, b"0")})

        def add() -> None:
            for _ in range(30):
                while True:
                    record, tid = storage.load(oid)
                    try:
                        commit(storage, {oid: (tid, b"%d" % (int(record) + 1))})
                        break
                    except ConflictError:
                        continue

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert storage.load(oid)[0] == b"120"
