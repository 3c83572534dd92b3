"""Secrets that somebody wrote where they do not belong are not repeated."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner

import objdb
from objdb.database.schemes import without_secrets
from objdb.errors import UsageError
from objdb.tools.main import main

SECRETS = (
    "encrypted+file:a.fs?key=hunter2", "encrypted+file:a.fs?passphrase=hunter2&key=hunter2",
    "encrypted+file:a.fs?what=1&passphrase=hunter2", "nothing:a?password=hunter2",
    "encrypted:(file:a.fs?key=hunter2)", "encrypted+file://ann:hunter2@host/a.fs",
    "encrypted+nothing:x?token=hunter2&KEY=hunter2", "file:a.fs?key=hunter2",
    "encrypted+./a.fs?key=hunter2", "encrypted+file:a.fs#?key=hunter2",
    "encrypted+file:a.fs?%6Bey=hunter2", "encrypted+file:a.fs?passphrase=of#hunter2",
    "encrypted+file:a.fs?passphrase=p@hunter2", "encrypted+file:a.fs?passphrase=p)hunter2",
    "encrypted+file:a.fs?passphrase=p=hunter2", "encrypted:(file:a.fs)?passphrase=(hunter2",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_secret_in_a_uri(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What somebody wrote into a URI as a secret is repeated by no error, nor by the command."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        objdb.DB(uri)
    told = "".join(traceback.format_exception(caught.value)[-1:]) + repr(caught.value)
    told += CliRunner().invoke(main, ["check", uri]).output + caplog.text
    assert "hunter2" not in told
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_secret() -> None:
    """Where a secret is can be shown, and so can all the rest."""
    for uri in (
        "encrypted+file:a.fs?key=env:A_KEY&durability=os", "file:///home/ann/a.fs?read_only=yes",
        "encrypted+file:a.fs?passphrase=file:word", "demo:(file:a.fs?read_only=yes)(file:b.fs)",
    ):
        assert without_secrets(uri) == uri
