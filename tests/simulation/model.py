"""What is true: plain dicts, filled when the storage commits, and what clients were told."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

Changes = dict[bytes, "bytes | None"]


class BrokenRuleError(BaseException):
    """A rule that was broken. *rule*: its name. It is no Exception, with which the server would
    answer."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


def require(holds: bool, rule: str, what: Callable[[], str] | str) -> None:
    """Raise `BrokenRuleError` unless the rule holds."""
    if not holds:
        raise BrokenRuleError(rule, what if isinstance(what, str) else what())


def short(oid_or_tid: bytes | None) -> str:
    """Return an oid or tid as it is told."""
    return "-" if oid_or_tid is None else oid_or_tid.hex().lstrip("0") or "0"


class Commit(NamedTuple):
    """A transaction. *name*: its description, which is unique; None is a deleted object."""

    tid: bytes
    name: str
    changes: Changes


class Lineage:
    """All that was committed to a storage, in order. A storage that is restored from a backup
    begins another lineage, with the first commits of this one."""

    def __init__(self, number: int = 0, commits: tuple[Commit, ...] = ()) -> None:
        self.number = number
        self.commits: list[Commit] = []
        self.tids: list[bytes] = []
        self.by_name: dict[str, bytes] = {}
        self._revisions: dict[bytes, list[tuple[bytes, bytes | None]]] = {}
        for commit in commits:
            self.add(commit)

    @property
    def last(self) -> bytes:
        """The last tid."""
        return self.tids[-1] if self.tids else bytes(8)

    def add(self, commit: Commit) -> None:
        """Note a commit."""
        require(commit.tid > self.last, "tids ascend", f"{short(commit.tid)} is committed late")
        require(
            not commit.name or commit.name not in self.by_name, "exactly once",
            f"{commit.name} is committed twice",
        )
        self.commits.append(commit)
        self.tids.append(commit.tid)
        if commit.name:
            self.by_name[commit.name] = commit.tid
        for oid, data in commit.changes.items():
            self._revisions.setdefault(oid, []).append((commit.tid, data))

    def forked(self, last: bytes) -> Lineage:
        """Return the lineage of a backup whose last transaction is *last*."""
        kept = tuple(each for each in self.commits if each.tid <= last)
        return Lineage(self.number + 1, kept)

    def changes_of(self, tid: bytes) -> Changes | None:
        """Return what a transaction changed; None if there is no such one."""
        i = bisect_left(self.tids, tid)
        return self.commits[i].changes if self.tids[i : i + 1] == [tid] else None

    def oids(self) -> list[bytes]:
        """Return the oids of all objects that ever were."""
        return sorted(self._revisions)

    def revisions(self, oid: bytes) -> list[tuple[bytes, bytes | None]]:
        """Return (tid, data) of an object, the oldest first."""
        return self._revisions.get(oid, [])

    def before(self, oid: bytes, bound: bytes, last: bytes) -> tuple[Any, ...] | None:
        """Return (data, tid, next tid or None) of the last revision before *bound*, in the state
        after *last*; None if there is none, or the object was deleted."""
        found = following = None
        for tid, data in self.revisions(oid):
            if tid > last:
                break
            if tid < bound:
                found = data, tid
            elif following is None:
                following = tid
        if found is None or found[0] is None:
            return None
        return (*found, following)

    def value(self, oid: bytes, at: bytes) -> bytes | None:
        """Return an object's data at a moment; None if it does not exist."""
        found = None
        for tid, data in self.revisions(oid):
            if tid > at:
                break
            found = data
        return found
