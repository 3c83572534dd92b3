"""Mistakes on purpose: what a maintainer could do to the code, one line at a time, and which tests
have to notice it. `./dev mutations` makes each in a copy of the checkout, and runs those tests.

A mistake that no test notices is a hole in the tests. `commits`: the protocol, conflicts, versions,
undo and packs, over any engine. `engines`: files, SQLite, Berkeley DB, memory. `layers`.
`databases`: connections, records, pools, safes.
"""

from __future__ import annotations

from tests.mutations.commits import COMMITS
from tests.mutations.databases import DATABASES
from tests.mutations.engines import ENGINES
from tests.mutations.layers import LAYERS

MUTATIONS = (*COMMITS, *ENGINES, *LAYERS, *DATABASES)
