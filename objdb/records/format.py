"""The format of a record, byte by byte.

A record is two pickles, one directly after the other, both of protocol 3 when written here:

    class metadata      state
    80 03 c mod\\n name\\n .   80 03 } ... .

* **class metadata** is `class`, or `(class, newargs)` for a class with `__getnewargs__`, or
  `((module, name), newargs or None)` (read only).
* **state** is what `__getstate__` returned. Persistent objects inside it are *references*: the
  pickle's persistent ids (opcode `Q`), in one of these forms:

      oid                             class is found in the object's own record
      (oid, class)                    the usual form
      ['w', (oid,)]                   weak
      ['w', (oid, database)]          weak, other database
      ['n', (database, oid)]          other database
      ['m', (database, oid, class)]   other database
      ['w', oid]                      weak, read only: zodbupdate's
      ['m', (database, oid)]          other database, read only: zodbupdate's
      [oid]                           weak, old form, read only

ZODB writes both pickles with one pickler whose memo goes on from the first to the second, so
its states can refer back to "the class" as memo entry 0. objdb keeps them apart: its class
pickle stores nothing in the memo, so the two kinds are told apart by their first bytes, and a
state can be read knowing only which class it belongs to.

The forms are those of ZODB's serialisation, so that each reads what the other writes.
"""

from __future__ import annotations

from typing import Any

PROTOCOL = 3

_GLOBAL = b"\x80\x03c"


def class_prefix(cls: type) -> bytes:
    """Return the class pickle that objdb writes for a class without newargs."""
    return _GLOBAL + f"{cls.__module__}\n{cls.__qualname__}\n.".encode()


def plain_prefix_length(record: bytes) -> int:
    """Return the length of the record's class pickle when it just names a class, else 0.

    That is the case for nearly all records: `80 03 c module\\n name\\n`, then `.`, or what ZODB
    writes, `q 00 .`.
    """
    if not record.startswith(_GLOBAL):
        return 0
    end = record.find(b"\n", record.find(b"\n", 3) + 1) + 1
    if not end:
        return 0
    tail = record[end : end + 3]
    if tail[:1] == b".":
        return end + 1
    if tail[:1] == b"q" and tail[2:] == b".":
        return end + 3
    return 0


def class_and_arguments(metadata: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return (class or (module, name), arguments for `__new__`) of loaded class metadata."""
    if isinstance(metadata, tuple):
        cls, arguments = metadata
        return cls, arguments or ()
    return metadata, ()
