"""The checker of histories, on random ones: against all serial orders, and on what simulated
databases do."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objdb.testing.anomalies import check
from objdb.testing.histories import History, Operation, Transaction, Value
from tests.isolation.simulated import Simulated, simulate

# -- against all serial orders


@st.composite
def histories(draw: st.DrawFn, *, has_registers: bool) -> History:
    """A few transactions that did what somebody may take for right."""
    names = [f"T{i}" for i in range(draw(st.integers(1, 5)))]
    order: dict[str, list[int]] = {"x": [], "y": []}
    plan = []
    for number, name in enumerate(names):
        steps = draw(st.lists(st.tuples(st.booleans(), st.sampled_from("xy")), max_size=4))
        values = {}
        for i, (is_read, key) in enumerate(steps):
            if not is_read:
                values[i] = 10 * number + i
                order[key].append(values[i])
        plan.append((name, steps, values))
    for key in order:
        order[key] = draw(st.permutations(order[key]))
    transactions = []
    for name, steps, values in plan:
        mine: dict[str, list[int]] = {"x": [], "y": []}
        operations = []
        for i, (is_read, key) in enumerate(steps):
            if not is_read:
                mine[key].append(values[i])
                action = "write" if has_registers else "append"
                operations.append(Operation(action, key, values[i]))
                continue
            before = order[key][: draw(st.integers(0, len(order[key])))]
            found = [v for v in before if v not in values.values()] + mine[key]
            value: Value = tuple(found)
            if has_registers:
                value = found[-1] if found else None
            operations.append(Operation("read", key, value))
        transactions.append(Transaction(name, tuple(operations)))
    final = {k: (o[-1] if o else None) if has_registers else tuple(o) for k, o in order.items()}
    return History(tuple(transactions), final)


def is_serial(history: History) -> bool:
    """Whether some order of the transactions, one after the other, explains every read."""
    return any(explains(order, history) for order in permutations(history.transactions))


def explains(order: tuple[Transaction, ...], history: History) -> bool:
    state: dict[str, Any] = {}
    for transaction in order:
        for action, key, value in transaction.operations:
            if action == "append":
                state[key] = (*state.get(key, ()), value)
            elif action == "write":
                state[key] = value
            elif state.get(key, () if isinstance(value, tuple) else None) != value:
                return False
    assert history.final is not None
    return all(
        state.get(key, () if isinstance(value, tuple) else None) == value
        for key, value in history.final.items()
    )


@settings(max_examples=300, deadline=None)
@given(histories(has_registers=False))
def test_lists_against_all_orders(history: History) -> None:
    """With lists, and what was there in the end, nothing is found wrong exactly if some serial
    order explains everything."""
    report = check(history)
    assert (not report.anomalies) == is_serial(history), report


@settings(max_examples=200, deadline=None)
@given(histories(has_registers=True))
def test_registers_against_all_orders(history: History) -> None:
    """With registers, nothing is found wrong if some serial order explains everything; and only
    then, if all is read before it is written."""
    report = check(history)
    if is_serial(history):
        assert not report.anomalies, report
    elif reads_before_writing(history):
        assert report.anomalies


def reads_before_writing(history: History) -> bool:
    for transaction in history.transactions:
        read = set()
        for action, key, _ in transaction.operations:
            if action == "write" and key not in read:
                return False
            read.add(key)
    return True


# -- what simulated databases do


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(Simulated.ALLOWED)), st.integers(0, 2**32))
def test_simulated(kind: str, seed: int) -> None:
    """What a database of some kind does shows what that kind allows, and nothing else; its
    aborted transactions do not show more. Its text is that history."""
    history = simulate(kind, random.Random(seed), transactions=30)
    assert History.parse(str(history)) == history
    assert check(history).kinds <= Simulated.ALLOWED[kind], check(history)
    if kind in ("serial", "serializable", "snapshot"):
        assert check(history, is_opaque=True).kinds <= Simulated.ALLOWED[kind]


@pytest.mark.parametrize("kind", [kind for kind, allowed in Simulated.ALLOWED.items() if allowed])
def test_weaknesses_are_found(kind: str) -> None:
    """Everything that a kind of database allows is found in what it does, sooner or later."""
    found: set[str] = set()
    for seed in range(400):
        found |= check(simulate(kind, random.Random(seed), transactions=30)).kinds
        if found == Simulated.ALLOWED[kind]:
            return
    raise AssertionError(f"not found: {Simulated.ALLOWED[kind] - found}")


@pytest.mark.parametrize(
    "damage", ["lost update", "swapped version", "aborted value", "stale read", "lost write"]
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_found(damage: str, seed: int) -> None:
    """One wrong value in a good history is found."""
    chance = random.Random(seed)
    history = simulate("serial", chance, transactions=40, reads_first=True)
    assert not check(history).anomalies
    damaged = DAMAGES[damage](history, chance)
    assert damaged is None or check(damaged).kinds - {"G2"}, damaged


def replaced(history: History, transaction: Transaction, index: int, value: Value) -> History:
    """A history in which an operation has another value."""
    operations = list(transaction.operations)
    operations[index] = operations[index]._replace(value=value)
    other = Transaction(transaction.name, tuple(operations), transaction.status)
    return History(
        tuple(other if t is transaction else t for t in history.transactions), history.final
    )


def updates(history: History) -> list[tuple[Transaction, int]]:
    """The first reads of lists, of what somebody wrote, that are followed by an append."""
    return [
        (t, i) for t in history.transactions for i, step in enumerate(t.operations[:-1])
        if step.action == "read" and step.value and t.status == "committed"
        and isinstance(step.value, tuple)
        and t.operations[i + 1][:2] == ("append", step.key)
        and not any(earlier.key == step.key for earlier in t.operations[:i])
    ]


def lose_update(history: History, chance: random.Random) -> History | None:
    """An update of a version that somebody else has updated."""
    found = updates(history)
    if not found:
        return None
    transaction, index = chance.choice(found)
    value = transaction.operations[index].value
    assert isinstance(value, tuple)
    return replaced(history, transaction, index, value[:-1])


def swap_version(history: History, chance: random.Random) -> History | None:
    """Two elements of a list are in another order, once."""
    found = [(t, i) for t, i in updates(history) if len(t.operations[i].value) > 1]  # type: ignore
    if not found:
        return None
    transaction, index = chance.choice(found)
    value = transaction.operations[index].value
    assert isinstance(value, tuple)
    return replaced(history, transaction, index, (*value[:-2], value[-1], value[-2]))


def read_aborted(history: History, chance: random.Random) -> History | None:
    """A transaction whose values were read took them back."""
    readers: dict[Value, set[str]] = {}
    for transaction in history.transactions:
        for _, _, value in transaction.operations:
            for part in value if isinstance(value, tuple) else ():
                readers.setdefault(part, set()).add(transaction.name)
    writers = [
        t for t in history.transactions
        if t.status == "committed"
        and any(
            s.action == "append" and readers.get(s.value, set()) - {t.name} for s in t.operations
        )
    ]
    if not writers:
        return None
    victim = chance.choice(writers)
    others = [t for t in history.transactions if t is not victim]
    aborted = Transaction(victim.name, victim.operations, "aborted")
    return History((*others, aborted), history.final)


def read_stale(history: History, chance: random.Random) -> History | None:
    """A transaction overwrote what it had read long ago."""
    found = updates(history)
    if not found:
        return None
    transaction, index = chance.choice(found)
    return replaced(history, transaction, index, ())


def lose_write(history: History, chance: random.Random) -> History | None:
    """The last element of a list is not there in the end."""
    assert history.final is not None
    keys = [key for key, value in history.final.items() if isinstance(value, tuple) and value]
    if not keys:
        return None
    key = chance.choice(keys)
    value = history.final[key]
    assert isinstance(value, tuple)
    return History(history.transactions, {**history.final, key: value[:-1]})


DAMAGES = {
    "lost update": lose_update, "swapped version": swap_version, "aborted value": read_aborted,
    "stale read": read_stale, "lost write": lose_write,
}


# -- many


@pytest.mark.parametrize("kind", ["serializable", "snapshot", "no checks"])
def test_many_transactions(kind: str) -> None:
    """Ten thousand transactions are checked as a few are."""
    history = simulate(kind, random.Random(5), transactions=10_000, keys=12, keys_live=300)
    report = check(history)
    assert bool(report.anomalies) == (kind != "serializable")
