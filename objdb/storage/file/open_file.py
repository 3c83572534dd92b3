"""What packing, copying and following another process ask of the engine of a file."""

from __future__ import annotations

import threading
from typing import Protocol

from objdb.ids import Tid
from objdb.storage.durability import Durability
from objdb.storage.engine import Visibility
from objdb.storage.file.generation import Generation
from objdb.storage.files import Files, Lock


class OpenFile(Protocol):
    """The file *path*, open: its log and index are the `generation`. `max_oid` is the largest oid
    that is known, `since_checkpoint` how many records the index has not made durable;
    `checkpoint_lock` is held while it does, or is replaced."""

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
        """Open the log and its index, and recover what a crash left."""

    def use(self, generation: Generation) -> None:
        """Read and write *generation* from now on."""

    def show(self, generation: Generation, end: int, tid: Tid, objects: int) -> None:
        """Let others see everything up to *end*."""

    def note_packed(self, tid: Tid) -> None:
        """Note that revisions up to *tid* may be gone."""
