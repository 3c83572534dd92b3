"""Bytes to revisions; knows oid, tid and bytes, never a class.

Reading order: `memory` (the contract at its plainest), `commit` (who commits, which phase),
`revisions` (conflict checks over a few primitives), `undo`, `copying`, `packing`, `durability`
(group commit), `file`, `files` (the seam to the operating system), `tables` (storages of rows),
`sql`, `berkeley`.
"""
