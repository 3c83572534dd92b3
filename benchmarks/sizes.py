"""How much work a run does: three sizes of the same run."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Sizes:
    """Numbers of objects, commits and rounds; sent to each worker as JSON.

    objects         in the container that is loaded, swept and committed to
    new_objects     written by one bulk commit
    small_commits   commits of one changed object, each one timed
    batch_commits   commits of 100 new objects, each one timed
    threads, thread_commits   writers at the same time, and commits by each of them
    tree_levels     of the tree with 3 children that is walked
    oo7_parts, oo7_levels     composite parts, levels of assemblies; OO7 small has 500 and 7
    large           objects in the file that is opened, cleanly closed and after a kill
    index_objects   objects in the file whose index is measured; 0 leaves the measurement out
    growth          numbers of objects at which growth is measured
    packed          objects, in three generations, in the file that is packed
    packed_many     objects in a larger file that is packed; 0 leaves the measurement out
    slow_objects    the most objects in a file of a system that is slow to load
    sample          objects loaded at each point of growth
    transactions    of 5 records, in the file whose undo log is read
    copied          such transactions in the file that is gone through, and copied
    version_objects     changed in a version
    rounds          times each measurement is repeated
    budget_seconds  no new round starts when it would probably end after this time; 0: no limit
    """

    name: str
    objects: int = 100_000
    new_objects: int = 100_000
    small_commits: int = 300
    batch_commits: int = 60
    threads: int = 8
    thread_commits: int = 60
    tree_levels: int = 11
    oo7_parts: int = 500
    oo7_levels: int = 7
    large: int = 1_000_000
    index_objects: int = 0
    growth: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    packed: int = 200_000
    packed_many: int = 0
    slow_objects: int = 200_000
    sample: int = 10_000
    transactions: int = 100_000
    copied: int = 20_000
    version_objects: int = 10_000
    rounds: int = 5
    budget_seconds: int = 14 * 60

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Sizes:
        return cls(**{**data, "growth": tuple(data["growth"])})  # type: ignore[arg-type]


DEFAULT = Sizes("default")

QUICK = Sizes(
    "quick",
    objects=10_000,
    new_objects=10_000,
    small_commits=60,
    batch_commits=15,
    thread_commits=20,
    tree_levels=8,
    oo7_parts=100,
    oo7_levels=6,
    large=50_000,
    growth=(1_000, 10_000),
    packed=10_000,
    sample=1_000,
    transactions=10_000,
    copied=2_000,
    version_objects=2_000,
    rounds=1,
    budget_seconds=110,
)

SHARING = Sizes(
    "sharing",
    objects=20_000,
    new_objects=20_000,
    small_commits=200,
    batch_commits=30,
    copied=1_000,
    rounds=3,
)

FULL = Sizes(
    "full",
    index_objects=10_000_000,
    growth=(10_000, 100_000, 1_000_000, 10_000_000),
    packed_many=2_000_000,
    slow_objects=1_000_000,
    budget_seconds=0,
)
