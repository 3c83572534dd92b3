"""A process that commits until it is killed, and the check of what it left behind.

The child commits one numbered note after the other and writes each number to its standard output
*after* the commit has returned: from then on the note is promised. The parent kills the child with
SIGKILL, which no program can catch, opens the database and looks for every promised note.

    child    commit 1 ─ "1" ─ commit 2 ─ "2" ─ … ─ commit n ─ "n" ─ commit n+1 ─┐
    parent                                                      SIGKILL ────────┘ reads, opens

Each commit changes two objects, the list of notes and the counter, so a commit of which only a half
survived would show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transaction
from BTrees.IOBTree import IOBTree

import objdb

from .errors import CalendarError
from .opening import Where

KEY = "journal"
ROOT = Path(__file__).resolve().parents[2]


class Counter(objdb.Persistent):
    """The number of the last note; an object apart from the notes."""

    last = 0


class Journal(objdb.Persistent):
    """Numbered notes."""

    def __init__(self) -> None:
        self.notes = IOBTree()
        self.counter = Counter()

    def write(self, number: int) -> None:
        """Add a note: two objects change, and both changes survive or neither."""
        self.notes[number] = f"note {number}"
        self.counter.last = number

    def is_whole(self) -> bool:
        """Tell whether the notes and the counter agree."""
        return list(self.notes) == list(range(1, self.counter.last + 1))


class StopBeforeTheEnd:
    """Takes part in a two-phase commit after the database, and lets it come to no end.

    A transaction manager asks everybody to vote, and only when all have agreed does it tell them
    to finish. When this participant votes, the database has voted: its data are written, and
    the mark that makes them count is not.
    """

    transaction_manager = None

    def sortKey(self) -> str:
        """Sort after every database: votes are taken in this order."""
        return "~~~"

    def tpc_vote(self, _transaction: Any) -> None:
        """Say that the moment has come, and wait for the end."""
        say("in mid-commit")
        signal.pause()

    def tpc_begin(self, _transaction: Any) -> None:
        """Nothing to begin."""

    commit = tpc_finish = tpc_abort = abort = tpc_begin


def say(text: str) -> None:
    """Tell the parent, at once: nothing waits in a buffer of this process."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def work(where: Where, stop_after: int) -> None:
    """Commit notes for ever, or stop in the middle of the one after so many."""
    manager = transaction.TransactionManager()
    with objdb.DB(where) as db:
        connection = db.open(transaction_manager=manager)
        journal = connection.root()[KEY]
        begin = journal.counter.last
        number = begin
        while True:
            number += 1
            manager.begin()
            journal.write(number)
            if number > begin + stop_after:
                manager.get().join(StopBeforeTheEnd())
            manager.commit()
            say(str(number))


@dataclass
class Outcome:
    """What a crash left: the last number promised, the last one found, and whether all is whole."""

    promised: int
    found: int
    whole: bool

    @property
    def kept(self) -> bool:
        """Whether everything promised is there, and nothing by half."""
        return self.whole and self.found >= self.promised


def crash(where: Where, acknowledged: int, in_mid_commit: bool) -> Outcome:
    """Let a child commit to the database (which must be closed), kill it, open it and look.

    The child is killed after so many acknowledged commits: between the two phases of the next one
    if `in_mid_commit`, otherwise wherever it happens to be.
    """
    with objdb.DB(where) as db, db.transaction(note="a journal for the crash") as connection:
        root = connection.root()
        if KEY not in root:
            root[KEY] = Journal()
    promised = _run_and_kill(where, acknowledged, in_mid_commit)
    with objdb.DB(where) as db, db.transaction() as connection:
        journal = connection.root()[KEY]
        return Outcome(promised, journal.counter.last, journal.is_whole())


def _run_and_kill(where: Where, acknowledged: int, in_mid_commit: bool) -> int:
    """Run the child, kill it, and return the last number it acknowledged."""
    stop_after = acknowledged if in_mid_commit else sys.maxsize
    command = [sys.executable, "-m", __name__, os.fspath(where), str(stop_after)]
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    with child:
        seen = []
        for line in child.stdout:
            seen.append(line.strip())
            if len(seen) == acknowledged + in_mid_commit:
                child.send_signal(signal.SIGKILL)
                break
        # What it wrote before it died is still in the pipe, and counts as promised.
        seen += [line.strip() for line in child.stdout]
        complaint = child.stderr.read()
    if child.returncode != -signal.SIGKILL:
        raise CalendarError(f"the child ended by itself: {complaint.strip() or child.returncode}")
    return max((int(number) for number in seen if number.isdigit()), default=0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
