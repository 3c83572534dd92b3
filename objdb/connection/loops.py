"""The event loop that runs in this thread, asked without importing asyncio, which takes longer to
import than the rest of objdb and which programs of threads do not need."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


def running_loop() -> AbstractEventLoop | None:
    """Return the loop that is running in this thread, or None."""
    # Another thread may be importing it at this moment: then no loop runs here.
    get = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    loop: AbstractEventLoop | None = None if get is None else get()
    return loop
