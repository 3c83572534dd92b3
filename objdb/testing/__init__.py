"""For authors of storages: `conformance` (a test suite over any storage) and `faults` (a file
system that loses power, tears writes, fills up and fails on command)."""
