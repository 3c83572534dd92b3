"""Copying a database while others commit to it.

The engine copies the tables page by page, then the log. So the copy is like a database after a
crash, with pages of different moments; recovery, in place and from the whole log, makes it a
database of the moment when the log was copied.
"""

from __future__ import annotations

import os
import shutil

from objdb.storage.berkeley.directory import Marker, file_of, write_marker
from objdb.storage.berkeley.environment import Environment
from objdb.storage.files import UNFINISHED, keep_mode, sync_path

_CACHE_BYTES = 16 << 20


def back_up(environment: Environment, marker: Marker, directory: str) -> None:
    """Copy an open environment to the new *directory*, an absolute path. FileExistsError if it
    exists."""
    if os.path.lexists(directory):
        raise FileExistsError(17, "the directory exists already", directory)
    new = directory + UNFINISHED
    shutil.rmtree(new, ignore_errors=True)
    try:
        environment.copy_to(new)
        copy = Environment(new, log_directory=new, cache_bytes=_CACHE_BYTES, is_backup=True)
        copy.close(in_order=True)
        write_marker(new, marker)
        for name in os.listdir(new):
            keep_mode(os.path.join(new, name), os.path.join(environment.path, file_of("current")))
            sync_path(os.path.join(new, name))
        keep_mode(new, environment.path)
        os.rename(new, directory)
        sync_path(os.path.dirname(directory))
    finally:
        shutil.rmtree(new, ignore_errors=True)
