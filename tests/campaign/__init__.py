"""Faults on purpose: workloads that the tests run for seconds, and `python -m tests.campaign` for
as long as it is told to.

`kills`: processes killed while they commit. `races`: threads in one database. `histories`: what
random transactions saw of one another. `sweeps`: power lost after every operation of a random
`workload` on a disk that fails. `graphs`: files going back and forth between ZODB and objdb.
"""
