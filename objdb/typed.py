"""What `persistent` is to type checkers, which it does not tell them; at run time the same classes.

`objdb.Persistent`, `objdb.PersistentMapping` and `objdb.PersistentList` come from here.
`PersistentMapping[str, Person]` and `PersistentList[int]` say what is in them.
"""

from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping

__all__ = ["Persistent", "PersistentList", "PersistentMapping"]
