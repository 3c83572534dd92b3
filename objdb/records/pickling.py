"""Pickling objects, quickly: the path of every changed object in a commit.

This module is the reference. If the accelerator was built, its functions of the same names take
their place.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import chain
from typing import Any

from persistent import Persistent

from objdb.ids import Oid
from objdb.records.attributes import set_jar, set_oid
from objdb.records.format import PROTOCOL

# Values that neither are persistent nor contain persistent objects.
ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
# Types whose instances are never persistent themselves, but may contain persistent objects.
PLAIN = ATOMS | {dict, list, tuple, set, frozenset, bytearray, type}


def serializer(
    prefixes: dict[type, bytes], dump: Callable[[Any, Any], bytes],
    long_way: Callable[[Any], bytes],
) -> Callable[[Any], bytes]:
    """Return the function `serialize(obj)`: class pickle and state pickle of an object.

    *prefixes* has the class pickles; an object of a class not in it goes the *long_way*. A state
    of plain values is pickled at once, any other by *dump(obj, state)*.
    """

    def serialize(obj: Any) -> bytes:
        prefix = prefixes.get(type(obj))
        if prefix is None:
            return long_way(obj)
        state = obj.__getstate__()
        if type(state) is dict and ATOMS.issuperset(map(type, chain(state, state.values()))):
            return prefix + pickle.dumps(state, PROTOCOL)
        return prefix + dump(obj, state)

    return serialize


def reference_maker(
    jar: Any, new_oid: Callable[[], Oid], found: list[Any], prefixes: dict[type, bytes],
    make_unusual: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    """Return the function that the pickler calls with every object it meets.

    It returns the reference to a persistent object, or None for an object stored inside the
    record. A new object gets its *jar* and an oid from *new_oid*, and is appended to *found*.
    References other than by oid and class go to *make_unusual*.
    """

    def persistent_id(obj: Any) -> Any:
        cls = type(obj)
        if cls in PLAIN:
            return None
        if cls not in prefixes or not isinstance(obj, Persistent):
            return make_unusual(obj)
        oid = obj._p_oid
        if obj._p_jar is not jar:
            if obj._p_jar is not None or oid is not None:
                return make_unusual(obj)
            oid = new_oid()
            set_jar(obj, jar)
            set_oid(obj, oid)
            found.append(obj)
        return oid, cls

    return persistent_id


try:
    from objdb._accelerator import reference_maker, serializer  # type: ignore
except ImportError:
    pass
