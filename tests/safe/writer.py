"""A process that writes to a safe until it is killed, and says what was acknowledged.

    python -m tests.safe.writer DIRECTORY NAME BEGIN [END]

Prints BEGIN + 1, BEGIN + 2 …, each when what belongs to it is stored: the name's `last`, the two
`halves` in one update, one more in the common `count`, and a key of its own that the one before
had to be removed for.
"""

from __future__ import annotations

import sys

from objdb.safe import open_safe


def main(directory: str, name: str, begin: int, end: int) -> None:
    """Write numbers after *begin* up to *end*."""
    safe = open_safe(directory, create=False)
    for number in range(begin + 1, end + 1):
        safe.update({(name, "left"): number, (name, "right"): number, (name, number): "x" * 500})
        safe.pop((name, number - 1), None)
        safe.change("count", lambda count: count + 1, 0)
        safe[name] = number
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
