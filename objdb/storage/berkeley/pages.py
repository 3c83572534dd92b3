"""Looking at the pages of a table's file before the engine is asked for them.

A page of zeros is what a lost write or a bad sector leaves. The engine takes it for one that is
just being made: its checksum is not looked at, and a search that comes to it goes on for ever,
inside the engine. So such pages are looked for first. A file that is in use may have some, for
pages that are only in the cache yet, and one that was recovered for pages that are in no tree.

    page    position in the log 8, number 4, …, type 1 (at 25), …        numbers as in the machine
    page 0  …, page size 4 (at 20), …
"""

from __future__ import annotations

import os
import sys

from objdb.errors import CorruptedDataError
from objdb.storage.berkeley.package import bdb

_PAGE_SIZE_AT, _TYPE_AT = 20, 25
_PIECE_BYTES = 1 << 20  # a multiple of every page size there can be
_MOST_PAGE_BYTES = 1 << 16


def blank_pages(path: str) -> list[int]:
    """Return the positions of the pages in a table's file that are all zeros; none if it is no
    such file. Reads the whole file."""
    found = []
    with open(path, "rb", buffering=0) as file:
        head = file.read(_PAGE_SIZE_AT + 4)
        size = int.from_bytes(head[_PAGE_SIZE_AT:], sys.byteorder)
        if not 512 <= size <= _MOST_PAGE_BYTES or size & (size - 1):
            return []
        position = 0
        while piece := os.pread(file.fileno(), _PIECE_BYTES, position):
            types = piece[_TYPE_AT::size]
            at = types.find(0)
            while at >= 0:
                if not any(piece[at * size : (at + 1) * size]):
                    found.append(position + at * size)
                at = types.find(0, at + 1)
            position += len(piece)
    return found


def describe_blank(path: str, positions: list[int]) -> str:
    """Return what is told of pages of zeros."""
    places = ", ".join(map(str, positions[:5])) + (", …" if len(positions) > 5 else "")
    pages = "a page" if len(positions) == 1 else f"{len(positions)} pages"
    return (
        f"{path} is damaged: {pages} of zeros at position {places}, as a lost write or a bad "
        "sector leaves. Restore the directory from a backup; db5.3_dump -r saves what can be read"
    )


def require_no_blank_pages(path: str) -> None:
    """Raise `CorruptedDataError` if a table's file, which nobody has open, has a page of zeros
    that belongs to its tree."""
    positions = blank_pages(path)
    if not positions:
        return
    try:
        bdb.DB().verify(path)
    except bdb.DBError as error:
        raise CorruptedDataError(
            describe_blank(path, positions), path=path, position=positions[0]
        ) from error
