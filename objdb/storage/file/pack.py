"""Packing a FileStorage: a new file is written beside the old one, and replaces it.

    verify   checksums, and the index                    readers and writers go on
    mark     the records that stay                       readers and writers go on
    copy     them to <path>.pack                         readers and writers go on
    rounds   transactions committed meanwhile, until     readers and writers go on
             few are left
    swap     the rest; then, in this order:              the commit slot is held
             sync of the new file
             <path>.oidx removed          after a crash from here on the index is rebuilt
             (and .index, which is ZODB's)
             <path>.pack ─► <path>        at this moment the pack takes effect
             <path>.oidx.pack ─► <path>.oidx

A transaction committed meanwhile may refer to an object marked as garbage: a program had it in
memory, and linked it again. Then everything is copied again, including that object.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from objdb.errors import PackError, StorageFailedError, StorageSpaceError
from objdb.storage.file.format import START
from objdb.storage.file.generation import Generation, Published
from objdb.storage.file.index import Index
from objdb.storage.file.log import Log
from objdb.storage.file.mark import Marking
from objdb.storage.file.open_file import OpenFile
from objdb.storage.file.rewrite import Rewriting
from objdb.storage.files import Files
from objdb.storage.packing import MOST_PLANS, Pacer, PackOptions, PackResult, pack_tid

logger = logging.getLogger("objdb.storage.file")

LEFTOVERS = ".pack", ".oidx.pack"
_INDEXES = ".oidx", ".index"  # the second one is ZODB's, which would trust it
_SHORT_TAIL_BYTES = 8 * 1024
_MOST_ROUNDS = 20
_BYTES_BESIDE = 1024 * 1024  # spare disk space: for directories, and commits meanwhile
_INDEX_BYTES_EACH = 20


class FilePack:
    """One pack of *engine*'s file as *options* say; inside `alone()` no other thread changes it.
    With `keep_old`, the old file is kept as `<path>.old`."""

    def __init__(
        self, engine: OpenFile, options: PackOptions,
        alone: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._engine = engine
        self._options = options
        self._alone = alone
        self._pacer = Pacer(options.progress, options.require_wanted)
        self._is_used = False  # the new file

    def run(self) -> PackResult:
        """Pack, or estimate the result of a pack."""
        options, generation, pacer = self._options, self._engine.generation, self._pacer
        pack_to = min(pack_tid(options.moment, generation.published.tid), generation.published.tid)
        begin = generation.position_behind(pack_to)
        if begin == START:
            size, objects = generation.published.end, generation.published.objects
            return PackResult(size, size, objects, objects)
        for attempt in range(MOST_PLANS + 1):
            collects = options.gc and attempt < MOST_PLANS
            references = options.references if collects else None
            marking = Marking(generation, pack_to, begin, references, pacer, options.elsewhere)
            marking.run(generation.published.end, options.roots())
            if options.dry_run:
                old = generation.published
                size = min(old.end, START + marking.size + old.end - begin)
                return PackResult(old.end, size, old.objects, marking.objects)
            self._require_space(marking)
            result = self._copy(marking)
            if result is not None:
                return result
        raise PackError(
            f"{self._engine.name} was not packed, since revisions to be removed were restored "
            "meanwhile, again and again. Pack to an earlier moment"
        )

    def _require_space(self, marking: Marking) -> None:
        """Raise `StorageSpaceError` unless the new file fits on the disk beside the old one."""
        published = self._engine.generation.published
        later = published.end - marking.begin
        needed = min(int(marking.size * 1.1), marking.begin) + later + _BYTES_BESIDE
        needed += _INDEX_BYTES_EACH * published.objects
        free = self._engine.files.free_space(self._engine.name)
        if free < needed:
            raise StorageSpaceError(
                f"packing {self._engine.name} needs about {needed:,} bytes for the new file beside "
                f"the old one, but {free:,} are free. Free disk space and pack again",
                path=self._engine.name, needed=needed, free=free,
            )

    def _copy(self, marking: Marking) -> PackResult | None:
        """Write the new file and put it in place; None if more is reachable than was copied."""
        engine, pacer = self._engine, self._pacer
        remove_leftovers(engine.files, engine.path)
        target = self._new_generation()
        try:
            rewriting = Rewriting(engine.generation, target, pacer)
            rewriting.copy_what_stays(
                marking.stays, marking.orphans, marking.begin, marking.pack_to
            )
            if marking.reach_all(self._options.roots()) or self._catch_up(marking, rewriting):
                return None
            with self._alone(), pacer.without_rest():
                result = self._swap(marking, rewriting, target)
            return result
        finally:
            if not self._is_used:
                target.close()
                remove_leftovers(engine.files, engine.path)

    def _new_generation(self) -> Generation:
        files, path = self._engine.files, self._engine.path
        file = files.open(path + ".pack", "p")
        try:
            files.keep_mode(path + ".pack", path)
            index_file = files.open(path + ".oidx.pack", "p")
            try:
                files.keep_mode(path + ".oidx.pack", path)
                index = Index(index_file, writable=True)
                return Generation(file, Log(file), index, is_shared=False)
            except BaseException:
                index_file.close()
                raise
        except BaseException:
            file.close()
            raise

    def _catch_up(self, marking: Marking, rewriting: Rewriting) -> bool:
        """Copy transactions committed meanwhile, until few are left, and make them durable; return
        whether more is reachable than was copied."""
        generation, pacer = self._engine.generation, self._pacer
        for _ in range(_MOST_ROUNDS):
            end = generation.published.end
            length = end - rewriting.copied
            if marking.look_at_later(end):
                return True
            rewriting.copy_later(end)
            pacer.report("follow", rewriting.copied, generation.published.end)
            if length <= _SHORT_TAIL_BYTES:
                break
            pacer.hurry()  # other threads must not commit faster than this copies
        position = rewriting.finish()
        synced = self._engine.durability == "sync"
        rewriting.target.index.write_checkpoint(
            position, rewriting.tid, self._engine.max_oid, rewriting.objects, synced=synced
        )
        return False

    def _swap(
        self, marking: Marking, rewriting: Rewriting, target: Generation
    ) -> PackResult | None:
        """Copy the rest and put the new file in place; inside `alone()`. None if more is reachable
        than was copied."""
        engine = self._engine
        generation = engine.generation
        if marking.look_at_later(generation.end):
            return None
        rewriting.copy_later(generation.end)
        target.end = rewriting.finish()
        old = generation.published
        with engine.checkpoint_lock:
            try:
                self._put_in_place(generation, target)
                self._take_over(marking, rewriting, target)
            except BaseException as error:
                # If the disk did not confirm it, neither file takes further commits.
                if not isinstance(error, StorageFailedError) and self._is_in_place(target):
                    self._take_over(marking, rewriting, target)  # or the remaining steps
                raise
        return PackResult(old.end, target.end, old.objects, rewriting.objects)

    def _is_in_place(self, target: Generation) -> bool:
        """Whether the new file has replaced the old one."""
        path = self._engine.path
        before, target.file.path = target.file.path, path
        if self._engine.files.exists(path) and target.file.is_in_place():
            return True
        target.file.path = before
        return False

    def _take_over(self, marking: Marking, rewriting: Rewriting, target: Generation) -> None:
        """Use the new file, which is in place. Repeats interrupted steps."""
        engine, files, path = self._engine, self._engine.files, self._engine.path
        self._is_used = True
        target.file.path = path
        if engine.lock is not None:
            engine.lock.settle()
        try:
            if files.exists(path + ".oidx.pack"):
                files.rename(path + ".oidx.pack", path + ".oidx")
        except OSError as error:
            logger.warning("%s: the index is rebuilt when it is opened next: %s", path, error)
        else:
            target.index.renamed(path + ".oidx")
        engine.max_oid = max(engine.max_oid, rewriting.max_oid)
        tid = engine.visibility.tid
        target.publish(Published(target.end, tid, engine.max_oid, rewriting.objects))
        target.index.note_synced(target.end)
        engine.note_packed(marking.pack_to)
        engine.since_checkpoint = 0
        engine.use(target)

    def _put_in_place(self, generation: Generation, target: Generation) -> None:
        """Rename the files. If this raises OSError, the old file is still in place."""
        engine = self._engine
        files, path = engine.files, engine.path
        if not (files.exists(path) and generation.file.is_in_place()):
            raise PackError(
                f"{path} was removed, or replaced by another file, while it was open, so it was "
                "not packed. Copy the open storage to a new one (copyTransactionsFrom) before "
                "closing it"
            )
        if engine.lock is not None:
            engine.lock.hold(path + ".pack")
        if self._options.keep_old:
            generation.log.truncate(generation.end)
            files.link(path, path + ".old")
        for index in _INDEXES:
            if files.exists(path + index):
                files.remove(path + index)
        try:
            files.rename(path + ".pack", path)
        except OSError as error:
            if generation.file.is_in_place():
                raise
            engine.is_failed = True
            raise StorageFailedError(
                "it was packed, but the disk did not confirm that the new file is in place "
                f"({error})"
            ) from error


def remove_leftovers(files: Files, path: str) -> None:
    """Remove the files of an unfinished pack beside the file at *path*."""
    for ending in LEFTOVERS:
        if files.exists(path + ending):
            files.remove(path + ending)

