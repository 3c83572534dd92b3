"""For authors of storages: `conformance` (a test suite over any storage) and `faults` (a file
system that loses power, tears writes, fills up and fails on command). With pytest's option
`--objdb-storage`, `plugin` runs the suite over any storage.

For clients and servers: `network`, a simulated one, in the simulated time of `events`, where
threads are tasks in one thread; and `relay`, which breaks connections of a real one.

For isolation: `schedule` (a few, stepped through an order) and
`recording` (random ones), which makes `histories` that `anomalies` checks, from what
`observations` and `cycles` find in them.
"""
