"""The checker of histories, on some known to be good or bad."""

from __future__ import annotations

import pytest

from objdb.connection.isolation import ISOLATIONS
from objdb.testing.anomalies import ALLOWED, KINDS, check
from objdb.testing.histories import History

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
        ("T1 commits: read x []", "line 1 is not a transaction"),
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
