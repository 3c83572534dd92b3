"""Compressing records, with zlib or zstandard.

The first bytes of the base's data give their kind, so storages filled before, or with another
method, stay readable:

    \\x80 …        an uncompressed record (a pickle), as is one that begins with ( or c
    .= record     an uncompressed record that begins otherwise
    .z …          zlib
    .s frame      zstandard; the frame names its dictionary, if any
    .d …          such a dictionary, trained on records; not an object

A dictionary is a record of its own, whose oid is the number in the frames. So every copy of a
frame's storage has the dictionary too; and a pack keeps it as long as a frame names it. The root
record always uses the newest one, if there is one: opening the storage finds it there.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from objdb.errors import CorruptedDataError, StorageError, UndoError, Unsupported, UsageError
from objdb.ids import MAX_TID, ROOT_OID, Oid, Tid, format_oid, int_from_oid, oid_from_int
from objdb.interfaces import IStorageIteration
from objdb.storage.layers.layer import Layer
from objdb.storage.layers.transforming import Change, Codec, TransformingStorage
from objdb.storage.layers.zstd import MAX_NUMBER, Zstd, ZstdFailure
from objdb.storage.packing import PackResult, References, no_roots
from objdb.storage.undo import tid_from_id

METHODS = ("zlib", "zstd")
_AS_IT_IS = b"\x80(c"  # the first bytes of pickled records
_PLAIN, _ZLIB, _ZSTD, _DICTIONARY = b".=", b".z", b".s", b".d"
_SMALLEST_BYTES = 256  # smaller records are not compressed
_SMALLEST_WITH_DICTIONARY = 32
_LEAST_GAIN = 8  # a gain of less than an eighth is not worth the time
_LARGEST_SAMPLE_BYTES = 128 * 1024


class Compression(Codec):
    """Compresses records with a method at a level; *load_dictionary* loads a dictionary's data, by
    its number."""

    title = "CompressedStorage"

    def __init__(
        self, method: str, level: int | None, load_dictionary: Callable[[int], bytes]
    ) -> None:
        if method not in METHODS:
            raise UsageError(f"method is {method!r}; it can be {' or '.join(METHODS)}")
        least, most, usual = (-1, 9, -1) if method == "zlib" else (1, 22, 3)
        self._level = usual if level is None else level
        if not isinstance(self._level, int) or not least <= self._level <= most:
            raise UsageError(f"level is {level!r}; for {method} it is {least} to {most}")
        self._load_dictionary = load_dictionary
        self._smallest = _SMALLEST_BYTES
        self.number = 0  # the number of the newest dictionary
        self.zstd: Zstd | None = None
        self._frames = threading.local()
        self._unusual: tuple[type[Exception], ...] = (AttributeError,)
        if method == "zstd":
            self.zstd = Zstd(self._level, load_dictionary)
            self._frames, self._unusual = self.zstd.local, self.zstd.unusual
        self._reader = self.zstd  # for reading frames, with any method for writing

    def load_before(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `Codec`: like `decode`, with the usual cases first."""
        found = self.base_load(oid, tid, version) if version else self.base_load(oid, tid)
        if found is None:
            return None
        data, serial, end = found
        if data[0] in _AS_IT_IS:
            return found
        if data[:2] == _ZSTD:
            try:
                return self._frames.expected(data[2:]), serial, end
            except self._unusual:
                pass  # `decode` does it, or raises
        return self.decode(oid, data), serial, end

    def encode(self, oid: Oid, record: bytes) -> bytes:
        """Return the base's data for a record."""
        if len(record) >= self._smallest:
            if self.zstd is None:
                data = _ZLIB + zlib.compress(record, self._level)
            else:
                data = _ZSTD + self.zstd.compress(record, self.number)
            if len(data) < len(record) - len(record) // _LEAST_GAIN:
                return data
        if self.number and self.zstd is not None and oid == ROOT_OID:
            return _ZSTD + self.zstd.compress(record, self.number)
        return record if record[0] in _AS_IT_IS else _PLAIN + record

    def decode(self, oid: Oid | None, data: bytes) -> bytes:
        """Return the record in *data*; `CorruptedDataError` if they are not valid."""
        kind = data[:2]
        try:
            if kind == _ZSTD:
                return (self._reader or self._open_reader()).decompress(data[2:])
            if data[0] in _AS_IT_IS:
                return data
            if kind == _ZLIB:
                return zlib.decompress(data[2:])
        except (zlib.error, ZstdFailure) as error:
            raise _damaged(oid, f"cannot be decompressed: {error}") from error
        if kind == _PLAIN:
            return data[2:]
        what = "is a dictionary, not an object" if kind == _DICTIONARY else "is in no known format"
        raise _damaged(oid, what)

    def _open_reader(self) -> Zstd:
        self._reader = Zstd(self._level, self._load_dictionary)
        return self._reader

    def is_object(self, data: bytes) -> bool:
        """Return whether *data* are not a dictionary."""
        return data[:2] != _DICTIONARY

    def is_as_written(self, data: bytes) -> bool:
        """Return whether *data* are encoded as they would be if stored now."""
        kind = data[:2]
        if kind == _ZSTD and self.zstd is not None:
            return self.zstd.number_of(data[2:]) == self.number
        if kind == _ZLIB and self.zstd is None:
            return True
        return kind not in (_ZLIB, _ZSTD) and len(data) < self._smallest

    def references(self, data: bytes, referencesf: References) -> Iterable[Oid]:
        """Return the oids that a record refers to, and that of its dictionary."""
        if not self.is_object(data):
            return ()
        found = referencesf(self.decode(None, data))
        if data[:2] != _ZSTD:
            return found
        number = (self._reader or self._open_reader()).number_of(data[2:])
        return [*found, oid_from_int(number)] if number else found

    def use(self, number: int) -> None:
        """Compress new records with the dictionary *number*."""
        assert self.zstd is not None  # otherwise no dictionary was found
        self._smallest = _SMALLEST_WITH_DICTIONARY
        self.number = number
        self.zstd.use(number)


class CompressedStorage(Layer):
    """Compresses the records of *base*.

    *method*: for new records: `"zlib"`, or `"zstd"`, which is faster and needs the extra
    `objdb[zstd]`; both are read. *level*: -1 to 9 for zlib, 1 to 22 for zstd. Small records, and
    those that would not get smaller, are not compressed.

    `UsageError` for another method or level; `Unsupported` without the extra.
    """

    def __init__(
        self, base: Any, method: Literal["zlib", "zstd"] = "zlib", *, level: int | None = None
    ) -> None:
        self._codec = codec = Compression(method, level, self._load_dictionary)
        super().__init__(base)
        self._records = TransformingStorage(base, codec)
        self.go_through(self._records)
        if codec.zstd is not None:
            self._use_newest_dictionary(codec.zstd)

    def rewrite(self, progress: Callable[[int, int], object] | None = None) -> int:
        """See `TransformingStorage.rewrite`."""
        return self._records.rewrite(progress)

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, **options: Any
    ) -> PackResult:
        """See `IStoragePackable`. The newest dictionary stays."""
        roots = options.pop("roots", None) or no_roots

        def kept() -> Iterable[Oid]:
            return [*roots(), *([oid_from_int(self._codec.number)] if self._codec.number else [])]

        return self._records.pack(time, referencesf, gc, roots=kept, **options)

    def undo(self, transaction_id: Any, transaction: Any) -> Any:
        """See `IStorageUndoable`. A transaction that stored a dictionary stays."""
        tid = tid_from_id(transaction_id)
        if IStorageIteration.providedBy(self.base):
            for found in self.base.iterator(tid, tid):
                if not all(self._codec.is_object(revision.data or b"") for revision in found):
                    reason = "it trained the dictionary that later records are compressed with"
                    raise UndoError(f"it cannot be undone: {reason}", tid=tid, reason=reason)
        return self.base.undo(transaction_id, transaction)

    # -- dictionaries

    def train_dictionary(self, sample: int = 10_000, size: int = 64 * 1024) -> Oid:
        """Train a dictionary on records of this storage, store it and use it from now on; return
        its oid.

        *sample*: the number of records; *size*: the maximum size of the dictionary in bytes; one
        hundredth of the sample is a good size. It makes small, similar records much smaller.
        Existing records do not change until `rewrite`.

        `UsageError` with another method than zstd, or too few records to train on;
        `Unsupported` if the base does not list its transactions.
        """
        zstd = self._codec.zstd
        if zstd is None:
            raise UsageError("dictionaries need method='zstd'")
        oid: Oid = self.base.new_oid()
        number = int_from_oid(oid)
        if number > MAX_NUMBER:
            raise StorageError(
                f"the dictionary would be number {number}, but zstandard allows none greater than "
                f"{MAX_NUMBER}. Go on without"
            )
        try:
            content = zstd.train(number, size, self._sample(sample))
        except ZstdFailure as error:
            raise UsageError(
                f"a dictionary could not be trained on {self.getName()}: {error}. Give a larger "
                "sample or a smaller size, or wait for more records"
            ) from error

        def changes() -> Iterator[Change]:
            yield oid, bytes(8), _DICTIONARY + content, ""
            root = self._records.current_data(ROOT_OID)
            if root is not None:
                data, tid, version = root
                record = self._codec.decode(ROOT_OID, data)
                yield ROOT_OID, tid, _ZSTD + zstd.compress(record, number), version

        self._records.commit_data(changes)
        self._codec.use(number)
        return oid

    def _use_newest_dictionary(self, zstd: Zstd) -> None:
        root = self._records.current_data(ROOT_OID)
        if root is not None and root[0][:2] == _ZSTD:
            try:
                number = zstd.number_of(root[0][2:])
            except ZstdFailure:
                return  # loading raises the error
            if number:
                self._codec.use(number)

    def _load_dictionary(self, number: int) -> bytes:
        """Return the dictionary with this number (called for the first frame that names it)."""
        found = self.base.loadBefore(oid_from_int(number), MAX_TID)
        if found is None or found[0][:2] != _DICTIONARY:
            raise ZstdFailure(f"object {hex(number)}, which it names, is not a dictionary")
        content: bytes = found[0][2:]
        return content

    def _sample(self, most: int) -> list[bytes]:
        """Return up to *most* records, spread over the storage."""
        if not IStorageIteration.providedBy(self.base):
            raise Unsupported(f"{self.base.getName()} does not list its records")
        chance, seen = random.Random(0), 0
        found: list[bytes] = []
        for transaction in self._records.iterator():
            for revision in transaction:
                if not revision.data or len(revision.data) > _LARGEST_SAMPLE_BYTES:
                    continue
                seen += 1
                if len(found) < most:
                    found.append(revision.data)
                elif (place := chance.randrange(seen)) < most:
                    found[place] = revision.data
        return found


def _damaged(oid: Oid | None, what: str) -> CorruptedDataError:
    return CorruptedDataError(
        f"object {format_oid(oid) if oid else '(unknown)'} {what}. Restore it from a backup, or "
        "from an older revision", oid=oid,
    )


