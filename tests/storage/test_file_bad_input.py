"""FileStorage given what it cannot open: a named error each time, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import pytest

import objdb
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.storage.staging import MAX_RECORD_BYTES
from objdb.testing.conformance import commit
from tests.models import Person


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed database with a few transactions."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db:
        for i in range(4):
            with db.transaction(note=f"number {i}") as connection:
                connection.root()[i] = Person(f"person {i}")
    return path


def index_of(path: Path) -> Path:
    return path.with_name(path.name + ".oidx")


@pytest.mark.parametrize("content", [b"hello, world\n", b"SQLite format 3\0", b"FS", b"\0" * 100])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    """A file of another kind is refused, and left as it is."""
    path = tmp_path / "data.fs"
    path.write_bytes(content)
    with pytest.raises(objdb.FileFormatError, match="not a database file") as caught:
        objdb.DB(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("scheme", ["sqlite", "pickle"])
def test_a_database_of_another_kind(tmp_path: Path, scheme: str) -> None:
    """A file that another storage made is refused with the URI that opens it."""
    path = tmp_path / "data"
    objdb.DB(f"{scheme}:{path}").close()
    with pytest.raises(objdb.FileFormatError, match=f"open it as {scheme}:{path}"):
        objdb.DB(path)
    objdb.DB(f"{scheme}:{path}").close()


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is refused, saying what to do."""
    path = tmp_path / "data.fs"
    path.touch()
    with pytest.raises(objdb.FileFormatError, match=r"is empty.*Remove it"):
        FileStorage(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_directory(tmp_path: Path, read_only: bool) -> None:
    """A directory is refused."""
    with pytest.raises(objdb.FileFormatError, match="is a directory"):
        FileStorage(tmp_path, read_only=read_only)


def test_python_two_file(tmp_path: Path) -> None:
    """A file of ZODB under Python 2 is refused, naming the tool that converts it."""
    path = tmp_path / "data.fs"
    path.write_bytes(b"FS21" + bytes(30))
    with pytest.raises(objdb.NeedsMigrationError, match="zodbupdate"):
        FileStorage(path)


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is an error when it is not to be created, or read only."""
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(FileNotFoundError):
            FileStorage(tmp_path / "data.fs", **options)


def test_no_permission(tmp_path: Path, path: Path) -> None:
    """Without permission the operating system's error comes through, with the path."""
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "import objdb\n"
        "for options in ({}, {'read_only': True}):\n"
        "    try: objdb.FileStorage(sys.argv[1], **options)\n"
        "    except PermissionError as error: assert sys.argv[1] in str(error), error\n"
        "    else: sys.exit('opened')\n"
    )
    if os.getuid():
        path.parent.chmod(0)
        try:
            with pytest.raises(PermissionError):
                FileStorage(path)
        finally:
            path.parent.chmod(0o700)
        return
    # The superuser may do anything, so a child that is not asks. It imports before it changes.
    script = "import objdb, os, sys, objdb.storage.file.storage\n" + script
    for directory in tmp_path.parents:
        if directory.stat().st_uid == 0 and Path(gettempdir()) in directory.parents:
            directory.chmod(0o755)
    tmp_path.chmod(0o755)
    path.chmod(0o600)
    path.with_name("data.fs.lock").chmod(0o600)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_open_twice_in_one_process(path: Path) -> None:
    """A second opening in the same process says so; closing the first lets it."""
    with FileStorage(path):
        with pytest.raises(objdb.StorageLockedError, match="this process") as caught:
            FileStorage(path)
        assert caught.value.pid == os.getpid()
    FileStorage(path).close()


def test_open_in_another_process(path: Path) -> None:
    """A second process is told pid and host of the first, and may read."""
    script = (
        "import objdb, sys\n"
        "try: objdb.FileStorage(sys.argv[1])\n"
        "except objdb.StorageLockedError as error: print(error.pid, error.host, error, sep='|')\n"
        "with objdb.DB('file:' + sys.argv[1] + '?read_only=1') as db:\n"
        "    with db.transaction() as connection: print(connection.root()[3].name)\n"
    )
    with FileStorage(path):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60
        )
    pid, host, rest = done.stdout.split("|")
    assert (int(pid), host) == (os.getpid(), os.uname().nodename)
    assert "read_only=True" in rest and "person 3" in rest


def test_read_only(path: Path) -> None:
    """A read-only database reads, refuses changes by name, and changes no byte on the disk."""
    before = path.read_bytes()
    with objdb.DB(FileStorage(path, read_only=True)) as db:
        connection = db.open()
        assert connection.isReadOnly()
        with pytest.raises(objdb.ReadOnlyError):
            connection.root()[1].name = "x"
        with pytest.raises(objdb.ReadOnlyError):
            connection.add(Person())
        with pytest.raises(objdb.ReadOnlyError):
            db.storage.tpc_begin(TransactionMetaData())
        with pytest.raises(objdb.ReadOnlyError):
            db.storage.new_oid()
        assert connection.root()[1].name == "person 1"
        connection.close()
    assert path.read_bytes() == before


def test_read_only_file_system(path: Path) -> None:
    """On files that cannot be written, read-only opening works, and needs no index."""
    index_of(path).unlink()
    path.with_name("data.fs.lock").unlink()
    before = sorted(p.name for p in path.parent.iterdir())
    with objdb.DB(FileStorage(path, read_only=True)) as db, db.transaction() as connection:
        assert connection.root()[3].name == "person 3"
    assert sorted(p.name for p in path.parent.iterdir()) == before


def test_read_only_sees_what_the_writer_commits(path: Path) -> None:
    """A reader beside a writer sees each commit when its next transaction begins, whole."""
    writer = objdb.DB(path)
    reader = objdb.DB(FileStorage(path, read_only=True))
    connection = reader.open()
    assert connection.root()[1].name == "person 1"
    for i in range(30):
        with writer.transaction() as other:
            other.root()[1].name = f"name {i}"
            other.root()[f"new {i}"] = Person(f"new {i}")
        assert connection.root()[1].name == (f"name {i - 1}" if i else "person 1")
        connection.sync()
        assert connection.root()[1].name == f"name {i}"
        assert connection.root()[f"new {i}"].name == f"new {i}"
    connection.close()
    reader.close()
    writer.close()


# -- damage


def test_truncated_anywhere(path: Path) -> None:
    """A file cut short anywhere is refused when the index knows better, and left as it is."""
    whole, index = path.read_bytes(), index_of(path).read_bytes()
    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        index_of(path).write_bytes(index)
        with pytest.raises((objdb.CorruptedDataError, objdb.FileFormatError)) as caught:
            FileStorage(path)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == whole[:size]


def test_tail_is_saved(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn tail is cut, saved beside the file, and logged."""
    whole = path.read_bytes()
    torn = whole[-80:-3]
    path.write_bytes(whole + torn)
    with FileStorage(path) as storage:
        assert len(list(storage.iterator())) == 5
    assert path.read_bytes() == whole
    assert path.with_name("data.fs.tr0").read_bytes() == torn
    assert "data.fs.tr0" in caplog.text


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    """A bit flipped anywhere in the file is noticed on opening without an index, and by the
    check, or changes nothing that can be read."""
    whole, index = path.read_bytes(), index_of(path).read_bytes()
    expected = _everything(path)
    quiet = []
    for position in range(0, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        index_of(path).write_bytes(index)
        noticed_with_index = _noticed(path)
        index_of(path).unlink()
        for saved in path.parent.glob("*.tr*"):
            saved.unlink()
        path.write_bytes(damaged)
        noticed = _noticed(path) or bool(list(path.parent.glob("*.tr*")))
        if not (noticed and noticed_with_index):
            quiet.append(position)
            path.write_bytes(damaged)
            index_of(path).write_bytes(index)
            assert _everything(path) == expected, position
    # Only the position kept beside the checksum, 8 bytes a transaction, can change unnoticed.
    assert len(quiet) <= 5 * 8


def _noticed(path: Path) -> bool:
    from objdb.check import check

    try:
        with FileStorage(path) as storage:
            return bool(check(storage).problems)
    except objdb.ObjdbError:
        return True


def _everything(path: Path) -> list:
    with FileStorage(path, read_only=True) as storage:
        return [
            (t.tid, t.user, t.description, t.extension, [(r.oid, r.tid, r.data) for r in t])
            for t in storage.iterator()
        ]


def test_damage_stays_damage(tmp_path: Path) -> None:
    """A file whose end was overwritten is refused each time it is opened, and nothing is cut;
    with its content put back it opens."""
    path = tmp_path / "data.fs"
    with FileStorage(path) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, os.urandom(50_000))})
    content = path.read_bytes()
    damaged = content[:5000] + os.urandom(len(content) - 5000)
    path.write_bytes(damaged)
    for _ in range(3):
        with pytest.raises(objdb.CorruptedDataError, match="was committed to it"):
            FileStorage(path)
        assert path.read_bytes() == damaged
    path.write_bytes(content)
    with FileStorage(path) as storage:
        assert storage.getTid(ROOT_OID) == tid
        assert len(storage) == 1
    with FileStorage(path) as storage:
        assert storage.load(ROOT_OID)[1] == tid


@pytest.mark.parametrize("lost", [0, 1, 20])
def test_damage_of_what_was_acknowledged(path: Path, lost: int) -> None:
    """After a crash, what was acknowledged since the index was last made durable is not taken for
    a torn tail, when its last bytes are gone, or others."""
    with FileStorage(path) as storage:
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"acknowledged")})
        content, index = path.read_bytes()[: storage.getSize()], index_of(path).read_bytes()
    damaged = content[: len(content) - lost] if lost else content[:-10] + b"?" + content[-9:]
    path.write_bytes(damaged)
    index_of(path).write_bytes(index)
    with pytest.raises(objdb.CorruptedDataError):
        FileStorage(path)
    assert path.read_bytes() == damaged


def test_damage_in_the_middle_is_not_cut(path: Path) -> None:
    """Damage before whole transactions is reported, with and without the index, never cut."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    index_of(path).unlink()
    with pytest.raises(objdb.CorruptedDataError) as caught:
        FileStorage(path)
    assert 0 < caught.value.position <= len(whole) // 2
    assert path.read_bytes() == damaged


def test_every_flipped_bit_of_the_index_is_noticed(path: Path) -> None:
    """A bit flipped in the index is noticed on opening, on loading or by the check, or changes
    nothing; removing the index lets it be built again."""
    index = index_of(path).read_bytes()
    expected = _everything(path)
    for position in range(0, len(index)):
        if not index[position] and position % 97:
            continue  # the zeros are many: some of them will do
        damaged = bytearray(index)
        damaged[position] ^= 1 << position % 8
        index_of(path).write_bytes(damaged)
        if not _noticed(path):
            with FileStorage(path) as storage:
                for _, _, _, _, records in expected:
                    for oid, tid, data in records:
                        assert storage.loadSerial(oid, tid) == data
        index_of(path).unlink(missing_ok=True)
        assert not _noticed(path), position
        assert _everything(path) == expected


def test_an_index_entry_beyond_all_files(path: Path) -> None:
    """An entry whose position no file can have is damage like any other, where it is met."""
    place = 2 * 4096  # behind the header and the directory: the entry of the first object
    index = bytearray(index_of(path).read_bytes())
    index[place] |= 0x80
    index_of(path).write_bytes(index)
    with FileStorage(path) as storage:
        for use in (storage.load, storage.history, storage.getTid):
            with pytest.raises(objdb.CorruptedDataError, match=r"remove the index|maximum"):
                use(ROOT_OID)
        assert storage.self_check() != []


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 4096, b"objdbix1" * 2000])
def test_useless_index_is_rebuilt(path: Path, content: bytes) -> None:
    """An index that is none, or empty, is built again from the log."""
    index_of(path).write_bytes(content)
    assert not _noticed(path)


def test_index_of_another_file(tmp_path: Path, path: Path) -> None:
    """The index of an earlier file is built again; that of a later one means that transactions
    are missing, which is told, and what to do if they are meant to be."""
    other = tmp_path / "other.fs"
    with FileStorage(other) as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root"), b"\0" * 7 + b"\x63": (NO_TID, b"x")})
    earlier, later = index_of(path).read_bytes(), index_of(other).read_bytes()
    index_of(other).write_bytes(earlier)
    with FileStorage(other) as storage:
        assert storage.self_check() == []
        assert storage.load(b"\0" * 7 + b"\x63")[0] == b"x"
    index_of(path).write_bytes(later)
    with pytest.raises(objdb.CorruptedDataError, match=r"older copy.*remove the index"):
        FileStorage(path)
    index_of(path).unlink()
    assert not _noticed(path)


def test_no_root(tmp_path: Path) -> None:
    """A storage with objects and no root is refused, not given a new root."""
    path = tmp_path / "data.fs"
    with FileStorage(path) as storage:
        commit(storage, {b"\0" * 7 + b"\1": (NO_TID, b"x")})
    with pytest.raises(objdb.POSKeyError, match="no root"):
        objdb.DB(path)
    FileStorage(path).close()


def test_record_of_two_gigabytes(tmp_path: Path) -> None:
    """A record over the limit is refused by name, before anything is written."""
    huge = bytes(MAX_RECORD_BYTES + 1)  # of zeros, which take no memory before they are touched
    with FileStorage(tmp_path / "data.fs") as storage:
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        with pytest.raises(objdb.RecordTooLargeError) as caught:
            storage.store(ROOT_OID, NO_TID, huge, "", transaction)
        assert caught.value.size == 2**31
        storage.tpc_abort(transaction)
        assert list(storage.iterator()) == []


@pytest.mark.parametrize("field", ["user", "description", "extension"])
def test_too_long_texts(tmp_path: Path, field: str) -> None:
    """User, description or extension that does not fit is refused by name; the storage goes on."""
    value = {"key": "x" * 70000} if field == "extension" else "x" * 70000
    with FileStorage(tmp_path / "data.fs") as storage:
        with pytest.raises(objdb.StorageError, match=f"{field} is 70"):
            commit(storage, {ROOT_OID: (NO_TID, b"root")}, **{field: value})
        commit(storage, {ROOT_OID: (NO_TID, b"root")})


def test_unknown_options(tmp_path: Path) -> None:
    """A durability that does not exist is refused, listing what does."""
    with pytest.raises(objdb.UsageError, match="sync or os"):
        FileStorage(tmp_path / "data.fs", durability="none")


def test_use_after_a_fork(tmp_path: Path) -> None:
    """In a forked child the parent's storage refuses to commit, and closing it there leaves the
    parent's alone."""
    with FileStorage(tmp_path / "data.fs") as storage:
        commit(storage, {ROOT_OID: (NO_TID, b"root")})
        child = os.fork()
        if not child:
            code = 1
            try:
                commit(storage, {})
            except objdb.StorageForkedError:
                storage.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), b"root 2")})
    with FileStorage(tmp_path / "data.fs") as storage:
        assert storage.load(ROOT_OID)[0] == b"root 2"


def test_clean_close_leaves_no_allocated_space(path: Path) -> None:
    """While open the file is longer; after close it ends with its last transaction."""
    size = path.stat().st_size
    with FileStorage(path, preallocate_bytes=100_000) as storage:
        commit(storage, {ROOT_OID: (storage.getTid(ROOT_OID), storage.load(ROOT_OID)[0])})
        assert path.stat().st_size >= size + 100_000
        end = storage.getSize()
    assert path.stat().st_size == end < size + 1000


def test_aborted_vote_leaves_zeros(path: Path) -> None:
    """Nothing of a transaction that was voted and aborted stays in the file."""
    with FileStorage(path, preallocate_bytes=10_000) as storage:
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(b"\0" * 7 + b"\x77", NO_TID, b"regretted" * 20, "", transaction)
        storage.tpc_vote(transaction)
        assert b"regretted" in path.read_bytes()
        storage.tpc_abort(transaction)
        assert b"regretted" not in path.read_bytes()
