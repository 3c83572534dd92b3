"""Versions: named lines of work, apart from everybody else's, that lock the objects they change.

    outside ───► r0 ─────────────────────────────────► r4        commitVersion("plan"): r4 repeats
                  └──► r1 ──► r2 ──► r3  in "plan" ─────┘        the data of r3

An object has one chain of revisions, and each revision is in one version, or outside. Who works in
"plan" sees the last revision that is in "plan" or outside; everybody else sees, while the current
revision is in "plan", the one outside that was current when it was locked: r0.

    the current revision is      storing it outside     storing it in "plan"     in another version
    outside                      as ever                locks it                 locks it
    in "plan"                    VersionLockError       as ever                  VersionLockError

Committing and aborting a version are transactions like others: they write a revision of every
object that is in it, which repeats the data of one that is there already. So they can be undone,
and undoing the first change of an object in a version takes it out of the version again.

What is outside while an object is in a version follows from its chain, so that a copy has it too:

    the revision before is in a version    what is outside of that
    else, it repeats one in a version      what is outside of that (the commit, or abort, of a
                                           version is undone)
    else                                   the revision before

What they write is planned when they are asked for, and planned again at the vote, with the commit
slot held, if the version has changed meanwhile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from objdb.errors import (
    CorruptedDataError,
    POSKeyError,
    VersionCommitError,
    VersionError,
    VersionLockError,
)
from objdb.ids import NO_TID, Oid, Tid, format_oid
from objdb.storage.commit import Repeat, Staged
from objdb.storage.revisions import RevisionStorage

MAX_NAME_BYTES = 0xFFFF  # what the length field of a file's records holds

Entry = tuple[Any, Tid]  # where a revision is, and its tid


def require_name(version: Any) -> str:
    """Return *version*; `VersionError` if it is no name that a version can have."""
    if not isinstance(version, str):
        raise VersionError(f"{version!r} is no name of a version: that is text")
    if not version:
        raise VersionError("the empty name stands for no version; name one", version="")
    try:
        size = len(version.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise VersionError(f"{version!r} is no name of a version: {error}") from None
    if size > MAX_NAME_BYTES:
        raise VersionError(
            f"the name of a version is {size} bytes long ({version[:20]!r}…); at most "
            f"{MAX_NAME_BYTES} fit"
        )
    return version


def require_two(source: str, destination: str) -> None:
    """Raise `VersionCommitError`, or `VersionError`, unless the version *source* can be committed
    to *destination*."""
    if not source or source == destination:
        to = repr(destination) if destination else "what is outside any version"
        raise VersionCommitError(
            f"{source!r} cannot be committed to {to}: it takes two different ones, and the "
            "first has to be a version", version=source,
        )
    require_name(source)
    if destination:
        require_name(destination)


class VersionedStorage(RevisionStorage):
    """Base of storages that have versions. Further primitives:

    * `loadBefore(oid, tid, version)`: the revision before a tid, as who works in a version sees it
    * `_version_of(place)`: the version that the revision at a place is in, "" for none
    * `_outside(place)`: (place, tid) of the revision that others see instead of the one, in a
      version, at *place*; None if they see no object
    * `_modified_in(version)`: oid: (place, tid) of the objects whose current revision is in it
    * `_version_names()`: the versions that are not empty
    * `_locked_among(entries)`: oid: version of those entries of `_find_current` that are in one
    * `_again(entries)`: what to stage to have the data of those revisions again: (records, repeats)
    * `_bring_back(place)`: (record, repeat) of one that may repeat, or un-create, itself

    All go by what is decided, visible or not.
    """

    @abstractmethod
    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """Return (record, its tid, tid of the next revision or None) of the last revision of
        *oid* before *tid* that can be seen in *version* (""; outside any), or None if there was
        none; `POSKeyError` if there is no object."""

    @abstractmethod
    def _version_of(self, place: Any) -> str:
        """Return the version of the revision at *place*."""

    @abstractmethod
    def _outside(self, place: Any) -> Entry | None:
        """Return the revision that others see instead of the one at *place*."""

    @abstractmethod
    def _modified_in(self, version: str) -> dict[Oid, Entry]:
        """Return where the current revisions of the objects in *version* are."""

    @abstractmethod
    def _version_names(self) -> list[str]:
        """Return the versions that are not empty."""

    @abstractmethod
    def _locked_among(self, entries: dict[Oid, Entry | None]) -> dict[Oid, str]:
        """Return the versions of those *entries* that are in one."""

    @abstractmethod
    def _again(
        self, entries: dict[Oid, Entry]
    ) -> tuple[dict[Oid, bytes | None], dict[Oid, Repeat]]:
        """Return what to stage to have the data of these revisions again."""

    @abstractmethod
    def _bring_back(self, place: Any) -> tuple[bytes | None, Repeat | None]:
        """Return what to stage to have the data at *place* again."""

    # -- looking

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`."""
        return True

    def versions(self, max: int | None = None) -> list[str]:
        """See `IStorageVersions`."""
        self._require_open()
        return sorted(self._version_names())[:max]

    def versionEmpty(self, version: str) -> bool:
        """See `IStorageVersions`."""
        self._require_open()
        return not self._modified_in(require_name(version))

    def modifiedInVersion(self, oid: Oid) -> str:
        """See `IStorageVersions`."""
        self._require_open()
        while True:
            places, version = self._places, ""
            entry = self._find_current([oid])[oid]
            if entry is None:
                raise POSKeyError(oid, database=self._name)
            try:
                version = self._version_of(entry[0])
            except CorruptedDataError:
                if places is self._places:
                    raise
            if places is self._places:  # else a pack came between
                return version

    def objects_in_version(self, version: str) -> list[Oid]:
        """See `IStorageVersions`."""
        self._require_open()
        return list(self._modified_in(require_name(version)))

    # -- committing and aborting versions

    def commitVersion(self, source: str, destination: str, transaction: Any) -> list[Oid]:
        """See `IStorageVersions`."""
        require_two(source, destination)
        return self._take_out(transaction, source, destination)

    def abortVersion(self, version: str, transaction: Any) -> list[Oid]:
        """See `IStorageVersions`."""
        return self._take_out(transaction, require_name(version), None)

    def _take_out(self, transaction: Any, version: str, destination: str | None) -> list[Oid]:
        staged = self._slot.staged(transaction)
        return self._request(staged, partial(self._empty, staged, version, destination))

    def _request(self, staged: Staged, plan: Callable[[], list[Oid]]) -> list[Oid]:
        """Stage what *plan* does, which returns oids; it is called again if things change."""
        with self._places_lock:
            if not staged.requests:
                staged.requested_at = self._decided_tid()
            elif staged.places is not self._places:
                self._request_again(staged)
            oids = plan()
            staged.places = self._places
        staged.requests.append(plan)
        return oids

    def _request_again(self, staged: Staged) -> None:
        """Stage everything requested once more, as things are now."""
        staged.is_stale = True
        staged.drop_requested()
        staged.requested_at = self._decided_tid()
        for request in staged.requests:
            request()
        staged.places = self._places
        staged.is_stale = False

    def _empty(self, staged: Staged, version: str, destination: str | None) -> list[Oid]:
        """Stage what takes every object out of *version*: to *destination*; or, if that is None,
        back to what it was outside. Return their oids."""
        modified = self._modified_in(version)
        both = modified.keys() & staged.bases.keys()
        if both:
            oid = min(both)
            raise VersionError(
                f"object {format_oid(oid)}, which is in the version {version!r}, is changed in "
                "the same transaction that commits or aborts it. Commit that change first",
                version=version, oid=oid,
            )
        make = self._as_outside if destination is None else self._again
        records, repeats = make(modified)
        staged.write_all_requested(modified, records, repeats, destination or "")
        staged.emptied[version] = modified
        return list(modified)

    def _as_outside(
        self, entries: dict[Oid, Entry]
    ) -> tuple[dict[Oid, bytes | None], dict[Oid, Repeat]]:
        """Return what to stage to have these objects, which are in a version, as others see
        them."""
        records: dict[Oid, bytes | None] = dict.fromkeys(entries)
        repeats: dict[Oid, Repeat] = {}
        for oid, (place, _) in entries.items():
            outside = self._outside(place)
            if outside is not None:
                records[oid], repeat = self._bring_back(outside[0])
                if repeat is not None:
                    repeats[oid] = repeat
        return records, repeats

    # -- what the vote checks

    _last_name: Any = None  # the last that was found to be a name

    def _require_version(self, version: str) -> None:
        if version is not self._last_name:
            self._last_name = require_name(version)

    def _check(self, staged: Staged) -> None:
        if staged.requests and (staged.is_stale or self._has_moved(staged)):
            self._request_again(staged)
            staged.resolved += staged.requested
        super()._check(staged)

    def _current_of(self, staged: Staged) -> dict[Oid, Entry | None]:
        if not staged.requested:
            return self._find_current(staged.bases)
        found = self._find_current(staged.bases.keys() - staged.requested.keys())
        found.update(staged.requested)  # nothing has moved since
        return found

    def _has_moved(self, staged: Staged) -> bool:
        """Whether an object was changed, or a pack moved all, since what requests make of them
        was staged."""
        if staged.places is not self._places:
            return True
        if staged.requested_at == self._decided_tid():
            return False
        entries = self._find_current(staged.requested)
        return any(
            (NO_TID if entry is None else entry[1]) != staged.bases[oid]
            for oid, entry in entries.items()
        ) or any(
            len(self._modified_in(version)) != len(entries)
            for version, entries in staged.emptied.items()
        )

    def _check_locks(self, staged: Staged) -> None:
        rest, requested = staged.current, staged.requested
        for version, entries in staged.emptied.items():
            staged.locked.update(dict.fromkeys(entries, version))
        if staged.emptied:
            rest = {oid: entry for oid, entry in rest.items() if oid not in staged.locked}
        found = self._locked_among(rest)
        staged.locked.update(found)
        for oid, version in found.items():
            is_checked = oid not in requested and staged.bases[oid] is not None
            if is_checked and staged.versions.get(oid, "") != version:
                raise VersionLockError(
                    f"object {format_oid(oid)} is changed in the version {version!r}, which "
                    "locks it. Change it there, or commit or abort that version first",
                    version=version, oid=oid,
                )

    def _find_stale(self, serials: dict[Oid, Tid], version: str) -> Iterable[tuple[Oid, Tid]]:
        changed = dict(super()._find_stale(serials, version))
        if not changed:
            return ()
        entries = self._find_current(changed)
        for oid, own in self._locked_among(entries).items():
            entry = entries[oid]
            assert entry is not None  # it is in a version
            seen = entry if own == version else self._outside(entry[0])
            if seen is not None and seen[1] == serials[oid]:
                del changed[oid]
        return changed.items()
