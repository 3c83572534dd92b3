"""Checks the isolation of transactions, from what they wrote and read alone.

    report = check(History.parse(text))
    report.raise_if_forbidden("serializable")

Transactions that could have run one after the other leave no trace of having run together. Others
do: reads that nobody can have written, and cycles of transactions that each came before the next
(see `observations` and `cycles`). The worst cycle of each kind is the mark of a weaker isolation:

    G0                 ww ─► ww          overwritten in a circle
    G1c                ww ─► wr          read in a circle
    G-single           ww, wr ─► rw      one step back in time
    G-nonadjacent      rw ─► wr ─► rw    several, never two in a row
    G2                 rw ─► rw          two in a row: all that snapshots allow

The phenomena are those of Adya (Weak Consistency, 1999); to recover them from lists that are
appended to is due to Kingsbury and Alvaro (Elle, VLDB 2020), that snapshot isolation is the
absence of all cycles but those with two adjacent rw to Fekete and others (2005) and to Cerone
and Gotsman (2016).

What is not seen: an order of reads and writes in time (a view that is consistent, and old, passes);
of registers, what would follow from writes that are not preceded by a read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from objdb.testing.cycles import ALL_KINDS, RW, WR, WW, Cycle, Graph
from objdb.testing.histories import History
from objdb.testing.observations import Anomaly, Observations

# Every kind, the worst first, and what it means.
KINDS = {
    "garbage": "a transaction read a value that no transaction wrote",
    "duplicate": "an element is in a list twice",
    "incompatible": "no order of its elements explains what was read of a list",
    "internal": "a transaction does not see what it did itself, or sees what it did only later",
    "G1a": "aborted read: a transaction saw what another took back",
    "G1b": "intermediate read: a transaction saw what another wrote on the way to something else",
    "lost write": "what was committed is not there in the end",
    "G0": "dirty write: transactions wrote over one another in a circle",
    "G1c": "circular information flow: each transaction saw, or wrote over, what the last wrote",
    "lost update": "transactions changed the same version, each without seeing the others' change",
    "fuzzy read": "a transaction read the same twice, and the second time found something else",
    "G-single": "read skew: a transaction missed what another did, and saw what came of it",
    "G-nonadjacent": "long fork: transactions saw what no snapshots of one past can show",
    "G2": "write skew: transactions each missed what the next one wrote",
}
# The kinds that each isolation mode may show.
ALLOWED = {
    "serializable": frozenset[str](),
    "snapshot": frozenset({"G2"}),
    "read-current": frozenset({"G2"}),
}


@dataclass(frozen=True)
class Report:
    """What a check found in a history: the anomalies, the worst first."""

    history: History
    anomalies: tuple[Anomaly, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of what was found."""
        return frozenset(anomaly.kind for anomaly in self.anomalies)

    def raise_if_forbidden(self, isolation: str) -> Report:
        """Return the report; AssertionError, telling all, if there is an anomaly that the
        isolation mode does not allow. KeyError for an unknown mode."""
        forbidden = self.kinds - ALLOWED[isolation]
        if forbidden:
            shown = tuple(found for found in self.anomalies if found.kind in forbidden)
            raise AssertionError(
                f"{isolation} transactions show {', '.join(sorted(forbidden))}.\n"
                f"{Report(self.history, shown)}"
            )
        return self

    def __str__(self) -> str:
        lines = [f"{len(self.history.transactions)} transactions; found: {len(self.anomalies)}"]
        by_name = {transaction.name: transaction for transaction in self.history.transactions}
        for kind, names, text, edges in self.anomalies:
            lines += ["", f"{kind}, {KINDS[kind]}: {text}"]
            lines += [f"    {edge}" for edge in edges]
            lines += [f"  {by_name[name]}" for name in dict.fromkeys(names) if name in by_name]
        return "\n".join(lines)


def check(history: History, *, is_opaque: bool = False) -> Report:
    """Return what is wrong with a history.

    With *is_opaque*, aborted transactions must have seen what committed ones may see: their
    reads count, their writes do not (opacity: Guerraoui and Kapałka, 2008). objdb's do.
    """
    seen = Observations(history, is_opaque=is_opaque)
    found = [*seen.anomalies, *_cycles(seen.graph)]
    order = list(KINDS)
    found.sort(key=lambda anomaly: order.index(anomaly.kind))
    return Report(history, tuple(found))


def _cycles(graph: Graph) -> Iterator[Anomaly]:
    """Yield the shortest cycle of each kind in each component. A cycle that snapshots allow is
    reported only where there is no other."""
    for part in graph.parts({WW}):
        yield from _told("G0", part.shortest_cycle(WW, {WW}))
    for part in graph.parts({WW, WR}):
        yield from _told("G1c", part.shortest_cycle(WR, {WW, WR}))
    for part in graph.parts(ALL_KINDS):
        found = [anomaly for inner in part.parts(ALL_KINDS, is_apart=True)
                 for anomaly in _no_snapshot(inner)]
        yield from found or _told("G2", part.shortest_cycle(RW, ALL_KINDS))


def _no_snapshot(part: Graph) -> Iterator[Anomaly]:
    single = part.shortest_cycle(RW, {WW, WR})
    yield from _told("G-single", single)
    if single is None:
        yield from _told("G-nonadjacent", part.shortest_cycle(RW, ALL_KINDS, is_apart=True))


def _told(kind: str, cycle: Cycle | None) -> Iterator[Anomaly]:
    if cycle is not None:
        names = tuple(edge.source for edge in cycle)
        yield Anomaly(kind, names, " ─► ".join((*names, names[0])), cycle)
