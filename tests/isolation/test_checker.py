"""The checker of histories: on some known to be good or bad, against all serial orders, and on
what simulated databases do."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objdb.connection.isolation import ISOLATIONS
from objdb.testing.anomalies import ALLOWED, KINDS, check
from objdb.testing.histories import History, Operation, Transaction, Value
from tests.isolation.simulated import Simulated, simulate

# What is found in each history: by name, the kinds and the text.
EXAMPLES = {
    "one after the other": ("", """
        T1 committed: read x [], append x 1, write r 5
        T2 committed: read x [1], append x 2, read x [1 2], read r 5
        T3 aborted: read r none, append x 3
        finally: x [1 2], r 5
    """),
    "a reader of the past": ("", """
        T1 committed: append x 1, append y 1
        T2 committed: append x 2, append y 2
        T3 committed: read x [1], read y [1]
        T4 committed: read y [1 2]
    """),
    "own writes": ("internal", "T1 committed: append x 1, read x []"),
    "own writes of a register": ("internal", "T1 committed: write r 1, read r none"),
    "own writes, out of order": ("internal", "T1 committed: append x 1, append x 2, read x [2 1]"),
    "own writes, too early": ("internal", "T1 committed: read x [1], append x 1"),
    "a register's own writes, too early": ("internal", "T1 committed: read r 1, write r 1"),
    "own writes, and others'": ("", """
        T1 committed: append x 1
        T2 committed: append x 2, read x [1 2], append x 3, read x [1 2 3], read x [1 2 3]
    """),
    "nobody's value": ("garbage", "T1 committed: read x [1]"),
    "nobody's register": ("garbage", "T1 committed: read r 1"),
    "twice": ("duplicate", """
        T1 committed: append x 1
        T2 committed: read x [1 1]
    """),
    "no order": ("incompatible", """
        T1 committed: append x 1
        T2 committed: append x 2
        T3 committed: read x [1 2]
        T4 committed: read x [2]
    """),
    "no order of its own": ("incompatible G1b", """
        T1 committed: append x 1, append x 2
        T2 committed: read x [2 1]
    """),
    "a gap": ("incompatible G-single", """
        T1 committed: append x 1, append x 2
        T2 committed: read x [2]
    """),
    "aborted read": ("G1a", """
        T1 aborted: append x 1
        T2 committed: read x [1]
    """),
    "aborted read, built upon": ("G1a", """
        T1 aborted: append x 1
        T2 committed: append x 2
        T3 committed: read x [1 2]
    """),
    "aborted read of a register": ("G1a", """
        T1 aborted: write r 1
        T2 committed: read r 1
    """),
    "an aborted read of no consequence": ("", """
        T1 aborted: append x 1
        T2 aborted: read x [1]
    """),
    "intermediate read": ("G1b G-single", """
        T1 committed: append x 1, append x 2
        T2 committed: read x [1]
        T3 committed: read x [1 2]
    """),
    "intermediate read of a register": ("G1b", """
        T1 committed: write r 1, write r 2
        T2 committed: read r 1
    """),
    "circular information flow": ("G1c", """
        T1 committed: append x 1, read y [2]
        T2 committed: append y 2, read x [1]
    """),
    "circular information flow of registers": ("G1c", """
        T1 committed: write r 1, read s 3
        T2 committed: write q 2, read r 1
        T3 committed: write s 3, read q 2
    """),
    "dirty write": ("G0", """
        T1 committed: append x 1, append y 1
        T2 committed: append x 2, append y 2
        finally: x [1 2], y [2 1]
    """),
    "dirty write to registers": ("G0", """
        T1 committed: write r 1, write s 1
        T2 committed: write r 2, write s 2
        finally: r 1, s 2
    """),
    "dirty write in the middle": ("G0", """
        T1 committed: append x 1, append x 2
        T2 committed: append x 3
        finally: x [1 3 2]
    """),
    "lost update": ("lost update lost write", """
        T1 committed: read x [], append x 1
        T2 committed: read x [], append x 2
        finally: x [2]
    """),
    "lost update, of which nothing is lost": ("lost update G-single", """
        T1 committed: read x [], append x 1
        T2 committed: read x [], append x 2
        finally: x [1 2]
    """),
    "lost update of a register": ("lost update G-single", """
        T1 committed: read r none, write r 1
        T2 committed: read r none, write r 2
        finally: r 2
    """),
    "lost append": ("lost write", """
        T1 committed: append x 1
        T2 committed: append x 2
        finally: x [2]
    """),
    "lost register": ("lost write", """
        T1 committed: write r 1
        finally:
    """),
    "an append of unknown fate": ("", """
        T1 committed: append x 1
        T2 unknown: append x 2
        finally: x [1]
    """),
    "an append of unknown fate that was seen": ("G1c", """
        T1 committed: append x 1, read y [2]
        T2 unknown: read x [1], append y 2
    """),
    "an append of unknown fate, half there": ("lost write", """
        T2 unknown: append x 2, append y 2
        finally: x [2]
    """),
    "fuzzy read": ("fuzzy read G-single", """
        T1 committed: read x [], read x [2]
        T2 committed: append x 2
    """),
    "fuzzy read of a register, with no order of what was written": ("fuzzy read", """
        T1 committed: read r 2, read r 3
        T2 committed: write r 2
        T3 committed: write r 3
    """),
    "read skew": ("G-single", """
        T1 committed: read x [], read y [2]
        T2 committed: append x 2, append y 2
    """),
    "read skew in registers": ("G-single", """
        T1 committed: read r none, read s 2
        T2 committed: write r 2, write s 2
    """),
    "a stale read, three transactions on": ("G-single", """
        T1 committed: append x 1
        T2 committed: read x [1], append y 2
        T3 committed: read y [2], read x []
    """),
    "long fork": ("G-nonadjacent", """
        T1 committed: append x 1
        T2 committed: append y 2
        T3 committed: read x [1], read y []
        T4 committed: read x [], read y [2]
    """),
    "long fork of registers": ("G-nonadjacent", """
        T1 committed: write r 1
        T2 committed: write s 2
        T3 committed: read r 1, read s none
        T4 committed: read r none, read s 2
    """),
    "write skew": ("G2", """
        T1 committed: read x [], append y 1
        T2 committed: read y [], append x 2
    """),
    "write skew of registers": ("G2", """
        T1 committed: read r none, read s none, write r 1
        T2 committed: read r none, read s none, write s 2
    """),
    "write skew of three": ("G2", """
        T1 committed: read x [], append y 1
        T2 committed: read y [], append z 2
        T3 committed: read z [], append x 3
        finally: x [3], y [1], z [2]
    """),
    "the read-only anomaly": ("G2", """
        T0 committed: write x 0, write y 0
        T1 committed: read y 0, write y 20
        T2 committed: read x 0, read y 0, write x -11
        T3 committed: read x 0, read y 20
    """),
    "write skew, and read skew elsewhere": ("G-single G2", """
        T1 committed: read x [], append y 1
        T2 committed: read y [], append x 2
        T3 committed: read u [], read v [4]
        T4 committed: append u 4, append v 4
    """),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    """Of each history exactly that is told which is wrong with it, and whom it is about."""
    kinds, text = EXAMPLES[name]
    report = check(History.parse(text))
    expected = {kind for kind in KINDS if kind in kinds}
    assert report.kinds == expected, report
    for anomaly in report.anomalies:
        assert anomaly.transactions
        assert anomaly.kind in str(report) and anomaly.text in str(report)


def test_there_is_an_example_of_every_kind() -> None:
    """Every kind that the checker knows has a history here."""
    for kind in KINDS:
        assert any(kind in kinds for kinds, _ in EXAMPLES.values()), kind


@pytest.mark.parametrize("name", EXAMPLES)
def test_text(name: str) -> None:
    """A history's text is that history."""
    history = History.parse(EXAMPLES[name][1])
    assert History.parse(str(history)) == history
    assert [t.split() for t in str(history).splitlines()] == [
        t.split() for t in EXAMPLES[name][1].splitlines() if t.strip()
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("T1 commits: read x []", "line 1 is no transaction"),
        ("\nT1 committed: read x", "line 2: 'read x' is not understood"),
        ("T1 committed: append x [1]", "T1: append x needs a number"),
        ("finally: x [1]\nT1 committed: read x []", "line 2"),
        ("T1 committed:\nT1 aborted:", "two transactions are called T1"),
        ("T1 committed: append x 1\nT2 committed: write x 2", "T2 uses x as a register"),
        ("T1 committed: append x 1\nT2 committed: append x 1", "1 is written to x twice"),
    ],
)
def test_no_history(text: str, complaint: str) -> None:
    """What is no history is refused, with the reason."""
    with pytest.raises(ValueError, match=complaint.replace("[", r"\[")):
        History.parse(text)


def test_the_report() -> None:
    """A report tells each cycle with its edges and transactions; only what a mode does not allow
    is raised."""
    report = check(History.parse(EXAMPLES["write skew"][1]))
    (anomaly,) = report.anomalies
    assert anomaly.transactions == ("T1", "T2") or anomaly.transactions == ("T2", "T1")
    assert [edge.kind for edge in anomaly.edges] == ["rw", "rw"]
    text = str(report)
    assert "T1 read x empty, and T2 then appended 2 (rw)" in text
    assert "T2 committed: read y [], append x 2" in text
    assert report.raise_if_forbidden("snapshot") is report
    with pytest.raises(AssertionError, match="serializable transactions show G2"):
        report.raise_if_forbidden("serializable")
    clean = check(History.parse("T1 committed: append x 1"))
    assert clean.raise_if_forbidden("serializable").anomalies == ()


def test_every_mode_has_its_line() -> None:
    """It is known of every isolation mode what it allows."""
    assert set(ALLOWED) == set(ISOLATIONS)


def test_aborted_transactions_see_what_others_may_see() -> None:
    """The reads of aborted transactions count where that is asked for."""
    history = History.parse("""
        T1 aborted: read x [], read y [2], append y 3
        T2 committed: append x 2, append y 2
    """)
    assert check(history).kinds == set()
    assert check(history, is_opaque=True).kinds == {"G-single"}


def test_the_shortest_cycle_is_told() -> None:
    """Of a ring and a shortcut, the shortcut is told."""
    ring = [f"T{i} committed: append k{i} {i}, read k{(i + 1) % 9} []" for i in range(9)]
    history = History.parse("\n".join(ring) + "\nT9 committed: read k0 [], append k5 9")
    (anomaly,) = check(history).anomalies
    assert len(anomaly.transactions) == 6


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
