"""Power lost, or the process killed, after every operation of a random workload on a FileStorage;
now and then the work goes on after that, and power is lost once more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

from objdb.storage import staging
from objdb.storage import storage as storage_module
from objdb.storage.file import log, recovery
from objdb.testing.faults import SURVIVALS, FaultyFiles
from tests.campaign.workload import Workload

# After which part of the crashes the work goes on, for how many steps.
SECOND_PART, SECOND_STEPS = 0.03, 3


def sweep(seed: int, steps: int = 10) -> int:
    """Crash a random workload everywhere; raise AssertionError for what is lost, there by half,
    or back though it was aborted. Return the number of crashes."""
    chance = random.Random(seed)
    options = {
        "preallocate_bytes": chance.choice([0, 300, 5000]),
        "checkpoint_records": chance.choice([2, 7, 1000]),
    }
    # Large transactions are written in pieces, and staged in a file: here, most are large.
    chunk, spool = chance.choice([200, 1500, log._CHUNK]), chance.choice([1000, 20_000])
    with (
        mock.patch.object(log, "_CHUNK", chunk),
        mock.patch.object(recovery, "_COPY_CHUNK", chunk),
        mock.patch.object(staging, "SPOOL_BYTES", spool),
        mock.patch.object(storage_module, "_CLOSE_SECONDS", 0),
    ):
        work = Workload(FaultyFiles(), chance, options, [()], f"seed {seed}")
        work.run(steps)
        crashes = 0
        for disk, possible, when in iter_crashes(work, seed):
            crashes += 1
            first = len(disk.operations)
            again = Workload(disk, chance, options, possible, when)
            if chance.random() < SECOND_PART:
                again.run(SECOND_STEPS)
                crashes += sweep_again(again, first, chance, options)
            again.close()
        work.close()
    return crashes


def iter_crashes(work: Workload, seed: int) -> Iterator[tuple[FaultyFiles, list[Any], str]]:
    """Yield the disk after each crash of *work*, the histories it may show, and a description.

    Just before a sync, where most is at stake, there are more of them.
    """
    operations = work.files.operations
    for count in range(len(operations) + 1):
        possible = work.possible(count)
        is_before_sync = count < len(operations) and operations[count].kind == "sync"
        for survival in SURVIVALS:
            when = f"{work.when}, operation {count}, {survival}"
            for number in range(4 if is_before_sync and survival not in ("lost", "kept") else 1):
                yield work.files.crashed(count, survival, seed + number), possible, when
        yield killed(work.files, count), possible, f"{work.when}, operation {count}, killed"


def killed(files: FaultyFiles, count: int) -> FaultyFiles:
    """A disk, empty once, after the process was killed behind the first *count* operations: the
    system has everything, the medium only what was synced."""
    after = FaultyFiles()
    after.operations = files.operations[:count]
    after.contents = files.crashed(count, "kept").contents
    return after


def sweep_again(
    work: Workload, first: int, chance: random.Random, options: dict[str, Any]
) -> int:
    """Let power be lost after each operation of *work* from number *first* on, each time in one
    way; return how often."""
    counts = range(first, len(work.files.operations) + 1)
    for count in counts:
        survival = chance.choice(SURVIVALS)
        when = f"{work.when}; then operation {count}, {survival}"
        disk = work.files.crashed(count, survival, chance.randrange(10**9))
        Workload(disk, chance, options, work.possible(count), when).close()
    return len(counts)
