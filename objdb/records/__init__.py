"""Object state to bytes and back; the only place that pickles.

Reading order: `format` (what a record is), `writer`, `reader`, `references` (without importing
application classes), `conflicts` (merging three states), `broken` (missing classes).
"""
