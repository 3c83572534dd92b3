"""Merging two changes of one object: `_p_resolveConflict`.

    old ──────► committed     (somebody else's change, already in the database)
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
from objdb.records.reader import import_global
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


_References = dict[tuple[Oid, "str | None", bool], PersistentReference]


class _StateReader(pickle.Unpickler):
    """Reads one of the three states. *references* is shared by all of them: the same object is
    the same `PersistentReference` everywhere, as BTrees compare references by identity."""

    def __init__(self, record: bytes, references: _References) -> None:
        self.file = io.BytesIO(record)
        self.references = references
        super().__init__(self.file)

    def find_class(self, module: str, name: str) -> Any:
        return import_global(module, name)

    def persistent_load(self, data: Any) -> PersistentReference:
        reference = PersistentReference(data)
        key = (reference.oid, reference.database_name, reference.weak)
        return self.references.setdefault(key, reference)


class _StateWriter(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Persistent):
            raise TypeError(
                f"_p_resolveConflict put a {class_name(type(obj))} into the merged state; it can "
                "only use the references that are in the states it was given"
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
    references: _References = {}
    reader = _StateReader(new, references)
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
            raise TypeError("_p_resolveConflict returned None, which is no state")
        buffer = io.BytesIO()
        _StateWriter(buffer, PROTOCOL).dump(merged)
    except Exception as error:
        raise UnresolvableConflictError(**facts) from error
    return new[:class_end] + buffer.getvalue()


def differences(
    old: bytes | None, committed: bytes | None, new: bytes | None
) -> dict[str, tuple[Any, Any, Any]]:
    """Return which attributes the records differ in: by name, the three values, `...` where
    there is none. A state that is no dict is the attribute `""`."""
    references: _References = {}
    records = (old, committed, new)
    states = [{} if record is None else _state(record, references) for record in records]
    by_name = [state if isinstance(state, dict) else {"": state} for state in states]
    names = dict.fromkeys(name for state in by_name for name in state)
    found = {name: tuple(state.get(name, ...) for state in by_name) for name in names}
    present = [i for i, record in enumerate(records) if record is not None]
    return {
        name: (values[0], values[1], values[2]) for name, values in found.items()
        if any(not is_stored_alike(values[present[0]], values[i]) for i in present[1:])
    }


def changed_attributes(
    one: bytes | None, other: bytes | None
) -> dict[str, tuple[Any, Any]]:
    """Return which attributes two records differ in, as `differences` does: by name, both values.
    None is no object, which has no attribute."""
    if one is not None and other is not None:
        return {name: (a, c) for name, (a, _, c) in differences(one, None, other).items()}
    record = one or other
    state = {} if record is None else _state(record, {})
    by_name = state if isinstance(state, dict) else {"": state}
    return {
        name: (value, ...) if other is None else (..., value) for name, value in by_name.items()
    }


def is_stored_alike(one: Any, other: Any) -> bool:
    """Whether two values of such states are stored alike. Their `__eq__` is not asked: 1 and True
    are equal, and references to different objects cannot be compared."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (set, frozenset)):
        return {_stored(part) for part in one} == {_stored(part) for part in other}
    return _stored(one) == _stored(other)


def _stored(value: Any) -> bytes:
    buffer = io.BytesIO()
    _ValuePickler(buffer, PROTOCOL).dump(value)
    return buffer.getvalue()


class _ValuePickler(pickle.Pickler):
    """Pickles a value to compare it."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, PersistentReference):
            return (obj.oid, obj.database_name, obj.weak)
        return None


def _state(record: bytes, references: _References) -> Any:
    reader = _StateReader(record, references)
    reader.load()
    return reader.load()
