"""The part of the file engine that packs, copies and the follower use."""

from __future__ import annotations

import threading
from typing import Protocol

from objdb.ids import Tid
from objdb.storage.durability import Durability
from objdb.storage.engine import Visibility
from objdb.storage.file.generation import Generation
from objdb.storage.files import Files, Lock


class OpenFile(Protocol):
    """The open file *path*: its log and index are the `generation`. `max_oid` is the largest known
    oid, `since_checkpoint` the number of records since the last checkpoint of the index;
    `checkpoint_lock` is held during a checkpoint, or while the index is replaced."""

    name: str
    path: str
    files: Files
    durability: Durability
    generation: Generation
    visibility: Visibility
    lock: Lock | None
    max_oid: int
    is_failed: bool
    since_checkpoint: int
    checkpoint_lock: threading.Lock

    def open_generation(self) -> Generation:
        """Open the log and its index, and recover after a crash."""

    def use(self, generation: Generation) -> None:
        """Read and write *generation* from now on."""

    def show(self, generation: Generation, end: int, tid: Tid, objects: int) -> None:
        """Make everything up to *end* visible."""

    def note_packed(self, tid: Tid) -> None:
        """Note that revisions up to *tid* may be gone."""
