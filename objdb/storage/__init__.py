"""Bytes to revisions; knows oid, tid and bytes, never a class.

Reading order: `engine` (the contract), `memory` (the simplest engine), `storage` (two phases over
any engine), `commit` (the commit slot, phases), `committer` and `durability` (group commit),
`conflicts`, `versions`, `undo`, `history`, `packing`, `copying`, `file`, `files` (the seam to the
operating system), `sql`, `berkeley`.
"""
