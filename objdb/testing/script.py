"""Scripts: what undo, versions and packs do, told step by step, and the reader that runs them.

    a creation: An object whose creation is undone does not exist, and did exist before.

        1: x = made
        2: undo 1
        x is gone
        x at 1 is made (1)

A script's heading is its name and what it shows. Each indented line is a step. A step that ends
with `! ERROR: words` is refused with that error, and these words are in its message.

    1: x = made, delete y      transaction 1 does this, and is committed
    A begins: …   A does: …    transaction A begins, goes on, …
    A votes   A finishes   A aborts
    pack [to 2] [without gc]   to the last transaction, or that one (`nothing`: the year 1970)
    merging                    from now on conflicts are resolved: old|committed|new

What a transaction does, separated by commas. `on 1`: based on what transaction 1 wrote; without,
on what is current. `in plan`: in the version `plan`.

    x = text [-> y z] [on 1] [in plan]     stores a record, which refers to y and z
    delete x [on 1]    undo 2    commit plan [to better]    abort plan
    read x of 1 [in plan]                  says that it has read what transaction 1 wrote

What holds then. `at 2`: for who sees transaction 2 and none after it; `of 2`: what that wrote;
`(1) until 3`: the transactions that wrote the revision found, and the next one seen there (`now`:
there is none).

    x [at 2] [in plan] is gone | text [-> y z] [(1) [until 3]]
    x of 2 is gone | text          x of 3 has the data of 1
    versions: plan better          objects in plan: x y        version of x: plan
    transactions: 1 packed, 2      objects of 2: x y           objects: root x y
    history of x: 2 plan, 1        undo log: 2 1 0                  packed to: 2

`root` is the root object; transaction 0 made it. All other objects are the script's own.

The last things that hold, behind the last change, are looked at again in a copy, and in the
storage when it was closed and opened again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NamedTuple

from objdb.errors import ObjdbError, POSKeyError
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.interfaces import (
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStorageRestoreable,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import Joining, Make, require
from objdb.testing.packing_model import record, refer

_NEEDS = {
    r"\bundo\b": IStorageUndoable,
    r"\b(in|abort|commit|versions?)\b": IStorageVersions,
    r"\bpack\b": IStoragePackable,
    r"\b(at|of|history|transactions)\b": IStorageHistory,
    r"\b(of|transactions)\b": IStorageIteration,
}
_STORE = re.compile(r"(\w+) = (.+?)(?: on (\w+))?(?: in (\w+))?")
_READ = re.compile(r"read (\w+) of (\w+)(?: in (\w+))?")
_SEEN = re.compile(
    r"(\w+)(?: at (\w+))?(?: in (\w+))? is (.+?)(?: \((\w+)\)(?: until (\w+))?)?"
)


class Script(NamedTuple):
    """A script: its name, what it shows, and its steps."""

    name: str
    shows: str
    steps: list[str]

    @property
    def needs(self) -> list[Any]:
        """The interfaces that the steps need."""
        steps = [step.partition(" !")[0] for step in self.steps]
        return [
            interface for words, interface in _NEEDS.items()
            if any(re.search(words, step) for step in steps)
        ]

    def require(self, storage: Any) -> None:
        """Skip the test unless the storage declares what the steps need."""
        for interface in self.needs:
            require(storage, interface)


def scripts(about: str) -> list[Script]:
    """Return the scripts in the file `scripts/{about}.txt`."""
    file = resources.files("objdb.testing") / "scripts" / f"{about}.txt"
    found: list[Script] = []
    for part in re.split(r"\n\n(?=\S)", file.read_text("utf-8").rstrip()):
        heading, _, steps = part.partition("\n\n")
        name, _, shows = " ".join(heading.split()).partition(": ")
        found.append(Script(name, shows, [line.strip() for line in steps.splitlines()]))
    return found


class Run:
    """One run of a script over *storage*, whose root object transaction 0 has made."""

    def __init__(self, script: Script, storage: Any) -> None:
        self.script = script
        self.storage = storage
        self._oids = {"root": ROOT_OID}
        self._tids: dict[str, Tid] = {"0": storage.lastTransaction(), "nothing": NO_TID}
        self._open: dict[str, TransactionMetaData] = {}
        asks: dict[str, Callable[..., None]] = {
            r"(\w+) of (\w+) is (.+)": self._wrote,
            r"(\w+) of (\w+) has the data of (\w+)": self._has_data_of,
            r"versions: (.+)": self._versions,
            r"objects in (\w+): (.+)": self._objects_in,
            r"version of (\w+): (.+)": self._version_of,
            r"transactions: (.+)": self._transactions,
            r"objects of (\w+): (.+)": self._objects_of,
            r"objects: (.+)": self._objects,
            r"history of (\w+): (.+)": self._history,
            r"undo log: (.+)": self._undo_log,
            r"packed to: (\w+)": self._packed_to,
            _SEEN.pattern: self._seen,
        }
        self._asks = {re.compile(pattern): ask for pattern, ask in asks.items()}

    def all(self, make_storage: Make | None = None) -> None:
        """Run the steps. The last that ask are asked again in a copy, and, with *make_storage*,
        when the storage was closed and opened again."""
        storage, last = self.storage, 0
        for number in range(len(self.script.steps)):
            if not self._step(number, self._ask):
                last = number + 1
                self._step(number, self._do)
        if IStorageRestoreable.providedBy(storage):
            with MappingStorage() as copy:
                copy.copyTransactionsFrom(storage)
                self._again(last, copy, "in a copy")
        if make_storage is not None:
            storage.close()
            with make_storage() as again:
                self._again(last, again, "when it was opened again")

    def _again(self, last: int, storage: Any, where: str) -> None:
        self.storage = storage
        for number in range(last, len(self.script.steps)):
            self._step(number, self._ask, where)

    def _step(self, number: int, way: Callable[[str], Any], where: str = "") -> Any:
        try:
            return way(self.script.steps[number])
        except Exception as error:
            lines = [f"{self.script.name}: {self.script.shows}"]
            lines += [
                f"{'==> ' if i == number else '    '}{step}"
                for i, step in enumerate(self.script.steps)
            ]
            raise AssertionError(
                "\n".join(lines) + f"\n{type(error).__name__} {where}: {error}"
            ) from error

    # -- what is done

    def _do(self, step: str) -> None:
        what, refused, error = step.partition(" ! ")
        if not refused:
            self._perform(what)
            return
        kind, _, words = error.partition(": ")
        try:
            self._perform(what)
        except ObjdbError as caught:
            if type(caught).__name__ != kind or words not in str(caught):
                raise
        else:
            raise AssertionError("it was not refused")

    def _perform(self, what: str) -> None:
        if what == "merging":
            self.storage.registerDB(Joining())
        elif found := re.fullmatch(r"pack(?: to (\w+))?( without gc)?", what):
            moment = self._tids[found[1]] if found[1] else self.storage.lastTransaction()
            self.storage.pack(moment, refer, not found[2])
        elif found := re.fullmatch(r"(\w+) (begins|does|votes|finishes|aborts)(?:: (.+))?", what):
            self._go_on(*found.groups())
        else:
            name, is_one, actions = what.partition(":")
            assert is_one, f"this is no step: {what}"
            self._commit(name, actions.strip())

    def _commit(self, name: str, actions: str) -> None:
        self._go_on(name, "begins", None)
        try:
            self._go_on(name, "does", actions)
            self._go_on(name, "votes", None)
        except BaseException:
            self._go_on(name, "aborts", None)
            raise
        self._go_on(name, "finishes", None)

    def _go_on(self, name: str, verb: str, actions: str | None) -> None:
        if verb == "begins":
            self._open[name] = TransactionMetaData(description=name)
            self.storage.tpc_begin(self._open[name])
        transaction = self._open[name]
        for action in actions.split(", ") if actions else ():
            self._act(action, transaction)
        if verb == "votes":
            self.storage.tpc_vote(transaction)
        elif verb == "finishes":
            self._tids[name] = self.storage.tpc_finish(self._open.pop(name))
        elif verb == "aborts":
            self.storage.tpc_abort(self._open.pop(name))

    def _act(self, action: str, transaction: TransactionMetaData) -> None:
        storage = self.storage
        if found := _STORE.fullmatch(action):
            name, text, base, version = found.groups(default="")
            oid = self._oid(name)
            serial = self._tids[base] if base else self._current(oid, version)
            storage.store(oid, serial, self._record(text), version, transaction)
        elif found := _READ.fullmatch(action):
            name, tid, version = found.groups()
            arguments = [self._oid(name), self._tids[tid], transaction]
            storage.checkCurrentSerialInTransaction(*arguments, *([version] if version else []))
        elif found := re.fullmatch(r"delete (\w+)(?: on (\w+))?", action):
            oid = self._oid(found[1])
            tid = self._tids[found[2]] if found[2] else self._current(oid, "")
            storage.deleteObject(oid, tid, transaction)
        elif found := re.fullmatch(r"undo (\w+)", action):
            storage.undo(self._tids[found[1]], transaction)
        elif found := re.fullmatch(r"commit (\w+)(?: to (\w+))?", action):
            storage.commitVersion(found[1], found[2] or "", transaction)
        elif found := re.fullmatch(r"abort (\w+)", action):
            storage.abortVersion(found[1], transaction)
        else:
            raise ValueError(f"this is nothing that a transaction does: {action}")

    def _oid(self, name: str) -> Oid:
        if name not in self._oids:
            self._oids[name] = self.storage.new_oid()
        return self._oids[name]

    def _current(self, oid: Oid, version: str) -> Tid:
        try:
            tid: Tid = self.storage.load(oid, *([version] if version else []))[1]
            return tid
        except POSKeyError:
            return NO_TID

    def _record(self, text: str) -> bytes:
        if text == "root":
            return b"root"
        text, _, names = text.partition(" -> ")
        oids = [self._oid(name) for name in names.split()]
        return b"|".join(record(part, *oids) for part in text.split("|"))

    # -- what holds

    def _ask(self, step: str) -> bool:
        """Look whether what the step says holds; return False if it is one that does something."""
        if re.match(r"\w+:", step) and not re.match(r"(versions|transactions|objects):", step):
            return False
        for pattern, ask in self._asks.items():
            if found := pattern.fullmatch(step):
                ask(*found.groups())
                return True
        return False

    def _seen(
        self, name: str, at: str | None, version: str | None, text: str, tid: str | None,
        until: str | None,
    ) -> None:
        before = next_tid(self._tids[at]) if at else MAX_TID
        oid = self._oid(name)
        found = self._or_none(self.storage.loadBefore, oid, before, *([version] if version else []))
        if at is None:
            current = self._or_none(self.storage.load, oid, *([version] if version else []))
            assert current == (found and found[:2])
        assert (found and found[0]) == self._expected(text)
        assert tid is None or found[1] == self._tids[tid], f"it is of {self._name(found[1])}"
        if until is not None:
            end = "now" if found[2] is None else self._name(found[2])
            assert end == until, f"it is there until {end}"

    def _wrote(self, name: str, tid: str, text: str) -> None:
        found = self._or_none(self.storage.loadSerial, self._oid(name), self._tids[tid])
        assert found == self._expected(text)

    def _or_none(self, load: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return load(*arguments)
        except POSKeyError:
            return None

    def _expected(self, text: str) -> bytes | None:
        return None if text == "gone" else self._record(text)

    def _has_data_of(self, name: str, tid: str, other: str) -> None:
        [transaction] = self.storage.iterator(self._tids[tid], self._tids[tid])
        [revision] = [revision for revision in transaction if revision.oid == self._oid(name)]
        assert revision.data_txn == self._tids[other]

    def _versions(self, names: str) -> None:
        expected = _words(names)
        assert self.storage.versions() == expected
        assert self.storage.versions(1) == expected[:1]
        assert not any(map(self.storage.versionEmpty, expected))

    def _objects_in(self, version: str, names: str) -> None:
        found = self.storage.objects_in_version(version)
        assert sorted(found) == sorted(map(self._oid, _words(names)))
        assert self.storage.versionEmpty(version) == (not found)

    def _version_of(self, name: str, version: str) -> None:
        assert self.storage.modifiedInVersion(self._oid(name)) == " ".join(_words(version))

    def _transactions(self, names: str) -> None:
        found = [
            self._name(transaction.tid) + (" packed" if transaction.status == "p" else "")
            for transaction in self.storage.iterator()
        ]
        assert found == names.split(", ")

    def _objects_of(self, name: str, names: str) -> None:
        [transaction] = self.storage.iterator(self._tids[name], self._tids[name])
        found = [revision.oid for revision in transaction]
        assert sorted(found) == sorted(map(self._oid, _words(names)))

    def _objects(self, names: str) -> None:
        assert len(self.storage) == len(_words(names))
        for name in _words(names):
            self.storage.getTid(self._oid(name))

    def _history(self, name: str, revisions: str) -> None:
        found = [
            f"{self._name(entry['tid'])} {entry['version']}".strip()
            for entry in self.storage.history(self._oid(name), 99)
        ]
        assert found == revisions.split(", ")

    def _undo_log(self, names: str) -> None:
        found = [entry["description"] or "0" for entry in self.storage.undoLog(0, -99)]
        assert found == _words(names)

    def _packed_to(self, name: str) -> None:
        assert self._name(self.storage.packed_tid) == name

    def _name(self, tid: Tid) -> str:
        return next(self._names_of(tid), f"another, {tid.hex()}")

    def _names_of(self, tid: Tid) -> Iterator[str]:
        return (name for name, known in self._tids.items() if known == tid)


def _words(text: str) -> list[str]:
    return [] if text == "none" else text.split()
