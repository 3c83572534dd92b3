"""Merging two changes of one object: `_p_resolveConflict`.

    old ──────► committed     (the change of another transaction, already in the database)
      └───────► new           (ours)

    merged state = instance._p_resolveConflict(old_state, committed_state, new_state)

The instance is bare (no state, no connection). States arrive as `__getstate__` returned them,
with every reference to a persistent object replaced by a `PersistentReference`.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from persistent import Persistent

from objdb.errors import ConflictError, UnresolvableConflictError
from objdb.ids import Oid, Tid, format_oid
from objdb.records.broken import broken_class, class_name, is_broken
from objdb.records.format import PROTOCOL, class_and_arguments
from objdb.records.globals import attribute, import_global
from objdb.records.references import parse_reference, record_class_name


class PersistentReference:
    """Stands for a persistent object in the states given to `_p_resolveConflict`.

    `oid`, `database_name` (None: the object's own database), `weak`, `data` (the reference as
    stored). Two of them are equal when they refer to the same object; comparing references to
    different objects raises `ValueError`, since it is not known how the objects compare.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.oid, self.weak, self.database_name = parse_reference(data)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, PersistentReference):
            same = (other.oid, other.database_name) == (self.oid, self.database_name)
            if same and other.weak == self.weak:
                return True
        raise ValueError("references to different persistent objects cannot be compared here")

    def __hash__(self) -> int:
        return hash((self.oid, self.database_name))

    def _no_order(self, other: object) -> bool:
        self.__eq__(other)
        return False

    __lt__ = __gt__ = _no_order

    def __le__(self, other: object) -> bool:
        return self.__eq__(other)

    __ge__ = __le__

    def __repr__(self) -> str:
        weak = "weak " if self.weak else ""
        return f"<{weak}reference to {format_oid(self.oid)}>"


References = dict[tuple[Oid, "str | None", bool], PersistentReference]


class StateReader(pickle.Unpickler):
    """Reads a state. The readers of one merge share *references*: the same object is the same
    `PersistentReference` in all states, as BTrees compare references by identity."""

    def __init__(self, record: bytes, references: References) -> None:
        self.file = io.BytesIO(record)
        self.references = references
        super().__init__(self.file)

    def find_class(self, module: str, name: str) -> Any:
        """Import a class; a broken class stands in for a missing one."""
        found = import_global(module, name)
        return attribute if found is getattr else found

    def persistent_load(self, data: Any) -> PersistentReference:
        """Return the `PersistentReference` that stands for a persistent object."""
        reference = PersistentReference(data)
        key = (reference.oid, reference.database_name, reference.weak)
        return self.references.setdefault(key, reference)


class _StateWriter(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Persistent):
            raise TypeError(
                f"_p_resolveConflict put a {class_name(type(obj))} into the merged state; it can "
                "use only references from the states it received"
            )
        return obj.data if isinstance(obj, PersistentReference) else None


def resolve(
    oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
) -> bytes:
    """Return the record that merges the changes *old* → *committed* and *old* → *new*.

    Arguments are records; *old* is None when that revision is gone. *serials* are the tids of
    the committed revision and of the old one. The result has the class metadata of *new*.
    Raises `ConflictError` when the class cannot merge, `UnresolvableConflictError` when it tried
    and failed; both carry oid, class name and serials.
    """
    facts: dict[str, Any] = {
        "oid": oid, "class_name": record_class_name(new), "serials": serials,
    }
    references: References = {}
    reader = StateReader(new, references)
    try:
        cls, arguments = class_and_arguments(reader.load())
        class_end = reader.file.tell()
        if isinstance(cls, tuple):
            cls = import_global(*cls)
        if is_broken(cls):
            cls = broken_class(cls.__module__, cls.__qualname__, persistent=True)
        merge = getattr(cls.__new__(cls, *arguments), "_p_resolveConflict", None)
    except Exception as error:
        raise ConflictError(**facts) from error
    if merge is None or old is None:
        raise ConflictError(**facts)
    try:
        old_state, committed_state = _state(old, references), _state(committed, references)
        new_state = reader.load()
        merged = merge(old_state, committed_state, new_state)
        if merged is None and new_state is not None:
            raise TypeError("_p_resolveConflict returned None, which is not a state")
        buffer = io.BytesIO()
        _StateWriter(buffer, PROTOCOL).dump(merged)
    except Exception as error:
        raise UnresolvableConflictError(**facts) from error
    return new[:class_end] + buffer.getvalue()


def _state(record: bytes, references: References) -> Any:
    reader = StateReader(record, references)
    reader.load()
    return reader.load()
