"""The types of objdb.conflictfree against a model: several transactions from one snapshot,
committed one after the other."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import objdb
from objdb.conflictfree import AppendQueue, Counter, Mapping, MaxRegister, Set
from tests.connection.merging import CONFLICT, Change, commit_all, look, put

SMALL = st.integers(0, 4)
SNAPSHOT = st.lists(SMALL, max_size=4, unique=True)
STEPS = st.lists(st.tuples(st.sampled_from("+-"), SMALL, SMALL), max_size=5)
TRANSACTIONS = st.lists(STEPS, min_size=2, max_size=4)


def against_a_model(
    it: Any, changes: list[Change], outcomes: list, expected: Any, how: Callable[[Any], Any]
) -> None:
    """Run *changes* in a database, and compare with what the model says."""
    with objdb.DB() as db:
        put(db, it)
        assert commit_all(db, changes) == outcomes
        assert look(db, how) == expected


@given(st.integers(), st.lists(st.lists(st.integers()), min_size=2, max_size=4))
@settings(deadline=None, max_examples=60)
def test_counter_model(start: int, amounts: list[list[int]]) -> None:
    """A counter is its beginning and everything added since."""
    changes: list[Change] = [lambda it, p=part: [it.add(n) for n in p] for part in amounts]
    total = start + sum(map(sum, amounts))
    against_a_model(Counter(start), changes, [None] * len(changes), total, lambda it: it.value)


DAYS = st.dates(datetime.date(2000, 1, 1))


@given(st.none() | DAYS, st.lists(st.lists(DAYS), min_size=2, max_size=4))
@settings(deadline=None, max_examples=60)
def test_max_register_model(start: Any, values: list[list]) -> None:
    """A register holds the largest of all values."""
    changes: list[Change] = [lambda it, p=part: [it.set(v) for v in p] for part in values]
    present = [start] * (start is not None)
    largest = max([*present, *(v for part in values for v in part)], default=None)
    how = lambda it: it.value  # noqa: E731
    against_a_model(MaxRegister(start), changes, [None] * len(changes), largest, how)


@given(SNAPSHOT, TRANSACTIONS)
@settings(deadline=None, max_examples=200)
def test_set_model(start: list[int], transactions: list) -> None:
    """A set loses what any transaction removed, and has what any added."""
    expected, changes = set(start), []
    for steps in transactions:
        after = set(start)
        for step, element, _ in steps:
            (after.add if step == "+" else after.discard)(element)
        expected = (expected - (set(start) - after)) | (after - set(start))

        def change(it: Set, steps: list = steps) -> None:
            for step, element, _ in steps:
                (it.add if step == "+" else it.discard)(element)
        changes.append(change)
    against_a_model(Set(start), changes, [None] * len(changes), expected, set)


@given(SNAPSHOT, TRANSACTIONS)
@settings(deadline=None, max_examples=200)
def test_mapping_model(start: list[int], transactions: list) -> None:
    """A mapping has every transaction's changes; one that changed a key otherwise than those
    before it is a conflict, and has no effect."""
    first: dict[int, int] = dict.fromkeys(start, 0)
    current, outcomes, changes = dict(first), [], []
    for steps in transactions:
        after = dict(first)

        def change(it: Any, steps: list = steps) -> None:
            for step, key, value in steps:
                if step == "+":
                    it[key] = value
                else:
                    it.pop(key, None)
        change(after)
        changes.append(change)
        mine = {k: after.get(k) for k in {*first, *after} if first.get(k) != after.get(k)}
        ok = all(current.get(k) in (first.get(k), value) for k, value in mine.items())
        outcomes.append(None if ok else CONFLICT)
        if ok:
            current = {k: v for k, v in {**current, **mine}.items() if v is not None}
    against_a_model(Mapping(first), changes, outcomes, current, dict)


@given(SNAPSHOT, TRANSACTIONS)
@settings(deadline=None, max_examples=300)
def test_queue_model(start: list[int], transactions: list) -> None:
    """A queue is what it is when the transactions run one after the other; one that would then
    take other items than it did is a conflict, and has no effect."""
    def play(items: list, steps: list, who: int) -> list:
        taken = []
        for number, (step, _, _) in enumerate(steps):
            if step == "+":
                items.append((who, number))
            elif items:
                taken.append(items.pop(0))
            else:
                taken.append(None)
        return taken

    begin = [("start", n) for n in start]
    current, outcomes, changes = list(begin), [], []
    for who, steps in enumerate(transactions):
        # Taking from an empty queue is left out: it is an error, and says nothing to the merge.
        seen = list(begin)
        steps = [step for step in steps if play(seen, [step], who) != [None]]
        after = list(current)
        ok = play(list(begin), steps, who) == play(after, steps, who)
        outcomes.append(None if ok else CONFLICT)
        current = after if ok else current

        def change(it: AppendQueue, steps: list = steps, who: int = who) -> None:
            for number, (step, _, _) in enumerate(steps):
                _ = it.append((who, number)) if step == "+" else it.popleft()
        changes.append(change)
    against_a_model(AppendQueue(begin), changes, outcomes, current, list)
