"""The states of BTrees, TreeSets, buckets and sets, as their `__getstate__` returns them (see the
package `BTrees`).

    None                                      an empty tree
    ((bucket's state,),)                      a tree whose only bucket is inside
    ((child, key, child, …), first bucket)    a tree above others
    ((key, value, …),)  ((key, value, …), next bucket)    a bucket; a set has keys only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def _kind(cls: type) -> tuple[bool, bool] | None:
    """Return whether a class is a tree, and whether it is a set; None for other classes."""
    name = next((c.__name__ for c in cls.__mro__ if c.__module__.startswith("BTrees.")), "")
    name = name.removesuffix("Py")
    if not name.endswith(("BTree", "TreeSet", "Bucket", "Set")):
        return None
    return name.endswith(("BTree", "TreeSet")), name.endswith("Set")


def child_nodes(cls: type, state: Any) -> tuple[Any, ...]:
    """Return the child nodes of a tree; none for a bucket, or other classes."""
    kind = _kind(cls)
    if kind is None or not kind[0] or state is None or len(state) == 1:
        return ()
    nodes: tuple[Any, ...] = state[0][::2]
    return nodes


def items_of(cls: type, state: Any) -> dict[Any, Any] | None:
    """Return the keys and values in the state of a bucket, or of a tree with one bucket; None for
    sets, larger trees, and other classes."""
    kind = _kind(cls)
    if kind is None or kind[1] or type(state) is not tuple:
        return None
    if kind[0]:
        if len(state) != 1:
            return None
        state = state[0][0]
    return _pairs(state[0])


def all_items(cls: type, state: Any, load: Callable[[Any], Any]) -> dict[Any, Any] | None:
    """Return the keys and values of a tree or bucket; of a set, each element twice. *load* returns
    the state of the bucket that a state refers to. None for other classes."""
    kind = _kind(cls)
    if kind is None:
        return None
    is_tree, is_set = kind
    flat = [part for bucket in (_buckets(state, load) if is_tree else [state])
            for part in bucket[0]]
    return {element: element for element in flat} if is_set else _pairs(flat)


def _pairs(flat: Any) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _buckets(state: Any, load: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the states of a tree's buckets, which are a chain: each refers to the next."""
    if state is None:  # it is empty
        return
    if len(state) == 1:  # the only bucket is inside
        yield state[0][0]
        return
    bucket = load(state[1])
    while len(bucket) == 2:
        yield bucket
        bucket = load(bucket[1])
    yield bucket
