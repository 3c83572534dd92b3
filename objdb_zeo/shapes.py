"""What a server offers, and which shape its answers and messages have: all else is an error.

A shape is a function that returns whether a value has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from objdb.interfaces import (
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePacked,
    IStorageSelfCheck,
    IStorageUndoable,
)

Shape = Callable[[Any], bool]


def _anything(value: Any) -> bool:
    return True


def _is(*kinds: type) -> Shape:
    return lambda value: isinstance(value, kinds)


def _id(value: Any) -> bool:
    """An oid or a tid, which have 63 bits."""
    return isinstance(value, bytes) and len(value) == 8 and value[0] < 0x80


def _or_none(shape: Shape) -> Shape:
    return lambda value: value is None or shape(value)


def _each(shape: Shape) -> Shape:
    return lambda value: isinstance(value, (tuple, list)) and all(map(shape, value))


def _row(*shapes: Shape) -> Shape:
    return lambda value: (
        isinstance(value, (tuple, list)) and len(value) == len(shapes)
        and all(shape(part) for shape, part in zip(shapes, value, strict=True))
    )


def _with(**items: Shape) -> Shape:
    """A dict with these items."""
    return lambda value: isinstance(value, dict) and all(
        name in value and shape(value[name]) for name, shape in items.items()
    )


def _perhaps_with(**items: Shape) -> Shape:
    """A dict in which these items, if they are there, have a shape."""
    return lambda value: isinstance(value, dict) and all(
        shape(value[name]) for name, shape in items.items() if name in value
    )


_text, _bytes, _int = _is(str), _is(bytes), _is(int)
_sizes = _with(length=_int, size=_int)
_oids = _each(_id)
_found = _or_none(_row(_bytes, _id, _or_none(_id)))
_conflict = _with(oid=_id, serials=_row(_id, _id), data=_bytes)


def _record(value: Any) -> bool:
    """(oid, record or None, tid or None), of which an iteration has many."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        return False
    oid, data, tid = value
    return _id(oid) and (data is None or isinstance(data, bytes)) and (tid is None or _id(tid))


_transaction = _row(_id, _text, _bytes, _bytes, _bytes, _each(_record))
_entries = _each(_with(id=_is(bytes, str), time=_is(int, float)))
_offer = _with(version=_int)
_offered = _perhaps_with(interfaces=_each(_text), instance=_bytes, frame_bytes=_int)

ANSWERS: dict[str, Shape] = {
    "register": _id,
    "get_info": _perhaps_with(
        length=_int, size=_int, interfaces=_each(_row(_text, _text)),
        objdb=_or_none(lambda offer: _offer(offer) and _offered(offer)),
    ),
    "lastTransaction": _id,
    "loadBefore": _found,
    "loadSerial": _bytes,
    "getTid": _id,
    "getInvalidations": _or_none(_row(_id, _oids)),
    "new_oids": lambda value: bool(value) and _oids(value),
    "history": _each(_with(tid=_id)),
    "undoLog": _entries,
    "undoInfo": _entries,
    "record_iternext": _row(_id, _id, _bytes, _or_none(_id)),
    "iterator_start": _int,
    "iterator_next": _or_none(_row(
        _id, _anything, _is(bytes, str), _is(bytes, str), _or_none(_is(dict))
    )),
    "iterator_record_start": _int,
    "iterator_record_next": _or_none(_row(_id, _id, _or_none(_bytes), _or_none(_id))),
    "vote": _or_none(_each(lambda value: _id(value) or _conflict(value))),
    "tpc_finish": _id,
    "objdb.vote": _row(_oids, _or_none(_id)),
    "objdb.commit": _row(_oids, _or_none(_id)),
    "objdb.outcome": _row(_or_none(_id), _id),
    "objdb.load": _each(_found),
    "objdb.iterate": _row(_each(_transaction), _or_none(_id)),
    "objdb.try_undo": _oids,
    "objdb.preview_undo": _each(_row(
        _or_none(_id), _or_none(_bytes), _or_none(_bytes), _or_none(_text)
    )),
    "objdb.pack": _each(_anything),
    "objdb.packed_tid": _id,
    "objdb.self_check": _each(_text),
}
"""By the method."""

TOLD: dict[str, Shape] = {
    "invalidateTransaction": _row(_id, _oids),
    "info": _row(_sizes),
    "objdb.voted": _row(_int, _or_none(_id)),
    "objdb.ask": _row(_int, _int, _text, _each(_anything)),
}
"""What a server says by itself, by the method; other methods are not heard."""

QUESTIONS: dict[str, Shape] = {
    "resolve": _row(_id, _or_none(_bytes), _bytes, _bytes, _row(_id, _id)),
    "progress": _row(_text, _int, _int),
    "roots": _row(),
    "elsewhere": _row(_id),
}
"""What a server asks, by the kind of the question."""

OFFERED = {
    interface.__name__: interface for interface in (
        IStorageHistory, IStorageIteration, IStoragePackable, IStoragePacked, IStorageSelfCheck,
        IStorageUndoable,
    )
}
"""The interfaces that a server may offer, and a client declare, by the name that is sent."""
