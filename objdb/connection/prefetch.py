"""Loading objects in a worker thread, so that a coroutine finds them loaded.

    objects given ─► their trees' nodes ─► what all these refer to ─► …
    ╰────────────── depth 0 ──────────╯    ╰────── depth 1 ─────╯

A tree of BTrees is one object in many nodes, and comes whole. Lists and mappings are objects like
others: what is in them is one step further.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterable, Iterator, Sequence
from itertools import islice
from threading import get_ident
from typing import Any, NoReturn

from persistent import Persistent

from objdb.connection.jar import Jar
from objdb.connection.loading import load_revision
from objdb.errors import UsageError
from objdb.ids import NO_TID, Oid
from objdb.interfaces import IStoragePrefetch
from objdb.records.btrees import child_nodes
from objdb.records.references import references

_TOGETHER = 1000  # objects that a storage is asked for in one go


class Prefetch:
    """Loads *objects*, and what can be reached from them in *depth* steps. Each of *objects* is
    a persistent object of *jar*, the oid of one, or an iterable of them."""

    def __init__(self, jar: Jar, objects: Iterable[Any], depth: int) -> None:
        self._jar = jar
        self._objects = objects
        self._depth = depth
        self._seen: set[Oid] = set()
        self._is_stopped = False

    def stop(self) -> None:
        """End after the object that is being loaded."""
        self._is_stopped = True

    def run(self) -> int:
        """Load; return the number of objects that had to be loaded (called in a worker)."""
        jar, before = self._jar, self._jar.load_count
        if jar._user:
            jar._refuse_thread()
        jar._user = get_ident()  # another thread that loads meanwhile gets ConcurrentUseError
        try:
            level = self._given()
            for steps_left in range(self._depth, -1, -1):
                following: list[Any] = []
                for node in self._load(level):
                    if steps_left:
                        following += self._referred(node)
                level = iter(following)
        finally:
            jar._user = 0
        return jar.load_count - before

    def _given(self) -> Iterator[Any]:
        for given in self._objects:
            for obj in [given] if isinstance(given, (Persistent, bytes)) else given:
                if isinstance(obj, bytes):
                    yield self._jar.get(obj)
                    continue
                if not isinstance(obj, Persistent):
                    raise UsageError(f"{obj!r:.60} is not a persistent object: it needs no load")
                if obj._p_jar is not None and obj._p_jar is not self._jar:
                    raise UsageError(f"{obj!r} is of another connection. Prefetch it there")
                yield obj

    def _load(self, objects: Iterable[Any]) -> Iterator[Any]:
        """Load objects, with the nodes of trees, and yield those that are stored."""
        objects = iter(objects)
        while group := list(islice(objects, _TOGETHER)):
            self._fetch(group)
            for obj in group:
                stack = [obj]
                while stack:
                    node = stack.pop()
                    if self._is_stopped:
                        return
                    if node._p_jar is None or node._p_oid in self._seen:
                        continue
                    self._seen.add(node._p_oid)
                    node._p_activate()
                    below = _child_nodes(node)
                    self._fetch(below)
                    stack += reversed(below)
                    if node._p_serial != NO_TID:
                        yield node

    def _fetch(self, objects: Sequence[Any]) -> None:
        """Let the storage bring what is to be loaded of these objects, if it can do that in one
        go."""
        storage = self._jar.db().storage
        if len(objects) > 1 and IStoragePrefetch.providedBy(storage) and not self._is_stopped:
            ghosts = [obj for obj in objects if obj._p_jar is not None and obj._p_changed is None]
            oids = [obj._p_oid for obj in ghosts if obj._p_oid not in self._seen]
            if oids:
                storage.prefetch(oids, self._jar._before)

    def _referred(self, node: Any) -> list[Any]:
        """Return the objects that a loaded one refers to in the database."""
        jar = self._jar
        return [jar.get(oid) for oid in references(load_revision(jar, node._p_oid)[0])]


class Prefetched(Coroutine[Any, Any, int]):
    """The result of `prefetch` where nothing is awaited: a coroutine that has ended. Awaited, it
    gives how many objects had to be loaded."""

    def __init__(self, count: int) -> None:
        self._count = count

    def send(self, value: Any) -> Any:
        """End, with the result (called by what awaits a coroutine)."""
        raise StopIteration(self._count)

    def throw(self, kind: Any, error: Any = None, traceback: Any = None) -> NoReturn:
        """Raise what it is given."""
        raise error or kind

    def close(self) -> None:
        """There is nothing to end."""

    def __await__(self) -> Generator[Any, None, int]:
        yield from ()
        return self._count


def _child_nodes(node: Any) -> tuple[Any, ...]:
    """Return the nodes below one of a tree; nothing for other objects."""
    is_tree = hasattr(node, "_bucket_type")
    return child_nodes(type(node), node.__getstate__()) if is_tree else ()
