"""Compressed records: what is stored how, dictionaries, damage."""

from __future__ import annotations

import random
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb import CompressedStorage, FileStorage, MappingStorage
from objdb.check import check
from objdb.errors import (
    ConflictError,
    CorruptedDataError,
    POSKeyError,
    StorageError,
    UndoError,
    Unsupported,
    UsageError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, oid_from_int
from objdb.records.references import ReferenceScanner
from objdb.testing.helpers import commit, contents, undo
from objdb.testing.packing_model import record, refer
from tests.storage.layers.helpers import Note, copy_of, fill, texts, without

LONG = b"\x80\x03" + b"the same words again and again, " * 30
NOISE = random.Random(1).randbytes(600)


@pytest.fixture
def base() -> MappingStorage:
    return MappingStorage("base")


def words(number: int) -> bytes:
    """A record like many others."""
    chance = random.Random(number)
    return b"\x80\x03cmodule\nThing\n" + b" ".join(
        chance.choice((b"name", b"street", b"town", b"country", b"telephone", b"%d" % number))
        for _ in range(20)
    )


def trained(base: Any, count: int = 300) -> tuple[CompressedStorage, list[Oid], Oid]:
    """Return a storage with a root that refers to records, their oids, and the dictionary's."""
    storage = CompressedStorage(base, "zstd")
    oids = [storage.new_oid() for _ in range(count)]
    commit(storage, {
        ROOT_OID: (NO_TID, record("root", *oids)),
        **{oid: (NO_TID, words(number)) for number, oid in enumerate(oids)},
    })
    return storage, oids, storage.train_dictionary(size=2048)


# -- what is stored how


@pytest.mark.parametrize("method", ["zlib", "zstd"])
@pytest.mark.parametrize(("data", "begins"), [
    (LONG, None), (b"\x80\x03short", b"\x80\x03s"), (b"short", b".=short"), (b".zshort", b".=.z"),
    (b"\x80" + NOISE, b"\x80" + NOISE), (NOISE, b".=" + NOISE), (b".d" + NOISE, b".=.d"),
    (b"(old", b"(old"), (b"c", b"c"), (b".", b".=."),
])
def test_what_is_stored(base: Any, method: str, data: bytes, begins: bytes | None) -> None:
    """What gets smaller is compressed; everything else is stored as it is, behind a marker if it
    does not begin like a pickle."""
    storage = CompressedStorage(base, method)
    commit(storage, {ROOT_OID: (NO_TID, data)})
    stored = base.load(ROOT_OID)[0]
    marker = {"zlib": b".z", "zstd": b".s"}[method]
    assert stored.startswith(begins or marker)
    assert storage.load(ROOT_OID)[0] == storage.loadBefore(ROOT_OID, b"\x7f" * 8)[0] == data
    assert begins or len(stored) < len(data) // 4


def test_plain_and_mixed(base: Any) -> None:
    """Records from before the layer, and of either method, are read by both."""
    oids = [base.new_oid() for _ in range(3)]
    commit(base, {oids[0]: (NO_TID, LONG)})
    commit(CompressedStorage(base), {oids[1]: (NO_TID, LONG)})
    commit(CompressedStorage(base, "zstd"), {oids[2]: (NO_TID, LONG)})
    assert [base.load(oid)[0][:2] for oid in oids] == [LONG[:2], b".z", b".s"]
    for method in ("zlib", "zstd"):
        storage = CompressedStorage(copy_of(base), method)
        assert [storage.load(oid)[0] for oid in oids] == [LONG] * 3
        assert storage.rewrite() == 2
        assert storage.rewrite() == 0
        marker = b".z" if method == "zlib" else b".s"
        assert {storage.base.load(oid)[0][:2] for oid in oids} == {marker}
        assert [storage.load(oid)[0] for oid in oids] == [LONG] * 3


def test_rewriting_ends(base: Any) -> None:
    """What does not get smaller is not stored anew each time."""
    storage = CompressedStorage(base)
    tid = commit(storage, {ROOT_OID: (NO_TID, b"\x80" + NOISE)})
    assert storage.rewrite() == 0
    assert base.lastTransaction() == tid


def test_levels(base: Any) -> None:
    """The level is the method's."""
    sizes = []
    data = b"".join(words(number) for number in range(500))
    for method, level in (("zlib", 1), ("zlib", 9), ("zstd", 1), ("zstd", 19)):
        storage = CompressedStorage(MappingStorage(), method, level=level)
        commit(storage, {ROOT_OID: (NO_TID, data)})
        sizes.append(storage.getSize())
    assert sizes[0] > sizes[1] and sizes[2] > sizes[3]
    for method, wrong in (("zlib", 10), ("zlib", -2), ("zstd", 0), ("zstd", 23), ("zstd", "3")):
        with pytest.raises(UsageError, match="level"):
            CompressedStorage(base, method, level=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="zlib or zstd"):
        CompressedStorage(base, "lzma")


def test_history_and_log(base: Any) -> None:
    """history gives the sizes of records, the base those of its data."""
    storage = CompressedStorage(base)
    tid = commit(storage, {ROOT_OID: (NO_TID, LONG)})
    commit(storage, {ROOT_OID: (tid, None)})
    assert [entry["size"] for entry in storage.history(ROOT_OID, 2)] == [0, len(LONG)]
    assert base.history(ROOT_OID, 2)[1]["size"] < len(LONG) // 4


def test_a_conflict_has_the_record(base: Any) -> None:
    """What a conflict error carries is the record, not what would have been stored."""
    storage = CompressedStorage(base)
    tid = commit(storage, {ROOT_OID: (NO_TID, LONG)})
    commit(storage, {ROOT_OID: (tid, LONG + b"1")})
    with pytest.raises(ConflictError) as caught:
        commit(storage, {ROOT_OID: (tid, LONG + b"2")})
    assert caught.value.record == LONG + b"2"


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_database(tmp_path: Path, method: str) -> None:
    """A database works over it, packs, and is there when it is opened again; the file is
    smaller."""
    sizes = []
    for layer in (lambda base: base, lambda base: CompressedStorage(base, method)):
        path = tmp_path / f"data{len(sizes)}.fs"
        with objdb.DB(layer(FileStorage(path))) as db:
            for text in ("first " * 300, "second " * 300):
                with db.transaction(text[:5]) as connection:
                    connection.root()["note"] = Note(text)
            db.undo(db.undoLog(0, 1)[0]["id"])
            transaction.commit()
            with db.transaction(version="plan") as connection:
                connection.root()["note"].text = "planned " * 300
            db.pack()
        with objdb.DB(layer(FileStorage(path))) as db:
            assert db.open().root()["note"].text == "first " * 300
            assert db.open(version="plan").root()["note"].text == "planned " * 300
            assert check(db.storage).problems == []
            sizes.append(db.storage.getSize())
    assert sizes[1] < sizes[0] / 3


# -- dictionaries


def test_dictionary(base: Any) -> None:
    """With a dictionary, small records get much smaller; those there already do by rewriting."""
    storage, oids, dictionary = trained(base)
    assert base.load(dictionary)[0].startswith(b".d")
    assert base.load(oids[0])[0] == words(0)
    assert storage.rewrite() == len(oids)
    assert storage.rewrite() == 0
    stored = [base.load(oid)[0] for oid in oids]
    assert all(data.startswith(b".s") for data in stored)
    assert sum(map(len, stored)) < 0.6 * sum(len(words(number)) for number in range(len(oids)))
    assert [storage.load(oid)[0] for oid in oids] == [words(n) for n in range(len(oids))]


def test_dictionary_when_reopened(base: Any) -> None:
    """The newest dictionary is found again, and the older ones by who needs them; also when new
    records are stored in another way."""
    storage, oids, first = trained(base)
    storage.rewrite()
    commit(storage, {oids[0]: (storage.getTid(oids[0]), words(1000))})
    second = storage.train_dictionary(size=1024)
    again = CompressedStorage(copy_of(base), "zstd")
    commit(again, {oids[1]: (again.getTid(oids[1]), words(1001))})
    zstandard = pytest.importorskip("zstandard")
    numbers = [
        zstandard.get_frame_parameters(again.base.load(oid)[0][2:]).dict_id
        for oid in (ROOT_OID, oids[0], oids[1])
    ]
    assert [oid_from_int(number) for number in numbers] == [second, first, second]
    zlibbed = CompressedStorage(copy_of(base))
    assert [zlibbed.load(oid)[0] for oid in oids[1:]] == [words(n) for n in range(1, len(oids))]


def test_a_dictionary_is_no_object(base: Any) -> None:
    """The layer's iterator leaves dictionaries out; loading one is an error that says so."""
    storage, oids, dictionary = trained(base)
    shown = {revision[0] for entry in contents(storage) for revision in entry[-1]}
    assert shown == {ROOT_OID, *oids}
    with pytest.raises(CorruptedDataError, match="dictionary, not an object"):
        storage.load(dictionary)
    copy = CompressedStorage(MappingStorage())
    copy.copyTransactionsFrom(storage)
    assert contents(copy) == contents(storage)


def test_training_is_not_undone(base: Any) -> None:
    """The transaction that stored a dictionary cannot be undone; the one before can."""
    storage, oids, dictionary = trained(base)
    changed = commit(storage, {oids[0]: (storage.getTid(oids[0]), words(1000))})
    with pytest.raises(UndoError, match="dictionary"):
        undo(storage, base.getTid(dictionary))
    undo(storage, changed)
    assert storage.load(oids[0])[0] == words(0)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_pack_keeps_what_is_used(tmp_path: Path, kind: str) -> None:
    """A pack keeps the dictionaries that records use, and the newest; a dictionary that nothing
    uses goes."""
    base: Any = MappingStorage() if kind == "memory" else FileStorage(tmp_path / "data.fs")
    storage, oids, first = trained(base)
    storage.rewrite()
    second = storage.train_dictionary(size=1024)
    storage.pack(storage.lastTransaction(), refer)
    assert storage.base.load(first) and storage.base.load(second)
    storage.rewrite()
    storage.pack(storage.lastTransaction(), refer)
    assert storage.base.load(second)
    with pytest.raises(POSKeyError):
        base.load(first)
    assert [storage.load(oid)[0] for oid in oids] == [words(n) for n in range(len(oids))]
    plainly = CompressedStorage(base)  # with zlib
    tid = commit(plainly, {ROOT_OID: (base.getTid(ROOT_OID), record("root"))})
    storage.pack(tid, refer)  # no record names it any more, and it serves the next ones
    commit(storage, {oids[0]: (NO_TID, words(0))})
    reopened = CompressedStorage(base)
    assert reopened.load(oids[0])[0] == words(0)
    base.close()


def test_many_threads(base: Any) -> None:
    """Threads load and store at once, with two dictionaries."""
    storage, oids, _ = trained(base)
    storage.rewrite()
    storage.train_dictionary(size=1024)
    for number in range(0, len(oids), 2):
        commit(storage, {oids[number]: (storage.getTid(oids[number]), words(number))})
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(400):
            number = chance.randrange(len(oids))
            if storage.load(oids[number])[0] != words(number):
                wrong.append(number)
            commit(storage, {storage.new_oid(): (NO_TID, words(number))})

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_training_beside_others(base: Any) -> None:
    """A database whose storage trains a dictionary and rewrites goes on, with loaded objects."""
    with objdb.DB(CompressedStorage(base, "zstd")) as db:
        fill_db(db)
        connection = db.open()
        note = connection.root()[7]
        assert note.text
        seen: list[tuple[int, int]] = []
        db.storage.train_dictionary(size=1024)
        assert db.storage.rewrite(lambda done, total: seen.append((done, total))) == 200
        assert seen == [(201, 201)]
        transaction.begin()
        note.text = "changed"
        transaction.commit()
        db.pack()
        assert check(db.storage).problems == []
    assert texts(CompressedStorage(copy_of(base)))[7] == "changed"


def fill_db(db: Any) -> None:
    with db.transaction() as connection:
        for number in range(200):
            connection.root()[number] = Note(words(number).decode("latin-1"))


def test_no_dictionary(base: Any) -> None:
    """What cannot be trained is refused, and nothing is stored."""
    fill(base, 2)
    before = contents(base)
    with pytest.raises(UsageError, match="larger sample"):
        CompressedStorage(base, "zstd").train_dictionary()
    with pytest.raises(UsageError, match="method='zstd'"):
        CompressedStorage(base).train_dictionary()
    commit(base, {oid_from_int(2**31 - 1): (NO_TID, b"far")})
    with pytest.raises(StorageError, match="Go on without"):
        CompressedStorage(base, "zstd").train_dictionary()
    assert contents(base)[:-1] == before


# -- damage


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_every_bit_counts(base: Any, method: str) -> None:
    """A record with any bit turned over is noticed, with its oid; but for the few bits that mean
    nothing, with which it is the same."""
    storage = CompressedStorage(base, method)
    tid = commit(storage, {ROOT_OID: (NO_TID, LONG)})
    stored = base.load(ROOT_OID)[0]
    harmless = 0
    for place in range(len(stored)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[place] ^= 1 << bit
            tid = commit(base, {ROOT_OID: (tid, bytes(damaged))})
            try:
                harmless += storage.load(ROOT_OID)[0] == LONG
            except CorruptedDataError as error:
                assert error.oid == ROOT_OID and "object 0x0" in str(error)
                with pytest.raises(CorruptedDataError):
                    storage.loadBefore(ROOT_OID, b"\x7f" * 8)
            else:
                assert storage.load(ROOT_OID)[0] == LONG
    assert harmless < 8


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_records_cut_short(base: Any, method: str) -> None:
    """So is one that is cut short, anywhere."""
    storage = CompressedStorage(base, method)
    tid = commit(storage, {ROOT_OID: (NO_TID, LONG)})
    stored = base.load(ROOT_OID)[0]
    for size in range(1, len(stored)):
        tid = commit(base, {ROOT_OID: (tid, stored[:size])})
        with pytest.raises(CorruptedDataError):
            storage.load(ROOT_OID)


def test_lost_dictionary(base: Any) -> None:
    """Without its dictionary, with a damaged one, or one cut short, a record is an error that
    names the dictionary."""
    storage, oids, dictionary = trained(base)
    storage.rewrite()
    content = base.load(dictionary)[0]
    tid = base.getTid(dictionary)
    for damaged in (None, content[:200], content[:6], b".d", b"\x80other", content[:-900]):
        tid = commit(base, {dictionary: (tid, damaged)})
        again = CompressedStorage(copy_of(base), "zstd")
        with pytest.raises(CorruptedDataError) as caught:
            again.load(oids[0])
        assert caught.value.oid == oids[0]


def test_missing_package(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zstandard, zlib works; zstd, and frames that are met, name the extra."""
    commit(CompressedStorage(base, "zstd"), {ROOT_OID: (NO_TID, LONG)})
    without(monkeypatch, "zstandard")
    storage = CompressedStorage(base)
    tid = commit(storage, {oid_from_int(7): (NO_TID, LONG)})
    assert storage.load(oid_from_int(7)) == (LONG, tid)
    with pytest.raises(Unsupported, match=r"objdb\[zstd\]"):
        storage.load(ROOT_OID)
    with pytest.raises(Unsupported, match=r"objdb\[zstd\]"):
        CompressedStorage(base, "zstd")


def test_references(base: Any) -> None:
    """What is packed sees records, whatever is stored."""
    fill(CompressedStorage(base), 30)
    storage = CompressedStorage(base)
    commit(storage, {base.new_oid(): (NO_TID, LONG)})
    assert len(base) == 32
    storage.pack(storage.lastTransaction(), ReferenceScanner())
    assert len(base) == 31 and len(texts(storage)) == 30
    assert zlib.decompress(base.load(ROOT_OID)[0][2:])
