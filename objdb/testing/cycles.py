"""The order of transactions as a graph, and its cycles.

Transactions are nodes. An edge says that one came before another, and why:

    ww    T1 ─► T2    T2 put its value of a key after T1's
    wr    T1 ─► T2    T2 read what T1 had written
    rw    T1 ─► T2    T1 read a version of a key, and T2 wrote the next one

A cycle says that no order of the transactions explains what they saw. Cycles are sought inside
strongly connected components, since there are none outside; of each kind the shortest is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from objdb.testing.histories import Value

WW, WR, RW = "ww", "wr", "rw"
ALL_KINDS = frozenset({WW, WR, RW})


class Edge(NamedTuple):
    """*source* came before *target*, because of *key*.

    *before* is the value of the key that *source* wrote, or read last; *after* the one that
    *target* wrote, or read: for lists, the last element.
    """

    kind: str
    source: str
    target: str
    key: str
    before: Value
    after: Value
    is_list: bool

    def __str__(self) -> str:
        wrote = "appended" if self.is_list else "wrote"
        if self.kind == WW:
            said = f"{self.source} {wrote} {self.before} to {self.key}, and {self.target} then " \
                f"{wrote} {self.after}"
        elif self.kind == WR:
            said = f"{self.source} {wrote} {self.before} to {self.key}, and {self.target} read it"
        else:
            seen = f"up to {self.before}" if self.is_list else f"= {self.before}"
            if self.before is None:
                seen = "empty" if self.is_list else "= none"
            said = f"{self.source} read {self.key} {seen}, and {self.target} then {wrote} " \
                f"{self.after}"
        return f"{said} ({self.kind})"


Cycle = tuple[Edge, ...]
# Where a search is: at a transaction, and whether it came there by an rw edge (where that matters).
State = tuple[str, bool]


class Graph:
    """Edges between transactions, at most one of a kind from one to another."""

    def __init__(self) -> None:
        self._edges: dict[tuple[str, str, str], Edge] = {}
        self._leaving: dict[str, list[Edge]] = {}

    def add(self, edge: Edge) -> None:
        """Add an edge, unless it leads from a transaction to itself or there is one like it."""
        place = edge.source, edge.target, edge.kind
        if edge.source != edge.target and place not in self._edges:
            self._edges[place] = edge
            self._leaving.setdefault(edge.source, []).append(edge)
            self._leaving.setdefault(edge.target, [])

    def parts(self, kinds: Collection[str], *, is_apart: bool = False) -> list[Graph]:
        """Return the strongly connected components that have edges, of the edges of these
        *kinds*: every cycle is inside of one. With *is_apart*, every cycle in which no two rw
        edges follow each other."""
        number: dict[State, int] = {}
        for i, component in enumerate(self._components(kinds, is_apart)):
            number.update(dict.fromkeys(component, i))
        graphs: dict[int, Graph] = {}
        for state, part in number.items():
            for edge, reached in self._steps(state, kinds, is_apart):
                if number[reached] == part:
                    graphs.setdefault(part, Graph()).add(edge)
        return list(graphs.values())

    def shortest_cycle(
        self, first: str, others: Collection[str], *, is_apart: bool = False
    ) -> Cycle | None:
        """Return the shortest cycle that begins with an edge of the kind *first* and goes on
        with those of the kinds *others*; None if there is none.

        With *is_apart*, no two rw edges follow each other, the last and the first included. Such
        a cycle may come through a transaction twice.
        """
        starts = [edge for edge in self._edges.values() if edge.kind == first]
        best: Cycle | None = None
        limit, was_cut = 2, bool(starts)
        # Most cycles are short: those are looked for everywhere before longer ones are.
        while best is None and was_cut:
            was_cut = False
            for edge in starts:
                longest = limit if best is None else len(best) - 1
                path, is_cut = self._path(edge, others, longest - 1, is_apart)
                was_cut = was_cut or is_cut
                best = best if path is None else (edge, *path)
            limit *= 4
        return best

    def _path(
        self, start: Edge, kinds: Collection[str], longest: int, is_apart: bool
    ) -> tuple[Cycle | None, bool]:
        """Return the shortest way back from the end of *start* to its beginning, of at most
        *longest* edges, or None; and whether there may be a longer one."""
        goal = start.source, False
        state = start.target, is_apart and start.kind == RW
        came_by: dict[State, tuple[Edge, State]] = {}
        todo = deque([(state, 0)])
        while todo:
            at, length = todo.popleft()
            if length >= longest:
                return None, True
            for edge, reached in self._steps(at, kinds, is_apart):
                if reached == state or reached in came_by:
                    continue
                came_by[reached] = edge, at
                if reached == goal:
                    return _way(came_by, state, goal), False
                todo.append((reached, length + 1))
        return None, False

    def _steps(
        self, state: State, kinds: Collection[str], is_apart: bool
    ) -> Iterator[tuple[Edge, State]]:
        """Yield the edges that lead on from *state*, and where to."""
        node, is_after_rw = state
        for edge in self._leaving[node]:
            is_rw = is_apart and edge.kind == RW
            if edge.kind in kinds and not (is_rw and is_after_rw):
                yield edge, (edge.target, is_rw)

    def _components(self, kinds: Collection[str], is_apart: bool) -> Iterator[list[State]]:
        """Yield the strongly connected components (Tarjan 1972, with a list in place of
        recursion)."""
        index: dict[State, int] = {}
        low: dict[State, int] = {}  # the smallest index known to be reached, of those in `open`
        open_states: dict[State, None] = {}  # in the order of their indices
        for root in [(node, False) for node in self._leaving]:
            work = [(root, self._steps(root, kinds, is_apart))] if root not in index else []
            while work:
                state, steps = work[-1]
                if state not in index:
                    index[state] = low[state] = len(index)
                    open_states[state] = None
                for _, other in steps:
                    if other not in index:
                        work.append((other, self._steps(other, kinds, is_apart)))
                        break
                    if other in open_states:
                        low[state] = min(low[state], index[other])
                else:
                    work.pop()
                    if work:
                        above = work[-1][0]
                        low[above] = min(low[above], low[state])
                    if low[state] == index[state]:
                        yield list(_closed(open_states, state))


def _way(came_by: dict[State, tuple[Edge, State]], start: State, goal: State) -> Cycle:
    edges: list[Edge] = []
    while goal != start:
        edge, goal = came_by[goal]
        edges.append(edge)
    return tuple(reversed(edges))


def _closed(open_states: dict[State, None], first: State) -> Iterator[State]:
    """Take *first* and all that came after it out of the open ones."""
    state = None
    while state != first:
        state, _ = open_states.popitem()
        yield state
