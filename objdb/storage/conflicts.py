"""The checks of a vote: each write is based on, and each read saw, the current revision.

    current revisions ─► locks of versions ─► reads ─► conflicts, which the class may merge
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from objdb.errors import ConflictError, ReadConflictError, VersionLockError
from objdb.ids import NO_TID, Oid, Tid, format_oid
from objdb.storage.engine import IReadChecks
from objdb.storage.rows import Current
from objdb.storage.staging import Writes, data_of

# Returns the merged record for (oid, old record or None, committed record, new record, serials);
# raises `ConflictError`.
Merge = Callable[[Oid, "bytes | None", bytes, bytes, "tuple[Tid, Tid]"], bytes]


def check_locks(writes: Writes) -> None:
    """Raise `VersionLockError` if an object is written outside the version it is in."""
    writes.locked = {
        oid: current[1] for oid, current in writes.current.items()
        if current is not None and current[1]
    }
    if not writes.locked:
        return
    results = {} if writes.plan is None else writes.plan.results
    for oid, version in writes.locked.items():
        is_checked = oid not in results and writes.bases[oid] is not None
        if is_checked and writes.versions.get(oid, "") != version:
            raise VersionLockError(
                f"object {format_oid(oid)} is changed in the version {version!r}, which "
                "locks it. Change it there, or commit or abort that version first",
                version=version, oid=oid,
            )


def check_reads(engine: Any, writes: Writes) -> None:
    """Raise `ReadConflictError`, or `ConflictError` for an object that is also written, if an
    object that the transaction read has changed since."""
    for version, serials in writes.reads.items():
        for oid, current_tid in _find_changed(engine, serials, version).items():
            error = ConflictError if oid in writes.bases else ReadConflictError
            raise error(oid=oid, serials=(current_tid, serials[oid]))
    since = writes.unchanged_since
    if since is not None and engine.visibility.committed_tid != since:
        raise ReadConflictError(
            "other transactions were committed meanwhile, and the program deactivated objects "
            "that it may have read, so it is not known whether they were changed. Retry the "
            "transaction, and leave deactivating to the connection"
        )


def _find_changed(engine: Any, serials: dict[Oid, Tid], version: str) -> dict[Oid, Tid]:
    """Return {oid: current tid} of the objects whose tid, as seen in *version*, differs."""
    if IReadChecks.providedBy(engine):
        changed: dict[Oid, Tid] = engine.changed(serials)
        current = engine.current(changed) if changed else {}
    else:
        current = engine.current(serials)
        changed = {
            oid: tid for oid, found in current.items()
            if (tid := NO_TID if found is None else found.tid) != serials[oid]
        }
    return {
        oid: tid for oid, tid in changed.items()
        if not _is_seen(engine, oid, current[oid], version, serials[oid])
    }


def _is_seen(engine: Any, oid: Oid, current: Current | None, version: str, tid: Tid) -> bool:
    """Whether *version* shows the revision *tid*, while *current* is in another version."""
    if current is None or current.version in ("", version):
        return False
    row = engine.row(oid, current.tid)
    return row is not None and row.outside == tid


def resolve_conflicts(engine: Any, writes: Writes, merge: Merge) -> None:
    """Merge each write not based on the current revision. Raises `ConflictError`."""
    bases = writes.bases
    for oid, found in writes.current.items():
        base, current_tid = bases[oid], NO_TID if found is None else found[0]
        if current_tid != base and base is not None:
            _resolve(engine, writes, oid, (current_tid, base), merge)


def _resolve(
    engine: Any, writes: Writes, oid: Oid, serials: tuple[Tid, Tid], merge: Merge
) -> None:
    ours = writes.record(oid)
    if serials[0] == NO_TID or ours is None:  # deleted on either side
        raise ConflictError(oid=oid, serials=serials)
    committed = data_of(engine, oid, serials[0])
    if committed is None:  # a tombstone
        raise ConflictError(oid=oid, serials=serials)
    merged = merge(oid, data_of(engine, oid, serials[1]), committed, ours, serials)
    version = writes.versions.get(oid, "")
    writes.write(oid, serials[0], merged, version)
    writes.resolved.append(oid)


