"""Encrypted records: keys, what is noticed, several keys, plain records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb import (
    BerkeleyStorage,
    CompressedStorage,
    EncryptedStorage,
    FileStorage,
    MappingStorage,
    PickledMappingStorage,
    SQLiteStorage,
)
from objdb.check import check
from objdb.errors import (
    CorruptedDataError,
    NotEncryptedError,
    Unsupported,
    UsageError,
    WrongKeyError,
)
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, oid_from_int
from objdb.storage.commit import TransactionMetaData
from objdb.storage.layers import encrypted
from objdb.storage.layers.encrypted import OVERHEAD_BYTES
from objdb.testing.helpers import commit, contents, undo
from objdb.testing.packing_model import refer
from objdb.testing.versions import perform
from tests.storage.layers.helpers import Note, copy_of, fill, texts, without

ONE, TWO = bytes(range(32)), bytes(range(32, 64))
SECRET = b"\x80\x03the very secret record"


@pytest.fixture(autouse=True)
def _cheap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key from a passphrase is made a hundred times as fast, where it is not about that."""
    if "cost" not in request.node.name:
        monkeypatch.setattr(encrypted, "COST", 10)


def named(key: Any) -> str:
    """What a test with this key is called."""
    return key if isinstance(key, str) else {ONE: "one", TWO: "two"}.get(bytes(key), "key")


@pytest.fixture
def base() -> MappingStorage:
    return MappingStorage("base")


def filled(base: Any, keys: Any = ONE) -> tuple[EncryptedStorage, list[Oid]]:
    """Return a storage with a root and two records."""
    storage = EncryptedStorage(base, keys)
    oids = [ROOT_OID, storage.new_oid(), storage.new_oid()]
    commit(storage, dict.fromkeys(oids, (NO_TID, SECRET)))
    return storage, oids


# -- what is stored


@pytest.mark.parametrize("key", [ONE, "a long passphrase"], ids=named)
def test_nothing_is_readable(tmp_path: Path, key: Any) -> None:
    """No part of a record is in the file; equal records look different; all is there when it is
    opened again with the key."""
    path = tmp_path / "data.fs"
    storage, oids = filled(FileStorage(path), key)
    stored = [storage.base.load(oid)[0] for oid in oids]
    storage.close()
    assert b"secret" not in path.read_bytes()
    assert len({data[-20:] for data in stored}) == 3
    assert {len(data) for data in stored} == {len(SECRET) + OVERHEAD_BYTES}
    with EncryptedStorage(FileStorage(path), key) as again:
        assert [again.load(oid)[0] for oid in oids] == [SECRET] * 3
        commit(again, {oids[1]: (again.getTid(oids[1]), SECRET)})
        heads = {again.base.load(oid)[0][:19] for oid in oids}
        assert len(heads) == 1  # the same salt


@pytest.mark.parametrize("keys", [
    b"short", b"", "", [], None, 7, [ONE, b"x" * 31], [ONE, None], bytearray(32),
])
def test_no_keys(base: Any, keys: Any) -> None:
    """What is no key is refused, without a word about its content."""
    with pytest.raises(UsageError) as caught:
        EncryptedStorage(base, keys)
    assert "short" not in str(caught.value)


def test_no_way(base: Any) -> None:
    """What to do with plain records is one of two things."""
    with pytest.raises(UsageError, match="refuse or read"):
        EncryptedStorage(base, ONE, plain="maybe")


# -- what is noticed


@pytest.mark.parametrize("right", [ONE, "right"], ids=named)
@pytest.mark.parametrize("wrong", [TWO, "wrong"], ids=named)
def test_wrong_key(base: Any, right: Any, wrong: Any) -> None:
    """A wrong key is noticed when the storage is opened, and nothing is written."""
    filled(base, right)
    copy = copy_of(base)
    with pytest.raises(WrongKeyError, match="Give that key") as caught:
        EncryptedStorage(copy, wrong)
    assert caught.value.oid == ROOT_OID
    assert contents(copy) == contents(base)
    with pytest.raises(objdb.StorageClosedError):
        copy.load(ROOT_OID)


def test_swapped(base: Any) -> None:
    """A record that was moved to another object is noticed, and both are named."""
    storage, oids = filled(base)
    commit(base, {oids[1]: (base.getTid(oids[1]), base.load(oids[2])[0])})
    for load in (storage.load, lambda oid: storage.loadBefore(oid, MAX_TID)):
        with pytest.raises(CorruptedDataError, match="object 0x1 has the record of object 0x2"):
            load(oids[1])
    assert check(storage).problems


@pytest.mark.parametrize("key", [ONE, "passphrase"], ids=named)
def test_every_bit_counts(base: Any, key: Any) -> None:
    """A record with any bit turned over is noticed; so is one that is cut short, anywhere."""
    storage, oids = filled(base, key)
    oid = oids[1]
    stored, tid = base.load(oid)
    damaged = [stored[:size] for size in range(1, len(stored))] + [stored + b"x"]
    for place in range(len(stored)):
        # Another salt means another key, which takes its time to make.
        for bit in range(8) if not 3 <= place < 19 or key == ONE else (place % 8,)[place % 5 :]:
            changed = bytearray(stored)
            changed[place] ^= 1 << bit
            damaged.append(bytes(changed))
    for data in damaged:
        tid = commit(base, {oid: (tid, data)})
        with pytest.raises((CorruptedDataError, WrongKeyError, NotEncryptedError)) as caught:
            storage.loadBefore(oid, MAX_TID)
        assert caught.value.oid == oid and "0x1" in str(caught.value)


def test_plain_records_are_refused(base: Any) -> None:
    """A plain record among encrypted ones is refused; so is a storage of plain ones."""
    storage, oids = filled(base)
    commit(base, {oids[1]: (base.getTid(oids[1]), SECRET)})
    with pytest.raises(NotEncryptedError, match=r"plain='read'") as caught:
        storage.load(oids[1])
    assert caught.value.oid == oids[1]
    plain = MappingStorage()
    commit(plain, {ROOT_OID: (NO_TID, SECRET)})
    with pytest.raises(NotEncryptedError):
        EncryptedStorage(plain, ONE)


# -- several keys


@pytest.mark.parametrize(
    ("old", "new"), [(ONE, TWO), (ONE, "new"), ("old", TWO), ("old", "new")], ids=named
)
def test_another_key(base: Any, old: Any, new: Any) -> None:
    """The first key is for what is written, the others are for reading; rewriting leaves the old
    one to the history, and a pack takes that away."""
    storage, oids = filled(base, old)
    storage = EncryptedStorage(base, [new, old])
    assert [storage.load(oid)[0] for oid in oids] == [SECRET] * 3
    commit(storage, {oids[1]: (storage.getTid(oids[1]), SECRET)})
    assert storage.rewrite() == 2
    assert storage.rewrite() == 0
    only_new = EncryptedStorage(copy_of(base), new)
    assert [only_new.load(oid)[0] for oid in oids] == [SECRET] * 3
    with pytest.raises(WrongKeyError):
        list(only_new.iterator().__next__())
    storage.pack(storage.lastTransaction(), refer, gc=False)
    only_new = EncryptedStorage(copy_of(base), new)
    assert {r[2] for entry in contents(only_new) for r in entry[-1]} == {SECRET}


def test_a_copy_changes_the_key(base: Any) -> None:
    """A copy through the layers is encrypted with the new key, history and undone data too."""
    storage, oids = filled(base)
    undo(storage, commit(storage, {oids[1]: (storage.getTid(oids[1]), SECRET + b"2")}))
    copy = EncryptedStorage(MappingStorage(), TWO)
    assert copy.copyTransactionsFrom(storage) == 3
    assert contents(copy) == contents(storage)
    assert copy.copyTransactionsFrom(storage) == 0
    with pytest.raises(WrongKeyError):
        EncryptedStorage(copy_of(copy.base), ONE)


def test_copy_to_a_file_keeps_what_repeats(base: Any, tmp_path: Path) -> None:
    """A copy to an encrypted file knows which revisions repeat which, though it waits for the
    medium with many transactions together."""
    storage, oids = filled(base)
    for _ in range(3):
        undo(storage, commit(storage, {oids[1]: (storage.getTid(oids[1]), SECRET + b"2")}))
    with EncryptedStorage(FileStorage(tmp_path / "data.fs"), TWO) as copy:
        copy.copyTransactionsFrom(storage)
        assert contents(copy) == contents(storage)


def test_encrypting_what_is_there(tmp_path: Path) -> None:
    """A database that was plain is encrypted while it is used; after a pack nothing of it is left
    in the file."""
    path = tmp_path / "data.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        connection.root()["note"] = Note("secret")
    with objdb.DB(EncryptedStorage(FileStorage(path), "pass phrase", plain="read")) as db:
        connection = db.open()
        assert connection.root()["note"].text == "secret"
        seen: list[tuple[int, int]] = []
        assert db.storage.rewrite(lambda done, total: seen.append((done, total))) == 2
        assert seen == [(2, 2)]
        transaction.begin()
        connection.root()["more"] = Note("secret")
        transaction.commit()
        db.pack()
    assert b"secret" not in path.read_bytes()
    with objdb.DB(EncryptedStorage(FileStorage(path), "pass phrase")) as db:
        assert db.open().root()["more"].text == "secret"
        assert check(db.storage).problems == []


def test_rewriting_beside_others(base: Any) -> None:
    """What others commit while a storage is rewritten is not lost; versions stay what they are."""
    storage, oids = filled(base)
    perform(storage, lambda t: storage.store(
        oids[2], storage.getTid(oids[2]), b"planned", "plan", t
    ))
    again = EncryptedStorage(base, [TWO, ONE])
    store, once = base.store, []

    def store_later(oid: Any, *arguments: Any) -> None:
        if not once:
            once.append(oid)
            commit(storage, {oids[1]: (storage.getTid(oids[1]), b"between")})
        store(oid, *arguments)

    base.store = store_later  # type: ignore[method-assign]
    assert again.rewrite() == 3
    assert again.load(oids[1])[0] == b"between"
    assert again.load(oids[2], "plan")[0] == b"planned" and again.load(oids[2])[0] == SECRET


# -- the rest


def test_the_same_data_is_the_same(base: Any) -> None:
    """Undoing sees that an object is what it was, though it is encrypted anew."""
    storage, oids = filled(base)
    first = storage.getTid(oids[1])
    second = commit(storage, {oids[1]: (first, b"two")})
    third = commit(storage, {oids[1]: (second, b"three")})
    commit(storage, {oids[1]: (third, b"two")})
    undo(storage, second)
    assert storage.load(oids[1])[0] == SECRET


def test_each_record_is_encrypted_anew(base: Any) -> None:
    """Equal records of one object are encrypted with different nonces."""
    storage, oids = filled(base)
    data = [base.load(oids[1])[0]]
    for _ in range(3):
        commit(storage, {oids[1]: (storage.getTid(oids[1]), SECRET)})
        data.append(base.load(oids[1])[0])
    nonces = {each[encrypted._NONCE : encrypted._SEALED] for each in data}
    assert len(nonces) == len(set(data)) == 4


def test_what_is_too_large(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that has no room left for the rest is refused as too large."""
    from objdb.storage import staging

    monkeypatch.setattr(staging, "MAX_RECORD_BYTES", 1000)
    storage = EncryptedStorage(base, ONE)
    commit(storage, {ROOT_OID: (NO_TID, b"x" * (1000 - OVERHEAD_BYTES))})
    metadata = TransactionMetaData()
    storage.tpc_begin(metadata)
    with pytest.raises(objdb.RecordTooLargeError):
        storage.store(oid_from_int(1), NO_TID, b"x" * (1001 - OVERHEAD_BYTES), "", metadata)
    storage.tpc_abort(metadata)


def test_a_database(tmp_path: Path) -> None:
    """Objects, undo, versions, pack and reopening work over it."""
    path = tmp_path / "data.fs"
    with objdb.DB(EncryptedStorage(FileStorage(path), ONE)) as db:
        for text in ("first", "second"):
            with db.transaction(text) as connection:
                connection.root()["note"] = Note(text)
        db.undo(db.undoLog(0, 1)[0]["id"])
        transaction.commit()
        with db.transaction(version="plan") as connection:
            connection.root()["note"].text = "planned"
        [change] = db.version_diff("plan")
        assert change.attributes == {"text": ("first", "planned")}
        db.pack()
    with objdb.DB(EncryptedStorage(FileStorage(path), ONE)) as db:
        assert db.open().root()["note"].text == "first"
        assert db.open(version="plan").root()["note"].text == "planned"
        assert check(db.storage).problems == []


def test_missing_package(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptography, the error names the extra."""
    without(monkeypatch, "cryptography")
    with pytest.raises(Unsupported, match=r"objdb\[crypto\]"):
        EncryptedStorage(base, ONE)


def test_texts(base: Any) -> None:
    """What is put in comes out."""
    fill(EncryptedStorage(base, ONE))
    assert len(texts(EncryptedStorage(copy_of(base), ONE))) == 40


def test_undo_compares_what_is_encrypted(base: MappingStorage) -> None:
    """A creation can be undone where the object has the same data again, encrypted anew; through
    another layer too."""
    for storage in (EncryptedStorage(base, ONE), CompressedStorage(EncryptedStorage(base, ONE))):
        oid = storage.new_oid()
        created = commit(storage, {oid: (NO_TID, b"same " * 100)})
        changed = commit(storage, {oid: (created, b"other")})
        again = commit(storage, {oid: (changed, b"same " * 100)})
        undo(storage, created)
        with pytest.raises(KeyError):
            storage.load(oid)
        assert storage.loadSerial(oid, again) == b"same " * 100


def test_the_cost_of_a_passphrase(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """New databases have today's cost, in each record. One of objdb 0.1 keeps its own, until it is
    rewritten; then the old key opens nothing any more."""
    path = tmp_path / "data.fs"
    with monkeypatch.context() as old:
        old.setattr(encrypted, "_new_head", lambda: b".e\2" + bytes(range(16)))
        with EncryptedStorage(FileStorage(path), "word") as storage:
            tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
    for _ in range(2):
        with EncryptedStorage(FileStorage(path), "word") as storage:
            tid = commit(storage, {ROOT_OID: (tid, b"root again")})
            assert storage.base.load(ROOT_OID)[0].startswith(b".e\2" + bytes(range(16)))
    with EncryptedStorage(FileStorage(path), "word") as storage:
        assert storage.rewrite() == 1 and storage.load(ROOT_OID)[0] == b"root again"
        data = storage.base.load(ROOT_OID)[0]
        assert data[:4] == b".e\3\x11" and encrypted.COST == 0x11
    with EncryptedStorage(FileStorage(path), "word") as storage:
        assert storage.load(ROOT_OID)[0] == b"root again" and storage.rewrite() == 0
    with pytest.raises(WrongKeyError):
        EncryptedStorage(FileStorage(path), "another")


@pytest.mark.parametrize("cost", [0, 9, 21, 255])
def test_a_cost_that_nobody_chose(cost: int) -> None:
    """A record that asks for more memory than a key takes was altered, and is told as that."""
    base = MappingStorage()
    commit(base, {ROOT_OID: (NO_TID, b".e\3" + bytes([cost]) + bytes(60))})
    with pytest.raises(CorruptedDataError, match="altered"):
        EncryptedStorage(base, "word")


@pytest.mark.parametrize(
    "make", [FileStorage, SQLiteStorage, BerkeleyStorage, PickledMappingStorage]
)
def test_who_can_read_the_files(make: Any, tmp_path: Path) -> None:
    """Those of a new encrypted database nobody but their owner, also after a pack; those of one
    that was there stay as they are."""
    path = tmp_path / "data"
    with EncryptedStorage(make(path), ONE) as storage:
        tid = commit(storage, {ROOT_OID: (NO_TID, b"root")})
        storage.pack(tid, lambda record: [])
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700
        else:
            for each in tmp_path.iterdir():
                assert each.suffix == ".lock" or each.stat().st_mode & 0o777 == 0o600, each
    path.chmod(0o755 if path.is_dir() else 0o644)
    with EncryptedStorage(make(path), ONE):
        assert path.stat().st_mode & 0o077 == (0o055 if path.is_dir() else 0o044)
