"""Does one task in a process of its own: `python -m benchmarks.worker TASK`, TASK being JSON.

The last line of standard output is the result as JSON. Tasks:

    build     build a template in an empty directory. With `hold`, do not close the database:
              print the result and wait to be killed
    prepare   open and close it, and do what the system's users do once after loading much data
    measure   do one measurement
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import templates
from benchmarks.measurements.catalogue import catalogue
from benchmarks.sizes import Sizes
from benchmarks.systems import SYSTEMS


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do; `name` is a template or a measurement."""

    kind: str
    name: str
    system: str
    path: str
    sizes: dict[str, object]
    hold: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        return cls(**json.loads(text))


def run(task: Task) -> dict[str, float]:
    """Do the task and return its numbers; with `hold`, never return."""
    system, path, sizes = SYSTEMS[task.system], Path(task.path), Sizes.from_json(task.sizes)
    if task.kind == "prepare":
        system.prepare(path)
        return {}
    if task.kind == "measure":
        return catalogue(sizes)[task.name].function(system, path, sizes)
    store, microseconds = templates.build(system, task.name, path, sizes)
    result = {"build_us": microseconds}
    if task.hold:
        print(json.dumps(result), flush=True)
        sys.stdin.read()
        raise SystemExit("expected to be killed")
    store.close()
    return result


def main() -> None:
    """Do the task that the command line has."""
    print(json.dumps(run(Task.from_json(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
