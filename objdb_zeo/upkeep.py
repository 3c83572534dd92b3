"""Packs of a served storage that nobody asks for."""

from __future__ import annotations

from typing import Any

from objdb.database.packing import AutoPack, PackThread
from objdb.storage.packing import PackResult
from objdb.storage.times import pack_moment
from objdb_zeo.protocol.served import Served


class _Packed:
    """A served storage, as what packs a database sees it."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.name = f"the storage {served.name!r}"
        self.storage = served.storage

    def pack(self, *, days: float, progress: Any) -> PackResult:
        """Pack, up to so many days ago."""
        moment = pack_moment(None, days, self.storage.lastTransaction())
        return self._served.pack(moment, progress=progress)


def packing(served: Served, setting: AutoPack) -> PackThread:
    """Return the thread, not started, that packs a storage when *setting* says."""
    return PackThread(_Packed(served), setting)
