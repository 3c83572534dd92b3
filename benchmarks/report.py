"""Writes RESULTS.md: first what was to be reached, then everything that was measured."""

# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from benchmarks.measurements.measurement import Measurement, Quantity
from benchmarks.results import Results
from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.targets import (
    NOISE,
    OURS,
    SERVER,
    Target,
    Verdict,
    judge,
    sharing_targets,
    storage_targets,
    targets,
)

FAIRNESS = """\
- The systems take turns: a round goes through all of them for one measurement before the next
  begins. Each measurement runs in a fresh process; one that writes has a fresh copy of the
  database, which is on the disk before it starts. All files are in the page cache.
- The objects have three attributes (an integer, two strings) and records of about 150 bytes.
  objdb and ZODB run the same code on the same `persistent` and `BTrees` packages; the items are
  the values of an `LOBTree`. Durus has its own base class and tree, and compresses records (its
  default). LMDB, Berkeley DB and sqlite hold pickled plain objects (protocol 5): no references, no
  identity, no notice of changes, no cache. They show what storing costs without an object database.
- All commits are durable when they return. ZODB and objdb sync by themselves. Durus does not, so
  its file is synced after each commit. LMDB has its defaults; Berkeley DB syncs its log; sqlite is
  in WAL mode with `synchronous=FULL`. The bare writes are as long as a ZODB commit of one item.
- Commits: making the objects is not timed, nor is putting them into the tree in memory; finding,
  pickling and writing them is. For the systems without trees, the time is that of pickling, putting
  and committing.
- Loads: the time is from the root object to an attribute of the last item, the nodes of the tree
  included, with the database open and nothing loaded. Everything loaded is kept, by all. LMDB,
  Berkeley DB and sqlite read the container order with a cursor, the random order with one `get`
  (or `SELECT`) per item.
- The caches of the object databases hold two million objects, so that nothing loaded is dropped;
  those of Berkeley DB and sqlite, 256 MiB.
- OO7: the small configuration has 7 levels of assemblies and 500 composite parts of 20 atomic
  parts, with 3 connections each; connections are objects. T1 and T2b start cold, each in a process
  of its own. T2b counts the traversal and its commit.
- Invalidation is the time of `sync()` in a connection with all items loaded, after another one has
  committed changes of all of them.
- Opening ends when the root (or a first record) was read. The modules were imported before. Memory
  is the growth of the resident set; of it, private is what the kernel counts as anonymous, mapped
  is what comes from files and can be dropped. After `kill -9` means: the process that loaded the
  file, in transactions of 10,000, was killed after its last commit, without closing. Durus is
  packed before it is opened, since only then is its index on disk; after the kill it is as it was
  left. Berkeley DB is opened with recovery, as its manual asks, and checkpointed each 64 MiB while
  loading.
- What is contended is one object of a file of items, changed by all threads, each of which tries
  again until it has no conflict: with `db.run` in objdb, which opens a connection each time, and
  with `TransactionManager.attempts` in ZODB on a connection that stays open. What compares
  isolation modes, and asyncio with threads, is taken in turns inside one process.
- The undo log is that of a file of transactions of 5 records each, of 1,000 objects in turn,
  written through the storage. Bounds that are times are objdb's; ZODB takes a filter, as its
  users do, which looks at all entries from the end of the file on.
- Undo: a commit of one changed object, and undoing it, in turns; the object is loaded in between.
- Iterating reads all transactions and the data of all records. objdb verifies the checksums it
  has written. Copying is `copyTransactionsFrom`, from one file storage to a new one: durable when
  it returns, without closing. ZODB waits for the disk after each transaction, objdb for 64 at once.
- Versions: a connection in a version, and one outside any, do the same in turns to objects of
  their own, which were last written by one transaction each. Committing a version is
  `commitVersion` and the commit.
- RelStorage keeps history, with `synchronous=FULL`, as objdb's SQLiteStorage does; its cache has
  its defaults. Layers are over a file. Records of items are smaller than what is worth compressing
  without a dictionary, so zlib stores them as they are. Processes: each has the database open, and
  changes an object of its own.
- Servers: all on loopback, in a process of their own, on their file storages; ZEO's with msgpack.
  objdb's and ZEO's sync each commit; Durus's does not, as it is shipped. Clients have their default
  caches, which are empty. Idle clients have registered, and read nothing.
- Threads: Durus has one connection per process, so it takes no part. Attribute: each access is one
  of 20 in an unrolled loop; the best of 100 loops counts.
"""


_TARGETS: dict[str, Callable[[Sizes], list[Target]]] = {
    "usual": targets, "storages": storage_targets, "sharing": sharing_targets
}
"""What is to be reached, by the kind of a run."""


@dataclass(frozen=True)
class Report:
    """Everything that goes into RESULTS.md."""

    results: Results
    sizes: Sizes
    systems: list[System]
    missing: list[System]
    measurements: list[Measurement]
    machine: dict[str, str]
    versions: dict[str, str]
    command: str
    is_whole: bool = True
    kind: str = "usual"

    def verdicts(self) -> list[Verdict]:
        measured = {measurement.name for measurement in self.measurements}
        return [
            judge(target, self.results)
            for target in _TARGETS[self.kind](self.sizes)
            if self.is_whole or target.measurement in measured
        ]

    def markdown(self) -> str:
        """The page; after a run of a part, without the rest and without the notes."""
        parts = [
            "# Measured",
            self._introduction(),
            "## To reach",
            self._targets(),
            "## All systems",
            *(self._measurement(m) for m in self.measurements if not _is_growth(m)),
            "## Growth",
            self._growth(),
            *(("## Fairness", FAIRNESS.strip()) if self.is_whole else ()),
            *self._failures(),
            "## Where",
            _table(["", ""], [[name, value] for name, value in self.machine.items()]),
            _table(["package", "version"], [[name, v] for name, v in self.versions.items()]),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _introduction(self) -> str:
        day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        minutes = self.results.seconds / 60
        rounds = "1 round" if self.results.rounds == 1 else f"{self.results.rounds} rounds"
        lines = [
            f"{day}, `{self.command}`: {rounds} in {minutes:.0f} minutes. "
            "Numbers are medians over the rounds; ratios are those of medians in this run."
        ]
        if self.sizes.name == "quick":
            lines.append(
                "**A quick run**: fewer objects than the targets are about, so its ratios say "
                "whether something broke, not what was reached."
            )
        if not self.sizes.index_objects:
            lines.append("Files of 10,000,000 objects are measured with `--full` only.")
        if self.missing:
            names = ", ".join(system.title for system in self.missing)
            lines.append(f"Not installed, so not measured: {names}.")
        return "\n\n".join(lines)

    def _targets(self) -> str:
        verdicts = self.verdicts()
        counted = [verdict.reached for verdict in verdicts]
        summary = (
            f"{counted.count(True)} reached, {counted.count(False)} missed, "
            f"{counted.count(None)} not measured. “No slower” and “=” allow "
            f"{NOISE - 1:.0%} of noise. A ratio with × and a peer named in “at least” says how "
            "many times as fast as the peer we are, one with ≤ or = how much of the peer's time or "
            "memory we take."
        )
        header = ["measurement", "ours", "peer", "ratio", "at least", "aim", "reached"]
        return f"{summary}\n\n{_table(header, [self._row(verdict) for verdict in verdicts])}"

    def _row(self, verdict: Verdict) -> list[str]:
        target = verdict.target
        peer = "–"
        if verdict.peer is not None:
            titles = {system.name: system.title for system in self.systems}
            title = target.beside[1] if target.beside else titles[target.peer or ""]
            peer = f"{_number(verdict.peer)} {target.unit} ({title})"
        return [
            target.title,
            "–" if verdict.ours is None else f"{_number(verdict.ours)} {target.unit}",
            peer,
            "–" if verdict.ratio is None else f"{verdict.ratio:.2f} ×",
            target.at_least.text,
            target.aim.text if target.aim else "",
            _reached(verdict),
        ]

    def _measurement(self, measurement: Measurement) -> str:
        tables = [self._quantity(measurement, quantity) for quantity in measurement.quantities]
        return "\n\n".join(table for table in tables if table)

    def _quantity(self, measurement: Measurement, quantity: Quantity) -> str:
        ours_name = SERVER if self.kind == "sharing" else OURS
        ours = self.results.median(measurement.name, ours_name, quantity.key)
        rows = []
        for system in self.systems:
            summary = self.results.summary(measurement.name, system.name, quantity.key)
            if summary is None:
                continue
            compared = "–"
            if ours and summary.median:
                compared = f"{summary.median / ours:.2f}"
            numbers = (summary.median, summary.least, summary.most)
            count = str(len(summary.values))
            rows.append([system.title, *map(_number, numbers), count, compared])
        if not rows:
            return ""
        better = "more is better" if quantity.more_is_better else "less is better"
        title = f"### {quantity.title[0].upper()}{quantity.title[1:]} ({quantity.unit}, {better})"
        if quantity.title.startswith("…"):
            title = f"{quantity.title} ({quantity.unit}, {better}):"
        header = ["system", "median", "min", "max", "rounds", "÷ objdb"]
        return f"{title}\n\n{_table(header, rows)}"

    def _growth(self) -> str:
        measurements = [m for m in self.measurements if _is_growth(m)]
        if not measurements:
            return "Not measured."
        parts = ["![Growth](../docs/growth.svg)"]
        counts = [int(m.name.partition("-")[2]) for m in measurements]
        header = ["objects", *(f"{count:,}" for count in counts)]
        loading = Quantity("build_us", "loading in transactions of 10,000", "µs/object")
        for quantity in (*measurements[0].quantities, loading):
            is_load = quantity is loading
            rows = []
            for system in self.systems:
                names = [f"build-{n}" if is_load else f"growth-{n}" for n in counts]
                found = [self.results.median(name, system.name, quantity.key) for name in names]
                if any(value is not None for value in found):
                    cells = ["–" if value is None else _number(value) for value in found]
                    rows.append([system.title, *cells])
            title = f"{quantity.title[0].upper()}{quantity.title[1:]} ({quantity.unit}):"
            parts.append(f"{title}\n\n{_table(header, rows)}")
        return "\n\n".join(parts)

    def _failures(self) -> list[str]:
        if not self.results.failures:
            return []
        rows = [[name, system, reason] for name, system, reason in self.results.failures]
        return ["## Failed", _table(["measurement", "system", "reason"], rows)]


def _is_growth(measurement: Measurement) -> bool:
    return measurement.name.startswith("growth-")


def _reached(verdict: Verdict) -> str:
    if verdict.reached is None:
        return "not measured"
    if not verdict.reached:
        return "**missed**"
    if verdict.aim is None:
        return "yes"
    return "yes, and the aim" if verdict.aim else "yes, not the aim"


def _number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ((cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
