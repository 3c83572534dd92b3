"""Packing a FileStorage: a new file is written beside the old one, and takes its place.

    verify   what there is: checksums, and the index     readers and writers go on
    survey   what stays                                  readers and writers go on
    copy     what stays, to <path>.pack                  readers and writers go on
    rounds   what was committed meanwhile, until that    readers and writers go on
             is little
    swap     the rest; then, in this order:              the commit slot is held
             sync of the new file
             <path>.oidx removed          a crash from here on: the index is built again
             (and .index, which is ZODB's)
             <path>.pack ─► <path>        the one moment at which the new file is in place
             <path>.oidx.pack ─► <path>.oidx

What is committed meanwhile may refer to an object that was not going to stay: somebody had it in
memory, and linked it again. Then all is copied once more, that object included.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from objdb.errors import PackError, StorageFailedError, StorageSpaceError
from objdb.ids import NO_TID, Oid, Tid
from objdb.storage.durability import GroupCommit
from objdb.storage.file.format import START
from objdb.storage.file.history import FileHistory
from objdb.storage.file.index import Index
from objdb.storage.file.log import Log, LogTicket
from objdb.storage.file.medium import Medium, Published
from objdb.storage.file.survey import Survey
from objdb.storage.file.transfer import Transfer
from objdb.storage.files import Files, Lock
from objdb.storage.packing import (
    MOST_PLANS,
    Elsewhere,
    Pacer,
    PackResult,
    Progress,
    References,
    no_roots,
    nowhere_else,
    pack_tid,
)

logger = logging.getLogger("objdb.storage.file")

LEFTOVERS = ".pack", ".oidx.pack"
_INDEXES = ".oidx", ".index"  # the second one is ZODB's, which would believe it
_SHORT_TAIL_BYTES = 8 * 1024
_MOST_ROUNDS = 20
_BYTES_BESIDE = 1024 * 1024  # on the disk: for directories, and commits meanwhile
_INDEX_BYTES_EACH = 20


class PackableFile(FileHistory):
    """The part of a FileStorage that packs. `_pack_lock` is held by the one who does."""

    _files: Files
    _group: GroupCommit[LogTicket]
    _checkpoint_lock: threading.Lock
    _pack_lock: threading.Lock
    _lock: Lock | None
    _durability: str
    _since_checkpoint: int
    _packer = 0  # the thread that packs
    _packed_tid: Tid = NO_TID  # since it was opened
    _packed_earlier: Tid | None = None  # before that; looked for when somebody asks

    if TYPE_CHECKING:

        def _use(self, medium: Medium) -> None: ...
        def _join_group(self) -> LogTicket | None: ...
        def _fail(self, what: str) -> None: ...
        def _require_not_failed(self) -> None: ...

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`."""
        if self._packed_earlier is None:
            self._packed_earlier = self._medium.last_packed()
        return max(self._packed_tid, self._packed_earlier)

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> PackResult:
        """See `IStoragePackable`. With *keep_old*, the file as it was is kept as `<path>.old`."""
        if dry_run:
            self._require_open()
        else:
            self._require_writable()
            self._require_not_failed()
        if not self._pack_lock.acquire(blocking=False):
            raise PackError(f"{self._name} is being packed already. Wait until that has ended")
        self._packer = get_ident()
        try:
            medium = self._medium
            pack_to = min(pack_tid(time, medium.published.tid), medium.published.tid)
            begin = medium.position_behind(pack_to)
            if begin == START:
                size, objects = medium.published.end, medium.published.objects
                return PackResult(size, size, objects, objects)
            pacer = Pacer(progress, self._require_open)
            for attempt in range(MOST_PLANS + 1):
                references = referencesf if gc and attempt < MOST_PLANS else None
                survey = Survey(
                    medium, pack_to, begin, references, pacer, elsewhere or nowhere_else
                )
                found = roots or no_roots
                survey.run(medium.published.end, found())
                if dry_run:
                    old = medium.published
                    size = min(old.end, START + survey.size + old.end - begin)
                    return PackResult(old.end, size, old.objects, survey.objects)
                self._require_space(survey)
                result = self._copy(survey, found, pacer, keep_old)
                if result is not None:
                    return result
            raise PackError(
                f"{self._name} was not packed, since revisions that were to go were brought back "
                "meanwhile, again and again. Pack to an earlier moment"
            )
        finally:
            self._packer = 0
            self._pack_lock.release()

    def _end_work(self, seconds: float) -> None:
        if self._packer != get_ident() and self._pack_lock.acquire(timeout=seconds):
            self._pack_lock.release()

    def _require_space(self, survey: Survey) -> None:
        """Raise `StorageSpaceError` unless the new file will find place beside the old one."""
        published = self._medium.published
        later = published.end - survey.begin
        needed = min(int(survey.size * 1.1), survey.begin) + later + _BYTES_BESIDE
        needed += _INDEX_BYTES_EACH * published.objects
        free = self._files.free_space(self._name)
        if free < needed:
            raise StorageSpaceError(
                f"packing {self._name} takes about {needed:,} bytes for the new file beside the "
                f"old one, but {free:,} are free. Make space, and pack again",
                path=self._name, needed=needed, free=free,
            )

    def _copy(
        self, survey: Survey, roots: Callable[[], Iterable[Oid]], pacer: Pacer, keep_old: bool
    ) -> PackResult | None:
        """Write the new file and put it in place; None if more is reached than was copied."""
        remove_leftovers(self._files, self._name)
        target = self._new_medium()
        is_used = False
        try:
            transfer = Transfer(self._medium, target, pacer)
            transfer.copy_what_stays(survey.stays, survey.orphans, survey.begin, survey.pack_to)
            if survey.reach_all(roots()) or self._catch_up(survey, transfer, pacer):
                return None
            with self._places_lock, self._slot.held(), pacer.without_rest():
                result = self._swap(survey, transfer, target, keep_old)
            is_used = result is not None
            return result
        finally:
            if not is_used:
                target.close()
                remove_leftovers(self._files, self._name)

    def _new_medium(self) -> Medium:
        files, path = self._files, self._name
        file = files.open(path + ".pack", "p")
        try:
            files.keep_mode(path + ".pack", path)
            index_file = files.open(path + ".oidx.pack", "p")
            try:
                files.keep_mode(path + ".oidx.pack", path)
                return Medium(file, Log(file), Index(index_file, writable=True), is_shared=False)
            except BaseException:
                index_file.close()
                raise
        except BaseException:
            file.close()
            raise

    def _catch_up(self, survey: Survey, transfer: Transfer, pacer: Pacer) -> bool:
        """Copy what is committed meanwhile, until little is left, and make it durable; return
        whether more is reached than was copied."""
        medium = self._medium
        for _ in range(_MOST_ROUNDS):
            end = medium.published.end
            length = end - transfer.copied
            if survey.look_at_later(end):
                return True
            transfer.copy_later(end)
            pacer.report("follow", transfer.copied, medium.published.end)
            if length <= _SHORT_TAIL_BYTES:
                break
            pacer.hurry()  # others must not commit faster than this follows
        position = transfer.finish()
        synced = self._durability == "sync"
        transfer.target.index.write_checkpoint(
            position, transfer.tid, self._max_oid, transfer.objects, synced=synced
        )
        return False

    def _swap(
        self, survey: Survey, transfer: Transfer, target: Medium, keep_old: bool
    ) -> PackResult | None:
        """Copy the rest and put the new file in place; the slot is held. None if more is reached
        than was copied."""
        ticket = self._join_group()
        if ticket is not None:
            self._group.wait(ticket)
        self._require_open()
        self._require_not_failed()
        medium = self._medium
        if survey.look_at_later(medium.end):
            return None
        transfer.copy_later(medium.end)
        target.end = transfer.finish()
        old = medium.published
        with self._checkpoint_lock:
            self._put_in_place(medium, target, keep_old)
            self._note_oid(transfer.max_oid.to_bytes(8, "big"))
            target.publish(Published(target.end, old.tid, self._max_oid, transfer.objects))
            target.index.note_synced(target.end)
            self._packed_tid = max(self._packed_tid, survey.pack_to)
            self._since_checkpoint = 0
            self._use(target)
        return PackResult(old.end, target.end, old.objects, transfer.objects)

    def _put_in_place(self, medium: Medium, target: Medium, keep_old: bool) -> None:
        """Rename the files. When this raises OSError, the old file is the one in place."""
        files, path = self._files, self._name
        if not (files.exists(path) and medium.file.is_in_place()):
            raise PackError(
                f"{path} was removed, or replaced by another file, while it was open: the packed "
                "one is not put there. Copy what is open to a new storage (copyTransactionsFrom) "
                "before it is closed"
            )
        if self._lock is not None:
            self._lock.hold(path + ".pack")
        if keep_old:
            medium.log.truncate(medium.end)
            files.link(path, path + ".old")
        for index in _INDEXES:
            if files.exists(path + index):
                files.remove(path + index)
        try:
            files.rename(path + ".pack", path)
        except OSError as error:
            if medium.file.is_in_place():
                raise
            self._fail(f"the packed file may not be in place after a loss of power: {error}")
            raise StorageFailedError(
                f"{path} was packed, but the disk did not confirm that the new file is in place "
                f"({error}), so the storage commits no more. Close it, see to the disk, and open "
                "it again"
            ) from error
        target.file.path = path
        if self._lock is not None:
            self._lock.settle()
        try:
            files.rename(path + ".oidx.pack", path + ".oidx")
        except OSError as error:
            logger.warning("%s: the index is built again when it is opened next: %s", path, error)
        else:
            target.index.renamed(path + ".oidx")


def remove_leftovers(files: Files, path: str) -> None:
    """Remove what a pack that did not end has left beside the file at *path*."""
    for ending in LEFTOVERS:
        if files.exists(path + ending):
            files.remove(path + ending)

