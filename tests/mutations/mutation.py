"""What a mutation is: a mistake that a maintainer could make, and the tests that have to notice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake in the module *path* of the package: the text *old*, which is there once, becomes
    *new*. It breaks *promise*, which *tests* (paths, or ids of pytest, from the root of the
    checkout) have to notice. `is_pure`: the accelerator has a twin of the code, so the tests run
    without that."""

    name: str
    path: str
    old: str
    new: str
    promise: str
    tests: tuple[str, ...]
    is_pure: bool = False

    def applied(self, text: str) -> str:
        """Return the *text* of the module with the mistake. ValueError unless *old* is there once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: its old text is {count} times in {self.path}, not once")
        return text.replace(self.old, self.new)

    def apply(self, package: Path) -> None:
        """Make the mistake in the package at *package*."""
        module = package / self.path
        module.write_text(self.applied(module.read_text()))
