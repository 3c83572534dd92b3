"""Mistakes in engines: files, SQLite, Berkeley DB, in memory, pickled."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_SUITE = "tests/storage/test_conformance.py"
_MEMORY = f"{_SUITE}::TestMappingStorage"
_FILE = f"{_SUITE}::TestFileStorage"
_BERKELEY = f"{_SUITE}::TestBerkeleyStorage"

ENGINES = (
    # Files
    Mutation(
        "acknowledged-is-cut", "storage/file/recovery.py",
        "            known_end = max(checkpoint.position, index.synced_position())\n",
        "            known_end = checkpoint.position\n",
        "What is known to be acknowledged is damage when it is gone, and never cut.",
        ("tests/storage/test_file_bad_input.py::test_damage_of_what_was_acknowledged",),
    ),
    Mutation(
        "voted-is-committed", "storage/file/recovery.py",
        "    if header.status == VOTED:\n",
        "    if header.status == VOTED and header.tid <= last_tid:\n",
        "A transaction that voted and was not finished is not there after a crash.",
        ("tests/storage/test_file_tails.py::test_undecided_commit",),
    ),
    Mutation(
        "checksum-is-believed", "storage/file/checksums.py",
        "    expected, crc = _crcs(log, header, place)\n    if expected != crc:\n",
        "    expected, crc = _crcs(log, header, place)\n    if len(expected) != len(crc):\n",
        "Bytes that changed on the disk are noticed.",
        ("tests/storage/test_pack_damage.py::test_damage_is_not_packed",),
    ),
    Mutation(
        "header-before-pages", "storage/file/index.py",
        "        self._file.sync()\n        self._write_header(Checkpoint(",
        "        self._write_header(Checkpoint(",
        "A checkpoint says that pages are on the medium when they are.",
        ("tests/storage/test_crash_sweep.py::test_power_lost_at_every_operation",),
    ),
    Mutation(
        "one-header-slot", "storage/file/index.py",
        "        slot = _SLOTS[self._sequence % 2]\n",
        "        slot = _SLOTS[0]\n",
        "A header of the index that is torn leaves the one before it.",
        ("tests/storage/test_file_bad_input.py::test_damage_stays_damage",),
    ),
    Mutation(
        "synced-not-noted", "storage/file/engine.py",
        "        generation.index.note_synced(token.end)\n",
        "",
        "The index knows the last transaction that was acknowledged.",
        ("tests/storage/test_file_bad_input.py::test_damage_of_what_was_acknowledged",),
    ),
    Mutation(
        "aborted-is-left", "storage/file/engine.py",
        "        if self._writing_to > self.generation.end:  # bytes were written\n",
        "        if self._writing_to < self.generation.end:  # bytes were written\n",
        "A transaction that was aborted leaves nothing behind the log's end.",
        ("tests/storage/test_file_bad_input.py::test_aborted_vote_leaves_zeros",),
    ),
    Mutation(
        "pack-loses-rest", "storage/file/pack.py",
        "        rewriting.copy_later(generation.end)\n",
        "",
        "What is committed while a file is packed is in the packed file.",
        ("tests/storage/test_pack_file.py::test_committed_at_the_last_moment",),
    ),
    Mutation(
        "pack-ignores-links", "storage/file/pack.py",
        "        if marking.look_at_later(generation.end):\n            return None\n",
        "        marking.look_at_later(generation.end)\n",
        "An object that is linked again at the end of a pack stays.",
        ("tests/storage/test_pack_file.py::test_committed_at_the_last_moment",),
    ),
    Mutation(
        "old-index-stays", "storage/file/pack.py",
        "            if files.exists(path + index):\n                files.remove(path + index)\n",
        "            if not files.exists(path + index):\n                continue\n",
        "A crash in the middle of a pack leaves no index of another file.",
        ("tests/storage/test_pack_file.py::test_power_lost",),
    ),
    Mutation(
        "reader-not-told", "storage/file/follower.py",
        "            self.db.invalidate(header.tid, list(positions))\n",
        "            self.db.invalidate(header.tid, [])\n",
        "A read-only view drops what the process that writes has changed.",
        ("tests/database/test_opening.py::test_a_read_only_view_follows_the_writer",),
    ),
    Mutation(
        "load-at-bound", "storage/file/lookup.py",
        "        if position >= self.end or current >= before:\n",
        "        if position >= self.end or current > before:\n",
        "A record of the bound itself is not before it.",
        (f"{_FILE}::test_load_before", f"{_FILE}::test_packed_by_another_thread"), is_pure=True,
    ),
    # SQLite
    Mutation(
        "others-not-told", "storage/sql/sqlite_engine.py",
        "            self.tell(tid, [oids[i : i + 8] for i in range(0, len(oids), 8)])\n",
        "            self.tell(tid, [oids[i : i + 8] for i in range(8, len(oids), 8)])\n",
        "A connection drops what another process has changed, all of it.",
        ("tests/storage/test_sqlite.py::test_two_databases_on_one_file",),
    ),
    Mutation(
        "vote-without-poll", "storage/sql/sqlite_engine.py",
        "            with self._poll_lock:\n"
        "                self._take_in(self._writer.connection)\n",
        "",
        "A vote takes in what other processes have committed before it.",
        ("tests/storage/test_sqlite.py::test_what_others_commit_before_ones_own",),
    ),
    Mutation(
        "damaged-row-is-read", "storage/sql/sqlite_engine.py",
        "or not self.has_checksums\n",
        "or self.has_checksums\n",
        "A row of SQLite that changed on the disk is noticed when it is loaded.",
        ("tests/storage/test_row_checksums.py::test_reads_that_meet_damage",),
    ),
    Mutation(
        "file-lock-stays", "storage/sql/sqlite_engine.py",
        "        finally:\n            self._process_lock.release()\n",
        """\
        except SQLITE_ERRORS:
            self._process_lock.release()
            raise
""",
        "A process that has committed lets others commit.",
        ("tests/storage/test_sqlite.py::test_one_that_waits_too_long",),
    ),
    Mutation(
        "own-is-foreign", "storage/sql/sqlite_engine.py",
        "            if own is not None and tid >= own:\n",
        "            if own is not None and tid > own:\n",
        "What a process commits itself is shown by its own publishing, in order.",
        ("tests/storage/test_sqlite.py::test_polling_before_a_commit_is_told",),
    ),
    # Berkeley DB
    Mutation(
        "before-is-at", "storage/berkeley/reading.py",
        "            if current is not None and current[:8] < tid:\n",
        "            if current is not None and current[:8] <= tid:\n",
        "A revision is not before its own tid.",
        (f"{_BERKELEY}::test_script[packing: a version brought back]",),
    ),
    Mutation(
        "replaced-count-twice", "storage/berkeley/change.py",
        "            facts.objects + len(transaction.oids) - len(replaced),",
        "            facts.objects + len(transaction.oids),",
        "Berkeley DB counts objects, and not revisions.",
        ("tests/storage/test_berkeley.py::test_what_is_counted",),
    ),
    Mutation(
        "log-not-synced", "storage/berkeley/engine.py",
        '        if self._durability == "sync":\n            try:\n',
        '        if self._durability != "sync":\n            try:\n',
        "What Berkeley DB acknowledged is on the medium.",
        ("tests/storage/test_berkeley.py::test_a_log_that_cannot_be_synced",),
    ),
    Mutation(
        "undecided-is-current", "storage/berkeley/reading.py",
        "            if head is not None and head > self.visibility.committed_tid:\n",
        "            if head == NO_TID:\n",
        "What is not decided is current for nobody.",
        (f"{_BERKELEY}::test_script[undo: a vote that is aborted]",),
    ),
    # In memory, over a mapping, pickled
    Mutation(
        "after-is-at", "storage/memory.py",
        "        return next(iter(chain[bisect_right(chain, tid, key=_tid) :][:1]), None)\n",
        "        return next(iter(chain[bisect_left(chain, tid, key=_tid) :][:1]), None)\n",
        "A revision is valid until the next one, and not until itself.",
        (f"{_MEMORY}::test_load_before",),
    ),
    Mutation(
        "amended-stays-in-version", "storage/memory.py",
        "                del self._chains[oid]\n                self._in_versions.pop(oid, None)\n"
        "        if transactions:\n",
        "                del self._chains[oid]\n        if transactions:\n",
        "An object that a pack removed is in no version.",
        (f"{_MEMORY}::test_script[packing: versions]",),
    ),
    Mutation(
        "rollback-of-committed", "storage/bytesmap.py",
        "        self._undecided = []\n        for oid, row in token.rows:\n",
        "        for oid, row in token.rows:\n",
        "An abort takes back its own rows, and none that were committed before.",
        ("tests/storage/test_memory.py::test_a_mapping_that_takes_no_more",),
    ),
    Mutation(
        "undecided-after-crash", "storage/bytesmap.py",
        "            if tid in committed:\n",
        "            if committed:\n",
        "Rows of a transaction that was not committed are gone after a crash.",
        ("tests/storage/test_memory.py::test_a_commit_that_was_not_decided",),
    ),
    Mutation(
        "pickle-runs-code", "storage/pickled.py",
        '        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in this file")',
        "        return super().find_class(module, name)",
        "Reading a pickled storage runs no code.",
        ("tests/storage/test_pickled.py::test_no_code_runs",),
    ),
    Mutation(
        "saved-too-much", "storage/pickled.py",
        "            self._saved = changes\n",
        "            self._saved = self._changes\n",
        "What is committed while the file is being written is written the next time.",
        ("tests/storage/test_pickled.py::test_committed_while_the_file_is_written",),
    ),
    Mutation(
        "pickle-crc-ignored", "storage/pickled.py",
        "    if zlib.crc32(body) != crc:\n",
        "    if crc is None:\n",
        "A pickled storage notices that its file was damaged.",
        ("tests/storage/test_pickled.py::test_every_byte_counts",),
    ),
)
