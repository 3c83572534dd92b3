"""Transactions' extensions: plain values are read, nothing is run, and their bytes stay."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.errors import CorruptedDataError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.extension import Unreadable, loads_extension
from objdb.storage.file.format import MAX_TEXT_BYTES
from objdb.testing.helpers import commit
from tests.storages import STORAGES

PLAIN = {
    "none": None, "yes": True, "int": 2**70, "float": 1.5, "text": "grüße", "bytes": b"\x00\xff",
    "list": [1, [2]], "tuple": (1, 2, 3, 4), "dict": {1: {2: 3}}, "set": {1, 2},
    "frozenset": frozenset("ab"), "bytearray": bytearray(b"x"), "complex": 1j,
    "moment": datetime.datetime(2026, 3, 1, 9, 30, tzinfo=datetime.timezone.utc),
    "day": datetime.date(2026, 3, 1), "long": datetime.timedelta(days=2),
}


class Evil:
    """Runs something when it is unpickled, in one of the ways that pickles have."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-evil",)


class Point:
    """Not plain, and harmless."""

    def __init__(self) -> None:
        self.x = 1


HOSTILE = {
    "reduce": pickle.dumps({"a": 1, "x": Evil()}, 3),
    "object": pickle.dumps({"a": 1, "x": Point()}, 3),
    "newobj_ex": pickle.dumps({"a": 1, "x": Point()}, 4),
    "instance": b"(dS'a'\nI1\nsS'x'\n(S'made-by-evil'\nios\nmkdir\ns.",
    "obj": b"(dS'a'\nI1\nsS'x'\n(cos\nmkdir\nS'made-by-evil'\nos.",
    "class": pickle.dumps({"a": 1, "x": subprocess.Popen}, 3),
    "build": b"\x80\x03}(X\x01\0\0\0aK\x01X\x01\0\0\0xcos\nenviron\n}X\x04\0\0\0evilK\x01sbu.",
    "top": pickle.dumps(Evil(), 3),
    "getattr": b"\x80\x03}(X\x01\0\0\0aK\x01X\x01\0\0\0xcbuiltins\neval\nX\x04\0\0\0quit\x85Ru.",
    "extension code": b"\x80\x03}(X\x01\0\0\0aK\x01X\x01\0\0\0x\x82\x01u.",
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol: int) -> None:
    """What is plain is read as it was, whichever protocol wrote it."""
    assert loads_extension(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not plain is named, next to what is; nothing is run."""
    monkeypatch.chdir(tmp_path)
    found = loads_extension(HOSTILE[name])
    assert name == "top" or found["a"] == 1
    (other,) = (value for key, value in found.items() if key != "a")
    assert isinstance(other, Unreadable)
    assert repr(other).startswith("<unreadable: ")
    assert os.listdir() == []


@pytest.mark.parametrize(
    "garbage",
    [b"garbage", b"\x80\x03K\x01.", b"\x80\x03}", pickle.dumps([1]), b"\x80\x03}q\x00.."[:-2],
     b"\x80\x03}(X\xff\xff\xff\x7fx", b"\x80\x03cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."],
)
def test_no_pickle_of_a_dict(garbage: bytes) -> None:
    """What is none is an error with a name, and takes no memory."""
    with pytest.raises(CorruptedDataError, match="extension"):
        loads_extension(garbage)


@pytest.mark.parametrize("kind", STORAGES)
def test_bytes_stay(kind: str, tmp_path: Path) -> None:
    """A storage keeps an extension byte for byte, hostile or not, through copies and packs, and
    lists it without running it."""
    (tmp_path / "copy").mkdir()
    with STORAGES[kind](tmp_path) as storage, STORAGES["file"](tmp_path / "copy") as copy:
        pickled = [*HOSTILE.values(), pickle.dumps(PLAIN, 3), b""]
        tid = NO_TID
        for extension in pickled:
            tid = commit(storage, {ROOT_OID: (tid, b"%d" % len(extension))}, extension=extension)
        for each in (storage, copy):
            if each is copy:
                copy.copyTransactionsFrom(storage)
            assert [found.extension_bytes for found in each.iterator()] == pickled
            log = each.undoLog(0, 100)
            assert sum(any(isinstance(v, Unreadable) for v in e.values()) for e in log) == len(
                HOSTILE
            )
            assert each.history(ROOT_OID, 100)[1]["text"] == "grüße"
        copy.pack(storage.lastTransaction(), lambda data: (), gc=False)
        assert {found.extension_bytes for found in copy.iterator()} <= set(pickled)
        assert check(copy).unverified == 0


@pytest.mark.parametrize("count", [1, 2, 997, 998, 999, 1000, 2500])
def test_extensions_of_many_items(count: int, tmp_path: Path) -> None:
    """A file's checksum has a place in an extension of any number of items."""
    extension = {f"{number:x}": number for number in range(count)}
    path = tmp_path / "data.fs"
    with objdb.FileStorage(path) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"x")}, extension=extension)
        (found,) = storage.iterator()
        assert found.extension == extension
        assert found.has_checksum


def test_an_extension_without_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A transaction from elsewhere whose extension is as long as can be is packed without a
    checksum, which is logged, and counted by a check."""
    path = tmp_path / "data.fs"
    pickled = pickle.dumps({"a": "x" * (MAX_TEXT_BYTES - 60)}, 3)
    body = b"\x04\x00" + bytes(6) + bytes(8) + b" " + bytes(4) + len(pickled).to_bytes(2, "big")
    record = ROOT_OID + body[:8] + bytes(8) + (4).to_bytes(8, "big") + bytes(2)
    record += (1).to_bytes(8, "big") + b"x"
    content = body + pickled + record
    length = len(content).to_bytes(8, "big")
    path.write_bytes(b"FS30" + content[:8] + length + content[16:] + length)
    with objdb.FileStorage(path) as storage:
        assert check(storage).unverified == 1
        storage.pack(storage.lastTransaction(), lambda data: (), gc=False)
        assert "gets no checksum" in caplog.text
        assert [found.extension_bytes for found in storage.iterator()] == [pickled]
        assert check(storage).unverified == 1


def test_metadata_keeps_bytes() -> None:
    """The pickle that metadata was made with stays until the dict is changed."""
    pickled = pickle.dumps({"a": 1}, 2)
    metadata = TransactionMetaData("me", "text", pickled)
    assert metadata.extension == {"a": 1}
    assert metadata.extension_bytes == pickled
    metadata.extension["b"] = 2
    assert loads_extension(metadata.extension_bytes) == {"a": 1, "b": 2}
    metadata.user, metadata.description = "grüße", b"bytes"
    assert (metadata.user, metadata.description) == ("grüße".encode(), b"bytes")


@pytest.mark.parametrize("kind", STORAGES)
def test_text_in_metadata(kind: str, tmp_path: Path) -> None:
    """A user and a description set as text are stored as UTF-8."""
    with STORAGES[kind](tmp_path) as storage:
        metadata = TransactionMetaData()
        metadata.user, metadata.description = "Käthe", "größer"
        storage.tpc_begin(metadata)
        storage.store(ROOT_OID, NO_TID, b"x", "", metadata)
        storage.tpc_vote(metadata)
        storage.tpc_finish(metadata)
        (entry,) = storage.history(ROOT_OID)
        assert (entry["user_name"], entry["description"]) == ("Käthe", "größer")


# Runs tools in this process, one by one, with a hook that forbids imports, and calls of what could
# be run.
GUARDED = """
import json, os, sys
from objdb.tools.main import main
import objdb.tools.main, encodings.idna, rich.console, click, objdb.storage.layers.encrypted
import berkeleydb.db, BTrees.OOBTree, BTrees.QQBTree, rich.progress, rich.table
bad = []
def hook(event, arguments):
    if event == "import" and arguments[0] not in KNOWN or event in ("os.mkdir", "os.system",
            "subprocess.Popen", "pickle.find_class", "exec") and EVIL in repr(arguments):
        bad.append((event, arguments))
KNOWN = set(sys.modules)
EVIL = "evil"
sys.addaudithook(hook)
for words in json.loads(sys.argv[1]):
    bad.clear()
    try:
        code = main(words, standalone_mode=False)
    except SystemExit as error:
        code = error.code
    names = [arguments[0] for event, arguments in bad if event == "import"]
    hostile = [name for name in names if "evil" in name]
    rest = [one for one in bad if one[0] != "import"]
    assert not code and not hostile and not rest, (words, code, bad)
    assert not [name for name in os.listdir() if name.endswith("evil")], words
"""


def test_tools_run_nothing(tmp_path: Path) -> None:
    """No tool imports or calls what a hostile file names."""
    path = tmp_path / "data.fs"
    evil = {
        **HOSTILE, "import": b"\x80\x03}(X\x01\0\0\0aK\x01X\x01\0\0\0xcevilmodule\nrun\n)Ru.",
    }
    with objdb.DB(path) as db:
        tid = db.storage.lastTransaction()
        for extension in evil.values():
            record = db.storage.load(ROOT_OID)[0]
            tid = commit(db.storage, {ROOT_OID: (tid, record)}, extension=extension)
        hostile_record = b"cevilmodule\nrun\n(S'evil'\ntR." + b"cos\nmkdir\n(S'evil'\ntR."
        commit(db.storage, {(9).to_bytes(8, "big"): (NO_TID, hostile_record)})
    (tmp_path / "evilmodule.py").write_text("open('made-by-evil', 'w')\ndef run(*a): pass\n")
    tools = [
        ["check", path], ["undolog", path], ["info", path], ["history", path, "0"],
        ["migrate", path, tmp_path / "copy.fs"], ["migrate", path, f"sqlite:{tmp_path}/c.sqlite"],
        ["check", tmp_path / "copy.fs"], ["check", f"sqlite:{tmp_path}/c.sqlite"],
        ["undolog", "--json", path], ["pack", path], ["check", path],
    ]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, json.dumps(tools, default=str)], capture_output=True,
        text=True, cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
