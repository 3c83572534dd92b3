"""`diff`: what differs between an object as one connection sees it and as another does."""

from __future__ import annotations

from functools import partial
from typing import Any

from objdb.connection.connection import Connection
from objdb.connection.loading import committed_record
from objdb.errors import UsageError
from objdb.ids import format_oid
from objdb.records.broken import class_name
from objdb.records.differences import changed_parts


def diff(a: Any, b: Any) -> dict[Any, tuple[Any, Any]]:
    """Return which attributes differ between two revisions of an object: by name, the value in
    *a* and the value in *b*, `...` where there is none.

    *a* and *b* are the same object, reached through two connections, of which one shows the past
    (`db.open(at=…)`), say. Committed revisions are compared.

    * Items of a `PersistentMapping` and of BTrees and their sets have their key as name, those of
      a `PersistentList` their position; attributes of such a mapping or list have theirs with a
      dot before it.
    * References to persistent objects are `PersistentReference`, and alike if they are to the
      same oid. A state that is neither attributes nor items is the attribute `""`.
    * The classes may be different ones: names are compared.

    `UsageError` if they are different objects, are not stored, or have changes that are not
    committed. `POSKeyError` if one is not there any more; `DeserializationError` for a record
    that cannot be read.
    """
    for obj in (a, b):
        if not isinstance(getattr(obj, "_p_jar", None), Connection):
            raise UsageError(
                f"a {class_name(type(obj))} that is stored in no database has no revisions"
            )
    if a._p_oid != b._p_oid:
        raise UsageError(
            f"object {format_oid(a._p_oid)} ({class_name(type(a))}) and object "
            f"{format_oid(b._p_oid)} ({class_name(type(b))}) are not two revisions of one object"
        )
    return changed_parts(
        a._p_oid, partial(committed_record, a._p_jar), partial(committed_record, b._p_jar)
    )
