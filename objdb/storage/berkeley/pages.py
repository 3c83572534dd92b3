"""Checking the pages of a table's file before the engine reads them.

A lost write or a bad sector leaves a page of zeros. The engine takes it for a new page: it does
not verify the checksum, and a search that reaches the page never ends. So such pages are detected
first. A file in use may have some, for pages that are only in the cache yet, and a recovered file
for pages outside its tree.

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
    """Return the positions of the pages of zeros in a table's file; none if it is not a table.
    Reads the whole file."""
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
    """Return the message about pages of zeros."""
    places = ", ".join(map(str, positions[:5])) + (", …" if len(positions) > 5 else "")
    pages = "a page" if len(positions) == 1 else f"{len(positions)} pages"
    return (
        f"{path} is damaged: {pages} of zeros at position {places}, as after a lost write or a "
        "bad sector. Restore the directory from a backup; db5.3_dump -r saves the readable rows"
    )


def require_no_blank_pages(path: str) -> None:
    """Raise `CorruptedDataError` if a table's file, which is not open, has a page of zeros in its
    tree."""
    positions = blank_pages(path)
    if not positions:
        return
    try:
        bdb.DB().verify(path)
    except bdb.DBError as error:
        raise CorruptedDataError(
            describe_blank(path, positions), path=path, position=positions[0]
        ) from error
