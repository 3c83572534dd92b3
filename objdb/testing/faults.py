"""A file system in memory that fails on command, and shows the disk after any crash.

Every change is an *operation* in a list. A test runs a workload once, counts the operations, and
then for each n asks `crashed(n, …)` what a disk could look like after power was lost there:

    op 0 ── op 1 ── sync ── op 3 ── op 4 ── op 5 ✂
    └─── durable ──────┘   └ lost, kept, partly kept, reordered, the last one torn

Memory maps are watched: what changed in them since the last operation becomes operations too,
one for each sector of 512 bytes, since the kernel can write them at any time.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

SECTOR = 512


class Operation(NamedTuple):
    """One change: `kind` is write, truncate, allocate, sync, create, rename, link or remove."""

    kind: str
    path: str
    position: int = 0
    data: bytes = b""
    to: str = ""


SURVIVALS = ("lost", "kept", "partly", "reordered", "torn", "sectors")


class FaultyFiles:
    """A `objdb.storage.files.Files` in memory.

    `operations` lists what was done. `fail` maps the number of an operation to the errno its
    call raises instead of doing it; with `fail_after`, everything from that number on fails.
    """

    def __init__(self, contents: dict[str, bytes] | None = None) -> None:
        self.contents = {path: bytearray(data) for path, data in (contents or {}).items()}
        self.operations: list[Operation] = []
        self.fail: dict[int, int] = {}
        self.fail_after: tuple[int, int] | None = None
        self.locked: dict[str, str] = {}
        self.free_bytes = 1 << 40
        self._initial = {path: bytes(data) for path, data in self.contents.items()}
        self._mapped: dict[str, bytes] = {}

    # -- the seam

    def open(self, path: str, mode: str) -> FaultyFile:
        if path not in self.contents:
            if mode not in "cp":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.do(Operation("create", path))
            self.contents[path] = bytearray()
        return FaultyFile(self, path)

    def exists(self, path: str) -> bool:
        return path in self.contents

    def is_directory(self, path: str) -> bool:
        return False

    def rename(self, old: str, new: str) -> None:
        self.do(Operation("rename", old, to=new))
        self.contents[new] = self.contents.pop(old)
        self._mapped.pop(new, None)
        if old in self._mapped:
            self._mapped[new] = self._mapped.pop(old)

    def remove(self, path: str) -> None:
        self.do(Operation("remove", path))
        del self.contents[path]
        self._mapped.pop(path, None)

    def link(self, path: str, new: str) -> None:
        self.do(Operation("link", path, to=new))
        self.contents[new] = self.contents[path]

    def free_space(self, path: str) -> int:
        return self.free_bytes

    def real_path(self, path: str) -> str:
        return path

    def keep_mode(self, path: str, model: str) -> None:
        """There are no permissions."""

    def lock(self, path: str, content: str) -> Any:
        if path in self.locked:
            return self.locked[path]
        self.locked[path] = content
        return _Lock(self.locked, path)

    # -- operations

    def do(self, operation: Operation) -> None:
        """Note an operation that is about to be done, or fail as told."""
        self._note_mapped_changes()
        number = len(self.operations)
        code = self.fail.get(number)
        if code is None and self.fail_after is not None and number >= self.fail_after[0]:
            code = self.fail_after[1]
        if code is not None:
            # It is counted, but does nothing.
            self.operations.append(Operation("failed", operation.path))
            raise OSError(code, os.strerror(code), operation.path)
        self.operations.append(operation)

    def watch(self, path: str) -> None:
        """Note changes of a file that are made through a map."""
        self._mapped.setdefault(path, bytes(self.contents[path]))

    def _note_mapped_changes(self) -> None:
        for path, before in self._mapped.items():
            now = self.contents.get(path)
            if now is None or now == before:
                continue
            for start in range(0, len(now), SECTOR):
                sector = bytes(now[start : start + SECTOR])
                if sector != before[start : start + SECTOR]:
                    self.operations.append(Operation("write", path, start, sector))
            self._mapped[path] = bytes(now)

    def forget_changes(self, path: str) -> None:
        """Take the file as it is: its change was noted as an operation."""
        if path in self._mapped:
            self._mapped[path] = bytes(self.contents[path])

    # -- crashes

    def crashed(self, count: int, survival: str, seed: int = 0) -> FaultyFiles:
        """Return a disk as it may be after power was lost behind the first *count* operations.

        What was synced is there; of what was not, by *survival*: nothing (`"lost"`), everything
        (`"kept"`), some operations in order (`"partly"`) or out of order (`"reordered"`),
        everything but the rest of the last write (`"torn"`), or some sectors of each write
        (`"sectors"`).
        """
        chance = random.Random(f"{seed} {count} {survival}")
        disk = {path: bytearray(data) for path, data in self._initial.items()}
        waiting: list[Operation] = []
        for operation in self.operations[:count]:
            if operation.kind in ("write", "truncate", "allocate"):
                waiting.append(operation)
            elif operation.kind == "sync":
                for earlier in waiting:
                    if earlier.path == operation.path:
                        _apply(disk, earlier)
                waiting = [o for o in waiting if o.path != operation.path]
            else:
                _apply(disk, operation)
                waiting = _after_renaming(waiting, operation)
        for operation in _surviving(waiting, survival, chance):
            _apply(disk, operation)
        return FaultyFiles({path: bytes(data) for path, data in disk.items()})


def _after_renaming(waiting: list[Operation], operation: Operation) -> list[Operation]:
    """Return the operations that are not durable: with the new name, and without those on a file
    that is gone."""
    gone = {"rename": operation.to, "remove": operation.path}.get(operation.kind)
    waiting = [o for o in waiting if o.path != gone]
    if operation.kind != "rename":
        return waiting
    return [
        o._replace(path=operation.to) if o.path == operation.path else o for o in waiting
    ]


def _surviving(
    waiting: list[Operation], survival: str, chance: random.Random
) -> list[Operation]:
    if survival == "lost":
        return []
    if survival == "kept":
        return waiting
    if survival == "torn":
        if waiting and waiting[-1].kind == "write":
            last = waiting[-1]
            cut = chance.randrange(len(last.data) + 1)
            return [*waiting[:-1], last._replace(data=last.data[:cut])]
        return waiting
    if survival == "sectors":
        waiting = [piece for operation in waiting for piece in _sectors(operation)]
    kept = [operation for operation in waiting if chance.random() < 0.5]
    if survival == "reordered":
        chance.shuffle(kept)
    return kept


def _sectors(operation: Operation) -> list[Operation]:
    """Split a write at the ends of sectors."""
    if operation.kind != "write":
        return [operation]
    start, data = operation.position, operation.data
    pieces = []
    while data:
        size = SECTOR - start % SECTOR
        pieces.append(operation._replace(position=start, data=data[:size]))
        start, data = start + size, data[size:]
    return pieces


def _apply(disk: dict[str, bytearray], operation: Operation) -> None:
    path, position = operation.path, operation.position
    if operation.kind == "create":
        disk[path] = bytearray()
    elif operation.kind == "rename":
        disk[operation.to] = disk.pop(path)
    elif operation.kind == "link":
        disk[operation.to] = disk[path]
    elif operation.kind == "remove":
        disk.pop(path, None)
    elif operation.kind == "write":
        _write(disk[path], operation.data, position)
    elif operation.kind == "truncate":
        _resize(disk[path], position)
    elif operation.kind == "allocate":
        _resize(disk[path], max(position, len(disk[path])))


def _write(content: bytearray, data: bytes, position: int) -> None:
    if position > len(content):
        _resize(content, position)
    content[position : position + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


class FaultyFile:
    """An open file of `FaultyFiles`."""

    def __init__(self, files: FaultyFiles, path: str) -> None:
        self.path = path
        self._files = files
        self._content = files.contents[path]
        self._is_closed = False
        self.read_at: Callable[[int, int], bytes] = self._read_at

    def _require_open(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)

    def _read_at(self, size: int, position: int) -> bytes:
        self._require_open()
        return bytes(self._content[position : position + size])

    def _do(self, kind: str, position: int, data: bytes = b"") -> None:
        self._require_open()
        self._files.do(Operation(kind, self.path, position, data))

    def write_at(self, data: Any, position: int) -> None:
        self._do("write", position, bytes(data))
        _write(self._content, bytes(data), position)
        self._files.forget_changes(self.path)

    def truncate(self, size: int) -> None:
        self._do("truncate", size)
        _resize(self._content, size)
        self._files.forget_changes(self.path)

    def allocate(self, size: int) -> None:
        if size > len(self._content):
            self._do("allocate", size)
            _resize(self._content, size)
            self._files.forget_changes(self.path)

    def sync(self) -> None:
        self._do("sync", 0)

    def size(self) -> int:
        return len(self._content)

    def is_in_place(self) -> bool:
        return self._files.contents.get(self.path, self._content) is self._content

    def map(self, size: int, *, read_only: bool = False) -> Any:
        if not read_only:
            self._files.watch(self.path)
        return self._content

    def close(self) -> None:
        """Refuse everything from now on."""
        self._is_closed = True


class _Lock:
    def __init__(self, locked: dict[str, str], path: str) -> None:
        self._locked = locked
        self._path = path

    def hold(self, path: str) -> bool:
        return True

    def settle(self) -> None:
        """There is nothing but the lock file."""

    def release(self) -> None:
        self._locked.pop(self._path, None)
