"""What the reads of a history tell: who must have come before whom, and what cannot be.

Lists show the order of their versions: the longest that anybody read has the values in the order
in which they were appended, and every other read must be a beginning of it.

    read [1]   read [1 2]                                   version of x
                                              1 ──ww──► 2 ──ww──► 3
    longest read [1 2 3]                      │ wr      ▲
                                              ▼         │ rw
                                           the reader of [1]

Of registers less is certain: a transaction that read a version and wrote one put its own after
it; `none` comes before everything; what is there in the end comes after everything. Of writes
that nobody read before writing, nothing else is known.

An append that nobody read comes after the longest read, where it is not known what was there in
the end; where it is, the append is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from objdb.testing.cycles import RW, WR, WW, Cycle, Edge, Graph
from objdb.testing.histories import (
    ABORTED,
    COMMITTED,
    FINALLY,
    READ,
    History,
    Transaction,
    Value,
    format_value,
)


class Anomaly(NamedTuple):
    """Something that should not be: its kind, whom it is about, a sentence that tells it, and
    for a cycle its edges."""

    kind: str
    transactions: tuple[str, ...]
    text: str
    edges: Cycle = ()


class _Read(NamedTuple):
    """What *reader* found in a key, without what it had appended itself."""

    reader: str
    found: Value


class Observations:
    """The `graph` of a history, and those `anomalies` that are no cycles.

    With *is_opaque*, the reads of aborted transactions count as well.
    """

    def __init__(self, history: History, *, is_opaque: bool) -> None:
        self.graph = Graph()
        self.anomalies: list[Anomaly] = []
        self._final = history.final
        self._writers: dict[tuple[str, Value], str] = {}
        self._written: dict[tuple[str, str], list[Value]] = {}  # by writer and key, in order
        self._reads: dict[str, list[_Read]] = defaultdict(list)
        for transaction in history.transactions:
            self._note_writes(transaction)
        seen = self._seen_by_others(history)
        # Those whose writes count.
        self._committed = {
            t.name for t in history.transactions
            if t.status == COMMITTED or (t.status != ABORTED and t.name in seen)
        }
        for transaction in history.transactions:
            if is_opaque or transaction.name in self._committed:
                self._note_reads(transaction)
        writers: dict[str, list[str]] = defaultdict(list)
        for name, key in self._written:
            if name in self._committed:
                writers[key].append(name)
        self._is_list = history.keys()
        for key, is_list in self._is_list.items():
            if self._final is not None:
                nothing = () if is_list else None
                self._reads[key].append(_Read(FINALLY, self._final.get(key, nothing)))
            look = self._look_at_list if is_list else self._look_at_register
            look(key, self._reads[key], writers[key])

    # -- reading the history

    def _note_writes(self, transaction: Transaction) -> None:
        for action, key, value in transaction.operations:
            if action != READ:
                self._writers[key, value] = transaction.name
                self._written.setdefault((transaction.name, key), []).append(value)

    def _seen_by_others(self, history: History) -> set[str]:
        """Return the transactions whose values somebody else read."""
        reads: list[tuple[str, str, Value]] = [
            (transaction.name, key, value) for transaction in history.transactions
            for action, key, value in transaction.operations if action == READ
        ]
        reads += [(FINALLY, key, value) for key, value in (self._final or {}).items()]
        writers = self._writers
        return {
            writer for name, key, value in reads
            for element in (value if isinstance(value, tuple) else (value,))
            if (writer := writers.get((key, element))) is not None and writer != name
        }

    def _note_reads(self, transaction: Transaction) -> None:
        """Note what a transaction found of others; check that it sees what it did itself."""
        written: dict[str, list[Value]] = {}
        found_before: dict[str, Value] = {}
        for action, key, value in transaction.operations:
            if action != READ:
                written.setdefault(key, []).append(value)
                continue
            mine = written.get(key)
            if mine and not _shows(value, mine):
                self._add(
                    "internal", [transaction.name],
                    f"{transaction.name} read {key} = {format_value(value)} after it had written "
                    f"{', '.join(map(str, mine))} to it itself",
                )
                continue
            if mine and not isinstance(value, tuple):
                continue
            found = value[: -len(mine)] if mine and isinstance(value, tuple) else value
            if key in found_before:
                before = found_before[key]
                if before == found:
                    continue
                self._add(
                    "fuzzy read", [transaction.name],
                    f"{transaction.name} read {key} = {format_value(before)}, and then "
                    f"{format_value(found)}, its own writes aside",
                )
            found_before[key] = found
            if not self._is_ahead(transaction.name, key, found):
                self._reads[key].append(_Read(transaction.name, found))

    def _is_ahead(self, name: str, key: str, found: Value) -> bool:
        """Whether a transaction found what it wrote only later; tells it."""
        elements = found if isinstance(found, tuple) else (found,)
        early = [value for value in self._written.get((name, key), ()) if value in elements]
        if early:
            self._add(
                "internal", [name],
                f"{name} read {key} = {format_value(found)}, and wrote {early[0]} only later",
            )
        return bool(early)

    # -- lists

    def _look_at_list(self, key: str, reads: list[_Read], writers: list[str]) -> None:
        by_value: dict[Any, list[str]] = defaultdict(list)
        for reader, found in reads:
            by_value[found].append(reader)
        longest: tuple[Any, ...] = max(by_value, key=len, default=())
        self._judge_elements(key, longest, by_value)
        fitting: list[tuple[int, list[str]]] = []  # a length, and who read so much
        for found, readers in by_value.items():
            self._judge_last(key, found[-1:], readers)
            self._judge_updates(key, found, readers)
            if longest[: len(found)] == found:
                fitting.append((len(found), readers))
                continue
            self._judge_elements(key, found, by_value)
            other = by_value[longest][0]
            self._add(
                "incompatible", [readers[0], other],
                f"{readers[0]} read {key} = {format_value(found)}, and {other} read "
                f"{format_value(longest)}: neither is a beginning of the other",
            )
        appended = [value for name in writers for value in self._written[name, key]]
        if self._final is not None:
            self._judge_lost(key, appended, set(self._final.get(key) or ()))  # type: ignore[arg-type]
            appended = []
        self._order(key, longest, fitting, appended)

    def _order(
        self, key: str, longest: tuple[Value, ...], fitting: list[tuple[int, list[str]]],
        appended: list[Value],
    ) -> None:
        """Add the edges of a list: *fitting* says who read how much of the *longest*. What was
        *appended* and is not in it comes later."""
        order: dict[Value, None] = {}
        lengths = [0]  # how many of the first n elements count
        for value in longest:
            if self._writers.get((key, value)) in self._committed:
                order[value] = None
            lengths.append(len(order))
        values = list(order)
        self._judge_order(key, values)
        later = [value for value in appended if value not in order]
        for before, after in pairwise(values):
            self._edge(WW, key, before, after)
        for value in later if values else ():
            self._edge(WW, key, values[-1], value)
        for length, readers in fitting:
            here = lengths[length]
            last = values[here - 1] if here else None
            following = values[here : here + 1] or later
            for reader in readers:
                self._edge(WR, key, last, last, target=reader)
                for value in following:
                    self._edge(RW, key, last, value, source=reader)

    def _judge_order(self, key: str, values: list[Value]) -> None:
        """Tell whose values are not in the order in which they were appended."""
        found: dict[str, list[Value]] = defaultdict(list)
        for value in values:
            found[self._writers[key, value]].append(value)
        for name, mine in found.items():
            appended = self._written[name, key]
            if appended[: len(mine)] != mine:
                self._add(
                    "incompatible", [name],
                    f"{name} appended {', '.join(map(str, appended))} to {key}, where there is "
                    f"{', '.join(map(str, mine))} of it",
                )

    def _judge_lost(self, key: str, appended: list[Value], final: set[Value]) -> None:
        for value in appended:
            if value not in final:
                name = self._writers[key, value]
                self._add(
                    "lost write", [name],
                    f"{name} appended {value} to {key}, which is not there in the end",
                )

    # -- registers

    def _look_at_register(self, key: str, reads: list[_Read], writers: list[str]) -> None:
        by_value: dict[Value, list[str]] = defaultdict(list)
        for reader, found in reads:
            by_value[found].append(reader)
        after: dict[Value, list[str]] = defaultdict(list)  # who wrote after a value
        blind = dict.fromkeys(writers)
        for found, readers in by_value.items():
            if found is not None:
                self._judge_elements(key, (found,), {(found,): readers})
                self._judge_last(key, (found,), readers)
            self._judge_updates(key, found, readers)
            for name in readers:
                if name in self._committed and (name, key) in self._written:
                    after[found].append(name)
                    blind.pop(name, None)
        after[None] += blind
        self._add_final(key, writers, after)
        for found in {**by_value, **after}:
            if found is not None and self._writers.get((key, found)) not in self._committed:
                continue
            for name in after[found]:
                self._edge(WW, key, found, self._written[name, key][-1])
            for reader in by_value.get(found, ()):
                self._edge(WR, key, found, found, target=reader)
                for name in after[found]:
                    self._edge(RW, key, found, self._written[name, key][-1], source=reader)

    def _add_final(
        self, key: str, writers: list[str], after: dict[Value, list[str]]
    ) -> None:
        """What is there in the end comes after all that nothing else is known to come after."""
        if self._final is None:
            return
        final = self._final.get(key)
        last = self._writers.get((key, final))
        for name in writers:
            value = self._written[name, key][-1]
            if final is None:
                self._add(
                    "lost write", [name],
                    f"{name} wrote {value} to {key}, which is none in the end",
                )
            elif last in self._committed and name != last and not after[value]:
                after[value].append(last)

    # -- single values

    def _judge_elements(
        self, key: str, found: tuple[Any, ...], by_value: dict[Any, list[str]]
    ) -> None:
        """Tell which values nobody wrote, or somebody took back, or are there twice."""
        before: set[Value] = set()
        for i, value in enumerate(found):
            writer = self._writers.get((key, value))
            if writer in self._committed and value not in before:
                before.add(value)
                continue
            reader = next(
                readers[0] for other, readers in by_value.items()
                if other[: i + 1] == found[: i + 1]
            )
            said = f"{reader} read {value} in {key}"
            if value in before:
                self._add("duplicate", [reader], f"{said} twice: {format_value(found)}")
            elif writer is None:
                self._add("garbage", [reader], f"{said}, which nobody wrote")
            else:
                self._add("G1a", [reader, writer], f"{said}, which {writer} wrote and took back")

    def _judge_last(self, key: str, last: tuple[Value, ...], readers: list[str]) -> None:
        """Tell whether a value that was read was not the last its transaction wrote."""
        for value in last:
            writer = self._writers.get((key, value))
            if writer in self._committed and self._written[writer, key][-1] != value:
                self._add(
                    "G1b", [readers[0], writer],
                    f"{readers[0]} read {value} in {key}, after which {writer} wrote "
                    f"{self._written[writer, key][-1]}",
                )

    def _judge_updates(self, key: str, found: Value, readers: list[str]) -> None:
        """Tell whether several read one version and wrote the next one."""
        names = [
            name for name in readers if name in self._committed and (name, key) in self._written
        ]
        if len(names) > 1:
            self._add(
                "lost update", names,
                f"{' and '.join(names)} each read {key} = {format_value(found)}, and wrote to it",
            )

    # -- noting

    def _edge(
        self, kind: str, key: str, before: Value, after: Value, *,
        source: str | None = None, target: str | None = None,
    ) -> None:
        """Add an edge: from the writer of *before*, or *source*; to that of *after*, or
        *target*. None before everything has no writer."""
        source = source or self._writers.get((key, before))
        target = target or self._writers.get((key, after))
        if source is not None and target is not None:
            is_list = self._is_list[key]
            self.graph.add(Edge(kind, source, target, key, before, after, is_list))

    def _add(self, kind: str, names: Iterable[str], text: str) -> None:
        self.anomalies.append(Anomaly(kind, tuple(names), text))


def _shows(value: Value, mine: list[Value]) -> bool:
    """Whether *value* is what a transaction sees that wrote what is *mine*."""
    if isinstance(value, tuple):
        return value[-len(mine) :] == tuple(mine)
    return value == mine[-1]
