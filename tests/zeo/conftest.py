"""What several tests of the server and its clients begin with."""

from __future__ import annotations

from typing import Any

import pytest

from objdb_zeo.transport import Channel


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that clients call from now on."""
    found: list[str] = []
    send = Channel.send

    def note(self: Channel, calls: Any) -> None:
        found.extend(name for name, *_ in calls)
        send(self, calls)

    monkeypatch.setattr(Channel, "send", note)
    return found
