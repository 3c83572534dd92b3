"""Loading, where it does not go as usual. The usual way itself is in `loadpath`.

    attribute of a ghost ─► setstate ─► storage.loadBefore(oid, snapshot) ─► reader ─► object
                                                │ nothing there, or it cannot be read
                                                ▼
                                   is_gone, load_failed: the error that says so
"""

from __future__ import annotations

from typing import Any, NoReturn

from transaction.interfaces import TransientError

from objdb.connection.jar import Jar
from objdb.errors import (
    ConflictError,
    DeserializationError,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
    UsageError,
)
from objdb.ids import NO_TID, Oid, Tid, format_oid, format_tid, next_tid
from objdb.interfaces import IStoragePacked
from objdb.records.broken import class_name
from objdb.records.references import references


def load_revision(jar: Jar, oid: Oid) -> tuple[bytes, Tid]:
    """Return (record, tid) of *oid* as the transaction of *jar* sees it; `POSKeyError`, or
    `ReadConflictError` where a pack has taken it away."""
    try:
        found = jar._load_before(oid, jar._before)
        if found is None:
            raise POSKeyError(oid, database=jar.db().name)
    except POSKeyError as error:
        if error.oid == oid and _is_before_pack(jar):
            is_gone(jar, oid)
        raise
    return found[0], found[1]


def loaded_record(jar: Jar, obj: Any) -> bytes | None:
    """Return the record that *obj* was loaded from, or put away by a savepoint; None if it is
    gone."""
    find = jar.load_committed if jar.work is None else jar.work.load
    try:
        found = find(obj._p_oid, next_tid(obj._p_serial))
    except POSKeyError:
        return None
    return None if found is None else found[0]


def committed_record(jar: Jar, oid: Oid) -> bytes:
    """Return the record of *oid* that the transaction of *jar* sees; it counts as read.
    `UsageError` for an object with changes that are not committed."""
    jar.require_usable()
    obj, work = jar._cache.get(oid), jar.work
    is_new = work is not None and (work.has_put_away(oid) or oid in work.changes.added)
    if is_new or (obj is not None and obj._p_changed):
        raise UsageError(
            f"object {format_oid(oid)} has changes that are not committed. Commit them first"
        )
    record, tid = load_revision(jar, oid)
    if jar.view.reads is not None:
        jar.view.must_be_current[oid] = tid
    return record


def load_failed(jar: Jar, obj: Any, error: BaseException) -> NoReturn:
    """Raise what loading *obj* ended in, with what is known about the object."""
    oid = obj._p_oid
    if isinstance(error, POSKeyError):
        if error.oid == oid and _is_before_pack(jar):
            is_gone(jar, oid)
        if error.oid == oid and error.referrer is None:
            error.referrer = _find_referrer(jar, oid)
        raise error
    if isinstance(error, ObjdbError):
        complete_error(error, oid, type(obj))
        raise error
    passes = isinstance(error, (OSError, MemoryError, TransientError))
    if passes or not isinstance(error, Exception):
        raise error
    raise DeserializationError(
        f"object {format_oid(oid)}: {class_name(type(obj))}.__setstate__ does not take "
        f"the stored state: {type(error).__name__}: {error}",
        oid=oid, class_name=class_name(type(obj)),
    ) from error


def is_gone(jar: Jar, oid: Oid) -> NoReturn:
    """Raise the error for an object of which the view's revision was packed away."""
    if jar.view.past is not None:
        raise ReadConflictError(
            f"object {format_oid(oid)} has no revision before {format_tid(jar.view.past)} any "
            "more: what was there was packed away. Open a later moment", oid=oid,
        )
    raise ReadConflictError(
        f"object {format_oid(oid)} has no revision as old as this transaction's view any "
        "more. Abort and try the transaction again", oid=oid,
    )


def _is_before_pack(jar: Jar) -> bool:
    """Whether the view is at a moment of which a pack may have taken something away."""
    storage = jar.db().storage
    return IStoragePacked.providedBy(storage) and bool(jar._before <= storage.packed_tid)


def _find_referrer(jar: Jar, oid: Oid) -> Oid | None:
    """Return the oid of a loaded object that refers to *oid*, the last used one first."""
    for referrer, obj in reversed(jar._cache.lru_items()):
        if jar.cache.epochs.is_marker(obj) or obj._p_serial == NO_TID:
            continue
        try:
            if oid in references(load_revision(jar, referrer)[0]):
                return bytes(referrer)
        except ObjdbError:  # it cannot say; the error at hand is the one to raise
            continue
    return None


def complete_error(error: Any, oid: Oid | None, cls: type) -> None:
    """Add to an error which object it was about."""
    if getattr(error, "oid", oid) is None:
        error.oid = oid
        error.args = (f"object {format_oid(oid)}: {error}",)
    if getattr(error, "class_name", "") is None:
        error.class_name = class_name(cls)
        if isinstance(error, ConflictError):
            error.args = (str(error).replace(
                f"object {format_oid(oid)} ", f"object {format_oid(oid)} ({error.class_name}) ", 1
            ),)
