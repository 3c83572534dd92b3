"""Moved names, kept for one release: see the end of docs/writing-a-storage.md."""
