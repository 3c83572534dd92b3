"""Versions: named lines of work that lock the objects they change.

    outside ───► r0 ─────────────────────────────────► r4        commitVersion("plan"): r4 has the
                  └──► r1 ──► r2 ──► r3  in "plan" ─────┘        data of r3 again

An object has one chain of revisions, and each revision is in one version, or outside. A connection
in "plan" sees the last revision that is in "plan" or outside; while the current revision is in
"plan", all other connections see the one outside that was current when it was locked: r0.

    the current revision is      storing it outside     storing it in "plan"     in another version
    outside                      as usual               locks it                 locks it
    in "plan"                    VersionLockError       as usual                 VersionLockError

Committing and aborting a version are transactions like others: they write a revision of every
object in it, with the data of an earlier one. So they can be undone, and undoing the first change
of an object in a version removes it from the version.

The revision outside, of an object in a version, follows from its chain, also in a copy:

    the revision before is in a version    the revision outside that one
    else, it points back into a version    the revision outside that one (the commit, or abort, of
                                           a version is undone)
    else                                   the revision before
"""

from __future__ import annotations

from typing import Any

from objdb.errors import VersionCommitError, VersionError
from objdb.ids import Oid, Tid, format_oid
from objdb.storage.rows import Current, Row
from objdb.storage.staging import Writes

MAX_NAME_BYTES = 0xFFFF  # the maximum of the length field in a file's records


def require_name(version: Any) -> str:
    """Return *version*. Raises `VersionError` if it cannot be the name of a version."""
    if not isinstance(version, str):
        raise VersionError(f"{version!r} is not a version name; a name is text")
    if not version:
        raise VersionError("the version name is empty; name a version", version="")
    try:
        size = len(version.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise VersionError(f"{version!r} is not a valid version name: {error}") from None
    if size > MAX_NAME_BYTES:
        raise VersionError(
            f"the version name {version[:20]!r}… is {size} bytes long; the maximum is "
            f"{MAX_NAME_BYTES}"
        )
    return version


def require_two(source: str, destination: str) -> None:
    """Raise `VersionCommitError`, or `VersionError`, unless the version *source* can be committed
    to *destination*."""
    if not source or source == destination:
        to = repr(destination) if destination else "outside any version"
        raise VersionCommitError(
            f"{source!r} cannot be committed to {to}: name a version, and a different destination",
            version=source,
        )
    require_name(source)
    if destination:
        require_name(destination)


def modified_in(engine: Any, version: str) -> dict[Oid, Current]:
    """Return {oid: `Current`} of the objects whose current revision is in *version*."""
    found = engine.in_versions()
    return {oid: current for oid, current in found.items() if current[1] == version}


def empty(engine: Any, writes: Writes, version: str, destination: str | None) -> list[Oid]:
    """Stage moving every object out of *version*: to *destination*; or, if that is None, back to
    its revision outside. Return their oids."""
    modified = modified_in(engine, version)
    both = modified.keys() & writes.bases.keys()
    if both:
        oid = min(both)
        raise VersionError(
            f"object {format_oid(oid)}, which is in the version {version!r}, is changed in "
            "the same transaction that commits or aborts it. Commit that change first",
            version=version, oid=oid,
        )
    if destination is None:
        pointers = {oid: _outside(engine, oid, current) for oid, current in modified.items()}
    else:
        pointers = {oid: current[0] for oid, current in modified.items()}
    writes.write_results(modified, pointers, destination or "")
    assert writes.plan is not None
    writes.plan.emptied[version] = modified
    return list(modified)


def _outside(engine: Any, oid: Oid, current: Current) -> Tid | None:
    """Return the tid of the revision with the data visible outside; None if there is none."""
    row = engine.row(oid, current.tid)
    tid = None if row is None else row.outside
    outside = None if tid is None else engine.row(oid, tid)
    return None if outside is None else original(engine, oid, outside)


def original(engine: Any, oid: Oid, row: Row) -> Tid | None:
    """Return the tid of the first remaining revision with the data of *row*; None for a
    tombstone."""
    if not row.exists:
        return None
    tid = row.tid
    while (pointer := row.back_pointer) is not None:
        target = engine.row(oid, pointer)
        if target is None:
            break
        row, tid = target, target.tid
    return tid
