"""Differences between revisions of an object, by attribute.

    records ─► states ─► attributes by name ─► those that are not stored alike

States are read as for merging: references to persistent objects are `PersistentReference`, and
their targets are not loaded, except nodes of a tree. A missing attribute is `...`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistent.list import PersistentList
from persistent.mapping import PersistentMapping

from objdb.errors import DeserializationError, ObjdbError
from objdb.ids import Oid, format_oid
from objdb.records.btrees import all_items
from objdb.records.comparing import is_stored_alike
from objdb.records.conflicts import PersistentReference, References, StateReader
from objdb.records.format import class_and_arguments
from objdb.records.globals import import_global
from objdb.records.showing import shown

Load = Callable[[Oid], bytes]


def differences(
    oid: Oid, old: bytes | None, committed: bytes | None, new: bytes | None
) -> dict[str, tuple[Any, Any, Any]]:
    """Return the attributes in which three records of an object differ: by name, the three
    values, `...` for a missing one. A state that is not a dict is the attribute `""`.

    `DeserializationError` for a record that cannot be read.
    """
    references: References = {}
    records = (old, committed, new)
    states = [{} if record is None else _read(oid, record, references)[1] for record in records]
    by_name = [state if isinstance(state, dict) else {"": state} for state in states]
    names = dict.fromkeys(name for state in by_name for name in state)
    found = {name: tuple(state.get(name, ...) for state in by_name) for name in names}
    present = [i for i, record in enumerate(records) if record is not None]
    return {
        name: (values[0], values[1], values[2]) for name, values in found.items()
        if any(not _alike(oid, name, values[present[0]], values[i]) for i in present[1:])
    }


def changed_attributes(
    oid: Oid, one: bytes | None, other: bytes | None
) -> dict[str, tuple[Any, Any]]:
    """Return the attributes in which two records of an object differ, as `differences` does: by
    name, both values. None stands for no object, which has no attributes."""
    if one is not None and other is not None:
        return {name: (a, c) for name, (a, _, c) in differences(oid, one, None, other).items()}
    record = one or other
    state = {} if record is None else _read(oid, record, {})[1]
    by_name = state if isinstance(state, dict) else {"": state}
    return {
        name: (value, ...) if other is None else (..., value) for name, value in by_name.items()
    }


def changed_parts(oid: Oid, load_one: Load, load_other: Load) -> dict[Any, tuple[Any, Any]]:
    """Return the attributes and items of an object that differ: by name, key or position, both
    values. *load_one* and *load_other* load the records, by oid, of the two moments.

    `DeserializationError` for a record that cannot be read.
    """
    references: References = {}
    one, other = (_parts(oid, load, references) for load in (load_one, load_other))
    pairs = {name: (one.get(name, ...), other.get(name, ...)) for name in {**one, **other}}
    return {name: pair for name, pair in pairs.items() if not _alike(oid, name, *pair)}


def _alike(oid: Oid, name: Any, one: Any, other: Any) -> bool:
    try:
        return is_stored_alike(one, other)
    except RecursionError as error:
        raise DeserializationError(
            f"object {format_oid(oid)}: {shown(name)} is nested too deeply to be compared", oid=oid
        ) from error


def _read(oid: Oid, record: bytes, references: References) -> tuple[Any, Any]:
    """Return the class and the state in a record; `DeserializationError`."""
    try:
        reader = StateReader(record, references)
        cls, _ = class_and_arguments(reader.load())
        return import_global(*cls) if isinstance(cls, tuple) else cls, reader.load()
    except Exception as error:
        raise _unreadable(oid, error) from error


def _parts(oid: Oid, load: Load, references: References) -> dict[Any, Any]:
    """Return the attributes and items of an object, by name, key or position."""

    def load_bucket(reference: PersistentReference) -> Any:
        return _read(reference.oid, load(reference.oid), references)[1]

    try:
        cls, state = _read(oid, load(oid), references)
        items = all_items(cls, state, load_bucket)
        return _attributes_and_items(cls, state) if items is None else items
    except ObjdbError:
        raise
    except Exception as error:
        raise _unreadable(oid, error) from error


def _unreadable(oid: Oid, error: Exception) -> DeserializationError:
    return DeserializationError(
        f"object {format_oid(oid)} cannot be read: {type(error).__name__}: {error}", oid=oid
    )


def _attributes_and_items(cls: type, state: Any) -> dict[Any, Any]:
    if isinstance(state, dict):
        if not issubclass(cls, (PersistentMapping, PersistentList)):
            return state
        # Mappings of old databases keep their items in `_container`.
        kept_in = "data" if "data" in state else "_container"
        items = state.get(kept_in, ())
        found = {f".{name}": value for name, value in state.items() if name != kept_in}
        return {**found, **dict(enumerate(items) if isinstance(items, list) else items)}
    if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:
        in_dict, in_slots = state
        if in_dict is None or type(in_dict) is dict:
            return {**(in_dict or {}), **in_slots}
    return {} if state is None else {"": state}
