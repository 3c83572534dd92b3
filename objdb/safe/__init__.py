"""Module safes: a private, durable dict for every module.

    opening    1  `module_safe`: which safe is whose, and what keeps it
    naming        the directory's name
    mapping    2  the dict
    keys          keys that a dict takes for equal, as equal bytes
    shelves       moving from the standard library's shelves
    table      3  the contract of what keeps a safe: rows of bytes
    berkeley      Berkeley DB, through the gate
    gate          one at a time, and who died inside
    sqlite        SQLite
    file          a database of objdb
"""

from objdb.safe.mapping import Safe
from objdb.safe.opening import BACKENDS, SafeInfo, list_safes, module_safe, open_safe

__all__ = ["BACKENDS", "Safe", "SafeInfo", "list_safes", "module_safe", "open_safe"]
