"""Records encrypted and authenticated with AES-256-GCM.

    .e   kind   key id      oid   nonce   ciphertext   tag
    2     1        16        8      12         n        16

    kind 1   a key of 32 bytes: a hash of it
         3   made from a passphrase with scrypt: cost 1, salt 15; scrypt's N is 2 to the cost
         2   the same, written by objdb 0.1: salt 16, at a cost of 15

New databases have the cost that OWASP's Password Storage Cheat Sheet asks for (N = 2**17, r = 8,
p = 1); those with a lower cost keep it until `rewrite`. The oid is authenticated too: a record
decrypts only as the object it was written for. (The fields before it select the key; if altered,
they select one that does not match.)

Not hidden: oids, sizes, tids, and the changed objects of each transaction, with its user,
description and extension; nor back pointers, which show revisions with the same data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from objdb.errors import (
    CorruptedDataError,
    NotEncryptedError,
    Unsupported,
    UsageError,
    WrongKeyError,
)
from objdb.ids import ROOT_OID, Oid, Tid, format_oid
from objdb.storage.files import make_private
from objdb.storage.layers.layer import Layer
from objdb.storage.layers.transforming import Codec, TransformingStorage

PLAIN = ("refuse", "read")
KEY_BYTES = 32
OVERHEAD_BYTES = 2 + 1 + 16 + 8 + 12 + 16
_MARKER, _RAW, _OLD_PASSPHRASE, _PASSPHRASE = b".e", b"\1", b"\2", b"\3"
_FROM_PASSPHRASE = (_OLD_PASSPHRASE, _PASSPHRASE)
# The positions of the parts of a record.
_SALT, _OID, _NONCE, _SEALED = 3, 19, 27, 39
# scrypt takes 128 MiB and about half a second at this cost, twice as much at the next.
COST = 17
_OLD_COST = 15
_COSTS = range(10, 21)  # accepted costs: up to a gigabyte of memory
_SALT_BYTES = 15
_BLOCKS = 8  # scrypt's r

Key = bytes | str  # 32 bytes, or a passphrase


class Encryption(Codec):
    """Encrypts records with the first of *keys*, and decrypts them with each. *plain*: see
    `EncryptedStorage`."""

    title = "EncryptedStorage"

    def __init__(self, keys: Key | Sequence[Key], plain: str) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise Unsupported(
                "encryption needs the package cryptography, which is not installed. Install it "
                "with: pip install 'objdb[crypto]'"
            ) from error
        if plain not in PLAIN:
            raise UsageError(f"plain is {plain!r}; it can be {' or '.join(PLAIN)}")
        if not isinstance(keys, Iterable):
            raise UsageError(
                "give a key (32 bytes), a passphrase (text), or a list of them, not "
                f"{type(keys).__name__}"
            )
        given = [keys] if isinstance(keys, (bytes, str)) else list(keys)
        for key in given:
            _require_key(key)
        if not given:
            raise UsageError("give at least one key to encrypt with")
        self._cipher = AESGCM
        self._failed = (InvalidTag, ValueError)  # the latter for truncated parts
        self._plain = plain
        self._first = given[0]
        self._passphrases = [key for key in given if isinstance(key, str)]
        # The heads of records, and their ciphers.
        self._open: dict[bytes, Callable[[bytes, bytes, bytes], bytes]] = {}
        for key in given:
            if isinstance(key, bytes):
                self._open[_MARKER + _RAW + _id_of(key)] = AESGCM(key).decrypt

    def begin(self, root: bytes | None) -> None:
        """Encrypt with the first key from now on; check that *root*, the data of the root object,
        can be decrypted."""
        key = self._first
        if root is not None:
            self.decode(ROOT_OID, root)
        if isinstance(key, str):
            self._head = _new_head()
            if root is not None and root[2:_SALT] in _FROM_PASSPHRASE:
                used = root[:_OID]
                if self._opens(_key_of(key, used), root):
                    self._head = used
            raw = _key_of(key, self._head)
        else:
            raw, self._head = key, _MARKER + _RAW + _id_of(key)
        self._use(raw)

    def raise_cost(self) -> None:
        """Give the first key, if it is a passphrase, the present cost."""
        key = self._first
        if isinstance(key, str) and _cost_of(self._head) < COST:
            self._head = _new_head()
            self._use(_key_of(key, self._head))

    def _use(self, raw: bytes) -> None:
        """Encrypt with the key *raw*, which `_head` names, from now on."""
        cipher = self._cipher(raw)
        self._seal: Callable[[bytes, bytes, bytes], bytes] = cipher.encrypt
        self._open[self._head] = cipher.decrypt

    def load_before(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `Codec`."""
        found = self.base_load(oid, tid, version) if version else self.base_load(oid, tid)
        if found is None:
            return None
        data, serial, end = found
        open_ = self._open.get(data[:_OID])
        if open_ is not None and data.startswith(oid, _OID):
            try:  # like `decode`
                record = open_(data[_NONCE:_SEALED], data[_SEALED:], oid)
            except self._failed:
                raise _altered(oid) from None
        else:
            record = self.decode(oid, data)
        return record, serial, end

    def encode(self, oid: Oid, record: bytes) -> bytes:
        """Return a record encrypted for the object *oid*."""
        nonce = os.urandom(12)
        return self._head + oid + nonce + self._seal(nonce, record, oid)

    def decode(self, oid: Oid | None, data: bytes) -> bytes:
        """Return the record in *data*. `CorruptedDataError` if they were altered, or are those of
        another object; `WrongKeyError`, `NotEncryptedError`."""
        open_ = self._open.get(data[:_OID])
        if open_ is None:
            return self._decode_unknown(oid, data)
        if oid is not None and data[_OID:_NONCE] != oid:
            raise CorruptedDataError(
                f"object {format_oid(oid)} has the record of object "
                f"{format_oid(data[_OID:_NONCE])}, which was moved there. Restore it from a "
                "backup", oid=oid,
            )
        try:
            return open_(data[_NONCE:_SEALED], data[_SEALED:], data[_OID:_NONCE])
        except self._failed:
            raise _altered(oid) from None

    def _decode_unknown(self, oid: Oid | None, data: bytes) -> bytes:
        """Return the record in *data*, with a head not met so far."""
        shown = _shown(oid)
        if data[:2] != _MARKER:
            if self._plain == "read":
                return data
            raise NotEncryptedError(
                f"{shown} is not encrypted, so it may be forged. To encrypt existing records, "
                "open the storage with plain='read' and call rewrite()", oid=oid,
            )
        kind, salt = data[2:_SALT], data[_SALT:_OID]
        if kind not in (_RAW, *_FROM_PASSPHRASE) or len(data) < OVERHEAD_BYTES:
            raise _altered(oid)
        if kind == _PASSPHRASE and salt[0] not in _COSTS:
            raise _altered(oid)
        for passphrase in self._passphrases if kind != _RAW else ():
            key = _key_of(passphrase, data[:_OID])
            if self._opens(key, data):
                self._open[data[:_OID]] = self._cipher(key).decrypt
                return self.decode(oid, data)
        what = f"the key {salt.hex()}" if kind == _RAW else "a passphrase"
        raise WrongKeyError(
            f"{shown} was encrypted with {what}, but none of the given keys decrypts it. Give that "
            "key too, after the one to encrypt with. If it is among them, the record was altered: "
            "restore it from a backup", oid=oid,
        )

    def _opens(self, key: bytes, data: bytes) -> bool:
        try:
            self._cipher(key).decrypt(data[_NONCE:_SEALED], data[_SEALED:], data[_OID:_NONCE])
        except self._failed:
            return False
        return True

    def is_as_written(self, data: bytes) -> bool:
        """Return whether *data* are encrypted with the first key."""
        return data[:_OID] == self._head


class EncryptedStorage(Layer):
    """Encrypts the records of *base*.

    *keys*: a key, or several: the first encrypts new records, the others decrypt older ones. A key
    is 32 random bytes, as from `os.urandom(32)`, or text: a passphrase. *plain*: `"refuse"`
    records that are not encrypted, since they may be forged, or `"read"` them, while a storage is
    being encrypted with `rewrite`.

    `WrongKeyError`, `NotEncryptedError` or `CorruptedDataError` if the root object cannot be
    decrypted, after closing *base*; `UsageError` for a key that is not valid; `Unsupported`
    without the extra `objdb[crypto]`.
    """

    def __init__(
        self, base: Any, keys: Key | Sequence[Key], *, plain: Literal["refuse", "read"] = "refuse"
    ) -> None:
        self._codec = Encryption(keys, plain)
        super().__init__(base)
        self._records = TransformingStorage(base, self._codec)
        self.go_through(self._records)
        try:
            root = self._records.current_data(ROOT_OID)
            if root is None:
                self._make_private()
            self._codec.begin(root and root[0])
        except BaseException:
            base.close()
            raise

    def _make_private(self) -> None:
        path = self.base.sortKey()
        if os.path.isabs(path):
            make_private(path)

    def rewrite(self, progress: Callable[[int, int], object] | None = None) -> int:
        """See `TransformingStorage.rewrite`. Keys from passphrases then get the present cost."""
        self._codec.raise_cost()
        return self._records.rewrite(progress)


def _new_head() -> bytes:
    """Return a new head for records with a key from a passphrase, with a new salt."""
    return _MARKER + _PASSPHRASE + bytes([COST]) + os.urandom(_SALT_BYTES)


def _cost_of(head: bytes) -> int:
    return head[_SALT] if head[2:_SALT] == _PASSPHRASE else _OLD_COST


def _key_of(passphrase: str, head: bytes) -> bytes:
    """Return the key made from a passphrase, for records with the head *head*."""
    salt = head[_SALT:] if head[2:_SALT] == _OLD_PASSPHRASE else head[_SALT + 1 :]
    n = 2 ** _cost_of(head)
    return hashlib.scrypt(
        passphrase.encode("utf-8"), salt=salt, n=n, r=_BLOCKS, p=1, dklen=KEY_BYTES,
        maxmem=256 * n * _BLOCKS,
    )


def _require_key(key: Any) -> None:
    if isinstance(key, str) and key:
        return
    if not isinstance(key, bytes):
        raise UsageError("a key is 32 bytes, or a passphrase: text that is not empty")
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"a key has 32 bytes, but this one {len(key)}. Make one with os.urandom(32) and keep "
            "it in a safe place; or give a passphrase as text"
        )


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"objdb key " + key).digest()[:16]


def _shown(oid: Oid | None) -> str:
    return f"object {format_oid(oid)}" if oid is not None else "an object"


def _altered(oid: Oid | None) -> CorruptedDataError:
    return CorruptedDataError(
        f"{_shown(oid)} was altered since it was encrypted, or is damaged. Restore it from a "
        "backup, or from an older revision", oid=oid,
    )
