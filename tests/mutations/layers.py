"""Mistakes in layers: changes over a base, compression, encryption, the past."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_DEMO = "tests/storage/layers/test_demo.py"
_COMPRESSED = "tests/storage/layers/test_compressed.py"
_ENCRYPTED = "tests/storage/layers/test_encrypted.py"
_LOOKING = "tests/storage/layers/test_looking.py"

LAYERS = (
    Mutation(
        "deletion-is-forgotten", "storage/layers/overlay.py",
        "                if record is None and oid in chains.in_base:\n",
        "                if record is None and oid not in chains.in_base:\n",
        "An object of the base that was deleted stays deleted when the changes are packed.",
        (f"{_DEMO}::test_deletions_are_seen",),
    ),
    Mutation(
        "oids-of-the-base", "storage/layers/overlay.py",
        "        return max(least, self._base_oid) + count\n",
        "        return least + count\n",
        "New objects in the changes have no oids of the base's.",
        (f"{_DEMO}::test_new_oids",),
    ),
    Mutation(
        "base-is-new", "storage/layers/overlay.py",
        "                    record, pointer = _AS_IN_BASE + pointer, None\n",
        "                    record, pointer = row.data, None\n",
        "Undoing the first change shows the base's revision again, not a copy.",
        (f"{_DEMO}::test_like_one_storage",),
    ),
    Mutation(
        "plain-is-ambiguous", "storage/layers/compressed.py",
        "        return record if record[0] in _AS_IT_IS else _PLAIN + record\n",
        "        return record if record[0] in _AS_IT_IS else record\n",
        "Records that begin like compressed ones come back as they were.",
        (f"{_COMPRESSED}::test_what_is_stored",),
    ),
    Mutation(
        "dictionary-is-garbage", "storage/layers/compressed.py",
        "        return [*found, oid_from_int(number)] if number else found\n",
        "        return found\n",
        "A pack keeps the dictionaries that records were compressed with.",
        (f"{_COMPRESSED}::test_pack_keeps_what_is_used",),
    ),
    Mutation(
        "records-can-be-moved", "storage/layers/encrypted.py",
        "        if oid is not None and data[_OID:_NONCE] != oid:\n",
        "        if oid is not None and not data[_OID:_NONCE]:\n",
        "An encrypted record that was moved to another object is refused.",
        (f"{_ENCRYPTED}::test_swapped",),
    ),
    Mutation(
        "nonce-is-constant", "storage/layers/encrypted.py",
        "        nonce = os.urandom(12)\n",
        "        nonce = oid + bytes(4)\n",
        "No two records are encrypted with one nonce.",
        (f"{_ENCRYPTED}::test_each_record_is_encrypted_anew",),
    ),
    Mutation(
        "conflict-is-encoded", "storage/layers/transforming.py",
        "                error.record = self.codec.decode(error.oid, error.record)\n",
        "                pass\n",
        "A conflict under a layer has the record as it was given.",
        (f"{_COMPRESSED}::test_a_conflict_has_the_record",),
    ),
    Mutation(
        "end-at-bound", "storage/layers/before.py",
        "        return record, serial, end if end is not None and end < self.before else None\n",
        "        return record, serial, end if end is not None and end <= self.before else None\n",
        "Before a moment, nothing is known of what was committed at it.",
        (f"{_LOOKING}::test_before_each_transaction",),
    ),
)
