"""Packing a database: on request, or automatically when it has grown or time has passed.

    db.pack(days=7) ─► storage.pack(time, references, roots)
    AutoPack ─► a thread that checks periodically whether it is time
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from objdb.errors import ObjdbError, PackError, ReadOnlyError, Unsupported, UsageError
from objdb.ids import NO_TID, Oid, Tid, next_tid
from objdb.interfaces import IStorageIteration, IStoragePackable
from objdb.records.references import ReferenceScanner, all_references
from objdb.storage.foreign import pack_storage, provides
from objdb.storage.packing import PackResult, Progress
from objdb.storage.times import pack_moment

logger = logging.getLogger("objdb.database")

_DAY_SECONDS = 86400
_LOOK_SECONDS = 60.0


@dataclass(frozen=True)
class AutoPack:
    """When a database packs itself.

    *growth_bytes*: when it has grown by so much, since it was opened or packed; *every_days*:
    when so many days have passed since then. *days*: how many days of history stay.
    """

    days: float = 1
    growth_bytes: int | None = None
    every_days: float | None = None

    def __post_init__(self) -> None:
        if self.growth_bytes is None and self.every_days is None:
            raise UsageError("autopack needs growth_bytes, or every_days, or both")
        for name in ("days", "growth_bytes", "every_days"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is None and name != "days":
                continue
            if not is_number or not 0 <= value < math.inf or (value == 0 and name != "days"):
                raise UsageError(f"autopack: {name} is {value!r}; it is a number greater than 0")

    @classmethod
    def from_text(cls, text: str) -> AutoPack:
        """Return the setting that a URI has, as `growth_bytes:100000000,days:7`. ValueError or
        `UsageError` for text that is not valid."""
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, colon, value = part.partition(":")
            if not colon or name in values:
                raise ValueError("write growth_bytes:NUMBER, every_days:NUMBER, days:NUMBER")
            values[name] = int(value) if name == "growth_bytes" else float(value)
        setting = autopack_of(values)
        assert setting is not None
        return setting


def autopack_of(setting: Any) -> AutoPack | None:
    """Return what the argument *autopack* of a database asks for; `UsageError` for nonsense."""
    if setting is None or isinstance(setting, AutoPack):
        return setting
    if not isinstance(setting, dict):
        raise UsageError(f"autopack is {setting!r}; give an AutoPack, or a dict of its arguments")
    try:
        return AutoPack(**setting)
    except TypeError:
        names = ", ".join(AutoPack.__dataclass_fields__)
        given = ", ".join(map(repr, setting))
        raise UsageError(f"autopack has {given}; it knows {names}") from None


class DatabasePack:
    """The part of `DB` that packs."""

    name: str
    database_name: str
    databases: dict[str, Any]
    storage: Any
    _require_usable: Callable[[], None]

    def pack(
        self, t: Any = None, days: float = 0, *, gc: bool = True, progress: Progress | None = None,
        keep_old: bool = False, dry_run: bool = False,
    ) -> PackResult:
        """Remove history before a moment, and objects that are not reachable any more.

        *t*: the moment, as seconds since 1970, a tid, a datetime with a time zone, or one in ISO
        form (default: now, as is any in the future); *days*: so many days before it. Of each
        object, the revision that was current then stays, and all later ones. With *gc*, what
        could not be reached from the root then goes, unless something later changes it or refers
        to it, or an object of another database of the group does. Weak references keep nothing.

        *progress*: called with (phase, done, total); raising ends the pack and leaves everything
        as it was. *keep_old*: keep the old file. *dry_run*: change nothing, and return about what
        there would be. Others go on reading and committing meanwhile.

        Returns sizes and numbers of objects before and after. `PackError` while another pack is
        under way, `StorageSpaceError`, `ReadOnlyError`, `Unsupported`, `UsageError`.
        """
        self._require_usable()
        if not provides(self.storage, IStoragePackable):
            raise Unsupported(f"{self.name} is a storage that cannot be packed")
        if self.storage.isReadOnly() and not dry_run:
            raise ReadOnlyError(f"{self.name} is open for reading only: it cannot be packed")
        moment = pack_moment(t, days, self.storage.lastTransaction())
        return pack_storage(
            self.storage, moment, ReferenceScanner(), gc, progress=progress, keep_old=keep_old,
            dry_run=dry_run, roots=_RootsElsewhere(self),
        )


def open_among(databases: dict[str, Any]) -> dict[str, Any]:
    """Return the databases of a group that are open."""
    return {name: db for name, db in databases.items() if not db._is_closed}


class _RootsElsewhere:
    """Finds what the other databases of a group refer to in this one. Called again, it looks
    only at what they have committed since, and returns all."""

    def __init__(self, db: Any) -> None:
        self._name = db.database_name
        self._others = [other for other in open_among(db.databases).values() if other is not db]
        self._seen: dict[int, Tid] = {}
        self._found: set[Oid] = set()

    def __call__(self) -> Iterable[Oid]:
        name = self._name.encode()
        for other in self._others:
            if not provides(other.storage, IStorageIteration):
                continue
            start = self._seen.get(id(other), NO_TID)
            for transaction in other.storage.iterator(next_tid(start)):
                self._seen[id(other)] = transaction.tid
                for revision in transaction:
                    if revision.data and name in revision.data:
                        self._found.update(self._references(revision.data))
        return self._found

    def _references(self, record: bytes) -> Iterable[Oid]:
        for reference in all_references(record):
            if reference.database == self._name and not reference.weak:
                yield reference.oid


class PackThread:
    """Packs *db* when *setting* says, in a thread of its own.

    `_wake` is set when it has to end.
    """

    def __init__(self, db: Any, setting: AutoPack) -> None:
        self._db = db
        self._setting = setting
        self.look_seconds = _LOOK_SECONDS
        self._wake = threading.Event()
        self._size = db.storage.getSize()
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"{db.name} autopack", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while not self._wake.wait(self.look_seconds):
            self.look()

    def is_due(self) -> bool:
        """Whether it is time to pack."""
        growth, every = self._setting.growth_bytes, self._setting.every_days
        has_grown = growth is not None and self._db.storage.getSize() - self._size >= growth
        days = (time.monotonic() - self._since) / _DAY_SECONDS
        return has_grown or (every is not None and days >= every)

    def look(self) -> bool:
        """Pack if it is time; return whether that was done."""
        if not self.is_due():
            return False
        try:
            self._db.pack(days=self._setting.days, progress=self._require_wanted)
        except _Stopped:
            return False
        except PackError:  # another thread is packing
            pass
        except (ObjdbError, OSError) as error:
            if not self._wake.is_set():
                logger.warning("%s could not be packed: %s", self._db.name, error)
        self._size = self._db.storage.getSize()
        self._since = time.monotonic()
        return True

    def _require_wanted(self, phase: str, done: int, total: int) -> None:
        if self._wake.is_set():
            raise _Stopped

    def close(self) -> None:
        """End a pack that is under way, and the thread."""
        self._wake.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join()


class _Stopped(Exception):
    """The database is being closed."""
