"""What is behind the last whole transaction of a file: a commit that a crash left undecided, or
damage; and what is done about it where no index knows what was acknowledged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import objdb
from objdb.check import check
from objdb.ids import NO_TID, ROOT_OID, Tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file import recovery
from objdb.storage.file.log import Log
from objdb.storage.file.storage import FileStorage
from objdb.storage.files import OSFile
from objdb.testing.conformance import commit
from objdb.tools.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of five transactions, and no index of it."""
    made = tmp_path / "data.fs"
    with FileStorage(made) as storage:
        tid = NO_TID
        for number in range(5):
            data = b"record %d" % number * 30
            tid = commit(storage, {ROOT_OID: (tid, data)})
    (tmp_path / "data.fs.oidx").unlink()
    return made


def ends(path: Path) -> dict[int, Tid]:
    """Return where the transactions of a whole file end, and their tids."""
    log = Log(OSFile(str(path), "r"))
    found, position = {}, 4
    while position < path.stat().st_size:
        header = log.header(position, path.stat().st_size)
        found[header.end] = header.tid
        position = header.end
    log.file.close()
    return found


def require_refused(path: Path, match: str) -> objdb.CorruptedDataError:
    """Opening is refused, nothing is changed nor made, and the next time is as the first."""
    content = path.read_bytes()
    for _ in range(2):
        with pytest.raises(objdb.CorruptedDataError, match=match) as caught:
            FileStorage(path)
        assert path.read_bytes() == content
        assert not list(path.parent.glob("*.tr*"))
        assert str(path) in str(caught.value)
    return caught.value


def require_told(path: Path, count: int) -> None:
    """A check of the file tells how many bytes are no transaction; so does opening it to read."""
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 1, result.output
    assert f"{count} bytes after the last whole transaction" in result.output


def cut(content: bytes) -> bytes:
    return content[:-10]


def rubbish(content: bytes) -> bytes:
    return content + b"rubbish" * 40


def hole(content: bytes) -> bytes:
    return content + bytes(500) + b"something"


def flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def short(content: bytes) -> bytes:
    return content + b"x"


TAILS = [cut, rubbish, hole, flipped, short]


@pytest.mark.parametrize("damaged", TAILS)
def test_no_transaction(path: Path, damaged: Callable[[bytes], bytes]) -> None:
    """What is behind the last whole transaction and was never a commit under way is damage."""
    content = damaged(path.read_bytes())
    whole = max(end for end in ends(path) if content[:end] == path.read_bytes()[:end])
    path.write_bytes(content)
    require_refused(path, f"{len(content) - whole} bytes after the last whole transaction")
    require_told(path, len(content) - whole)


def test_cut_anywhere(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was cut off opens where the cut is between transactions, and nowhere else; for
    reading only it shows what is whole, with a warning."""
    content, whole = path.read_bytes(), ends(path)
    first = min(whole)
    for size in range(4, len(content)):
        path.write_bytes(content[:size])
        if size in whole or size == 4:
            with FileStorage(path) as storage:
                assert storage.lastTransaction() == whole.get(size, NO_TID)
            path.with_name("data.fs.oidx").unlink(missing_ok=True)
        elif size < first:
            require_refused(path, "no whole transaction")
            path.with_name("data.fs.oidx").unlink(missing_ok=True)
            with pytest.raises(objdb.CorruptedDataError, match="no whole transaction"):
                FileStorage(path, read_only=True)
        elif size % 10 == 0:
            require_refused(path, "bytes after the last whole transaction")
            path.with_name("data.fs.oidx").unlink(missing_ok=True)
            caplog.clear()
            last = max(end for end in whole if end <= size)
            with FileStorage(path, read_only=True) as storage:
                assert storage.lastTransaction() == whole[last]
            assert f"{size - last} bytes after" in caplog.text


@pytest.mark.parametrize("behind", [b"", bytes(3000)], ids=["at the end", "in allocated space"])
@pytest.mark.parametrize("kept", [30, 200, None], ids=["a header", "a part", "all"])
def test_undecided_commit(
    path: Path, kept: int | None, behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit that was not decided is told by a check, and removed when the file is opened; what
    was torn is saved."""
    content, whole = path.read_bytes(), ends(path)
    *_, before, last = sorted(whole)
    voted = bytearray(content[before:last])
    voted[16:17] = b"c"
    path.write_bytes(content[:before] + voted[:kept] + behind)
    require_told(path, path.stat().st_size - before)
    with FileStorage(path) as storage:
        assert storage.lastTransaction() == whole[before]
    assert path.read_bytes() == content[:before]
    saved = path.with_name("data.fs.tr0")
    assert saved.exists() == (kept is not None)
    assert not kept or saved.read_bytes().rstrip(b"\0") == bytes(voted[:kept]).rstrip(b"\0")
    assert check_of(path) == []


def check_of(path: Path) -> list[str]:
    """Return the problems of a file, the last one aside: its root is no object."""
    with FileStorage(path, read_only=True) as storage:
        return check(storage).problems[:-1]


def test_an_undecided_commit_with_others_behind(path: Path) -> None:
    """A status of an uncommitted transaction, before whole transactions, is damage; the error
    says where they are."""
    content = bytearray(path.read_bytes())
    first = min(ends(path))
    content[first + 16 : first + 17] = b"c"
    path.write_bytes(content)
    second = sorted(ends_of_all(content, first))[1]
    require_refused(path, f"Whole transactions follow, at position {second}")


def ends_of_all(content: bytes, start: int) -> list[int]:
    found = [start]
    while found[-1] < len(content):
        at = found[-1]
        found.append(at + int.from_bytes(content[at + 8 : at + 16], "big") + 8)
    return found[:-1]


def test_transactions_of_later_months_are_found(path: Path) -> None:
    """Whole transactions behind damage are found, whenever they were committed."""
    content = bytearray(path.read_bytes())
    *_, before, _ = sorted(ends(path))
    index = path.with_name("data.fs.oidx")
    path.write_bytes(content[:before])
    index.unlink(missing_ok=True)
    with FileStorage(path) as storage:
        last = storage.lastTransaction()
        later = (int.from_bytes(last, "big") + (1 << 52)).to_bytes(8, "big")
        txn = TransactionMetaData()
        storage.tpc_begin(txn, later)
        storage.store(ROOT_OID, last, b"much later", "", txn)
        storage.tpc_vote(txn)
        storage.tpc_finish(txn)
    index.unlink()
    content = bytearray(path.read_bytes())
    content[before - 50] ^= 1
    path.write_bytes(content)
    assert later[:2] != last[:2]
    require_refused(path, f"Whole transactions follow, at position {before}")


def test_a_large_tail_is_searched_with_progress(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How far looking through a file has come is logged, each few seconds."""
    monkeypatch.setattr(recovery, "_BETWEEN_LINES_SECONDS", 0.0)
    with path.open("ab") as file:
        file.write(os.urandom(9 * 1024 * 1024))
    caplog.set_level(logging.WARNING)
    require_refused(path, "bytes after")
    lines = [line for line in caplog.messages if "looking for transactions" in line]
    assert len(lines) >= 3
    assert any("building the index" in line for line in caplog.messages)


def test_a_check_beside_a_writer(tmp_path: Path) -> None:
    """What a process that writes has voted on and not finished is told as that; what it finishes
    is no problem."""
    path = tmp_path / "data.fs"
    with FileStorage(path) as writer:
        commit(writer, {ROOT_OID: (NO_TID, b"one")})
        with FileStorage(path, read_only=True) as reader:
            assert reader.self_check() == []
            txn = TransactionMetaData()
            writer.tpc_begin(txn)
            writer.store(ROOT_OID, writer.lastTransaction(), b"two", "", txn)
            writer.tpc_vote(txn)
            (problem,) = reader.self_check()
            assert "an uncommitted transaction" in problem
            writer.tpc_finish(txn)
            assert reader.self_check() == []


def test_a_refused_opening_leaves_nothing(tmp_path: Path) -> None:
    """A damaged file that is refused has no index beside it that was not there before."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        connection.root()["x"] = 1
    path.with_name("data.fs.oidx").unlink()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(objdb.CorruptedDataError):
            objdb.FileStorage(path)
        assert {each.name for each in tmp_path.iterdir()} <= {"data.fs", "data.fs.lock"}
