"""Module safes: a private, durable dict for every module.

    opening    1  `module_safe`: the safe of a module, and its backend
    naming        the directory's name
    mapping    2  the dict
    keys          equal keys of a dict, as equal bytes
    shelves       moving from the standard library's shelves
    table      3  the contract of a backend: rows of bytes
    berkeley      Berkeley DB, through the gate
    gate          one process at a time, and recovery after a killed one
    sqlite        SQLite
    file          a database of objdb
"""

from objdb.safe.mapping import Safe
from objdb.safe.opening import BACKENDS, SafeInfo, list_safes, module_safe, open_safe

__all__ = ["BACKENDS", "Safe", "SafeInfo", "list_safes", "module_safe", "open_safe"]
