"""The internal attributes of persistent objects, set without calling code of their class.

`obj._p_serial = tid` goes through the `__setattr__` of the object's class, which may read other
attributes (and so load the object, with its old serial), refuse the name, or raise. These functions
go to the setters of `Persistent` itself.
"""

from __future__ import annotations

from typing import Any

from persistent import Persistent

_base: Any = Persistent

# Each is called with an object and the value.
set_jar = _base._p_jar.__set__
set_oid = _base._p_oid.__set__
set_serial = _base._p_serial.__set__
set_changed = _base._p_changed.__set__
set_estimated_size = _base._p_estimated_size.__set__
# Each is called with an object.
delete_jar = _base._p_jar.__delete__
delete_oid = _base._p_oid.__delete__
