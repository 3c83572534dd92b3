"""Objects that one transaction has changed and created through one connection, and the four states
of a persistent object.

                add / reachable at commit                    attribute set
      UNSAVED ────────────────────────────► UP_TO_DATE ───────────────────────► CHANGED
                                             ▲      │ ◄─────────────────────────┘ │
                                        load │      │ deactivate   commit         │
                                             │      ▼                             │
                                            GHOST ◄───────────────────────────────┘
                                                     abort, invalidate
"""

from __future__ import annotations

import enum
from typing import Any

from persistent import Persistent

from objdb.connection.jar import Jar
from objdb.errors import ConnectionStateError, InvalidObjectReference
from objdb.ids import MAX_TID, ROOT_OID, Oid, format_oid
from objdb.records.attributes import set_jar, set_oid
from objdb.records.broken import class_name
from objdb.records.showing import shown

_STICKY = 2  # the _p_state of an object that C code is working on


class ObjectState(enum.Enum):
    """The states of a persistent object."""

    GHOST = "ghost"  # its class and oid are known, its state is not in memory
    UP_TO_DATE = "up-to-date"  # its state is as stored
    CHANGED = "changed"  # its state differs, and goes to the storage at commit
    UNSAVED = "unsaved"  # it belongs to no connection yet


def object_state(obj: Persistent) -> ObjectState:
    """Return the state *obj* is in, without loading it."""
    if obj._p_jar is None:
        return ObjectState.UNSAVED
    if obj._p_changed is None:
        return ObjectState.GHOST
    return ObjectState.CHANGED if obj._p_changed else ObjectState.UP_TO_DATE


class ChangeSet:
    """The objects one transaction has to store.

    `registered` and `added` hold what was changed, and given an oid, since the last savepoint;
    `created` lists the oids of objects that this transaction made, in order; `given` has the
    objects that came with an oid of the program's, `asked` the oids of those that it added itself.
    """

    def __init__(self) -> None:
        self.registered: dict[Oid, Persistent] = {}
        self.added: dict[Oid, Persistent] = {}
        self.count = 0  # how often an object was registered or added
        self.created: dict[Oid, None] = {}
        self.given: dict[Oid, Persistent] = {}
        self.asked: set[Oid] = set()

    def register(self, obj: Any) -> None:
        """Note that *obj* was changed."""
        self.registered[obj._p_oid] = obj
        self.count += 1

    def add(self, obj: Any) -> None:
        """Note that *obj* is new."""
        self.added[obj._p_oid] = obj
        self.count += 1

    def pending(self) -> list[Persistent]:
        """Return the objects to store, in the order they were changed."""
        added = [obj for oid, obj in self.added.items() if oid not in self.registered]
        return [*self.registered.values(), *added]

    def clear_pending(self) -> None:
        """Forget what has been stored."""
        self.registered = {}
        self.added = {}

    def created_since(self, count: int) -> list[Oid]:
        """Return, and forget, the oids created after the first *count*."""
        oids = list(self.created)[count:]
        for oid in oids:
            del self.created[oid]
        return oids


class RefusedChanges:
    """Takes back changes that were refused: mappings, lists and trees report a change when they
    have made it. A tree is in use at that moment, and is dropped at the next one."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def take_back(self, obj: Any) -> None:
        """Drop what *obj* holds, now or as soon as that can be done."""
        if obj._p_state == _STICKY:
            self.waiting.append(obj)
        else:
            obj._p_invalidate()

    def drop(self, changing: Any = None) -> None:
        """Drop what waits. `ConnectionStateError` if *changing* is such an object."""
        if any(obj is changing for obj in self.waiting):
            raise ConnectionStateError(
                f"object {format_oid(changing._p_oid)} holds a change that was refused. Abort "
                "the transaction first"
            )
        for obj in self.waiting:
            obj._p_invalidate()
        self.waiting.clear()


def adopt(jar: Jar, changes: ChangeSet, obj: Any) -> Oid:
    """Make *obj*, of no connection, one of *jar*; return its oid: a new one, or what the program
    gave it. `InvalidObjectReference` unless that is an unused oid."""
    oid: Oid | None = obj._p_oid
    if oid is None:
        oid = bytes(jar.db().storage.new_oid())
    else:
        _require_free(jar, changes, oid, obj)
        changes.given[oid] = obj
    set_jar(obj, jar)
    set_oid(obj, oid)
    return oid


def _require_free(jar: Jar, changes: ChangeSet, oid: Any, obj: Any) -> None:
    facts: dict[str, Any] = {"oid": oid, "class_name": class_name(type(obj))}
    advice = "Let the database make oids: do not set _p_oid"
    if type(oid) is not bytes or len(oid) != 8:
        raise InvalidObjectReference(
            f"a new {facts['class_name']} has the oid {shown(oid)}, but oids are 8 bytes. "
            f"{advice}", **facts,
        )
    if oid == ROOT_OID or _is_taken(jar, changes, oid, obj):
        whose = "the root object's" if oid == ROOT_OID else "another object's"
        raise InvalidObjectReference(
            f"a new {facts['class_name']} has the oid {format_oid(oid)}, which is {whose}. "
            f"{advice}", **facts,
        )


def _is_taken(jar: Jar, changes: ChangeSet, oid: Oid, obj: Any) -> bool:
    for known in (jar._cache.get(oid), changes.added.get(oid), changes.given.get(oid)):
        if known is not None and known is not obj and known._p_oid == oid:
            return True
    if oid in changes.created:
        return True
    try:
        return jar.load_committed(oid, MAX_TID) is not None
    except KeyError:
        return False
