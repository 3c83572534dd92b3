"""What one transaction has changed and created through one connection; and the four states of a
persistent object.

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

from objdb.ids import Oid


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
