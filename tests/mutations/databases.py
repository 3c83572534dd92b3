"""Mistakes in databases, connections, records and safes."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_TRANSACTIONS = "tests/connection/test_transactions.py"
_READ_SET = "tests/isolation/test_read_set.py"
_POOL = "tests/database/test_pool.py"

DATABASES = (
    # Isolation
    Mutation(
        "snapshot-moves", "connection/view.py",
        "            self._jar._before = next_tid(snapshot)\n",
        "            self._jar._before = MAX_TID\n",
        "A snapshot shows nothing that was committed after it began.",
        (f"{_TRANSACTIONS}::test_snapshot_does_not_move",),
    ),
    Mutation(
        "past-moves", "connection/view.py",
        "            self._jar._before = min(self.past, next_tid(snapshot))\n",
        "            self._jar._before = max(self.past, next_tid(snapshot))\n",
        "A connection to the past shows that moment, and nothing later.",
        ("tests/database/test_past.py::test_the_past_stays_as_it_is",),
    ),
    Mutation(
        "reads-last-too-long", "connection/view.py",
        "        self.must_be_current.clear()\n",
        "",
        "What one transaction relied on does not make a later one fail.",
        (f"{_TRANSACTIONS}::test_read_current_is_for_one_transaction",),
    ),
    Mutation(
        "early-reads-forgotten", "connection/isolation.py",
        "        self._kept = {**read, **loaded, **self._kept}\n",
        "        self._kept = {**read, **loaded}\n",
        "What left the cache in a transaction was read by it all the same.",
        (f"{_READ_SET}::test_what_leaves_the_cache_was_read",),
    ),
    Mutation(
        "loads-not-noted", "connection/loadpath.py",
        "            if self._loaded is not None:\n",
        "            if self._loaded:\n",
        "What was loaded in a serializable transaction was read by it.",
        (f"{_READ_SET}::test_what_the_program_deactivates_was_read",), is_pure=True,
    ),
    # Invalidations
    Mutation(
        "short-log-is-whole", "database/invalidations.py",
        "        return found if after >= self._start else None\n",
        "        return found\n",
        "A view that is older than the log of changes drops its whole cache.",
        ("tests/database/test_caches.py::test_a_log_that_is_too_short",),
    ),
    Mutation(
        "versions-not-invalidated", "database/invalidations.py",
        "(not versions or version in versions):\n",
        "not versions:\n",
        "Connections in a version drop what another one changed in it.",
        ("tests/database/test_versions.py::test_whom_a_commit_invalidates",),
    ),
    # Savepoints, and aborts
    Mutation(
        "savepoint-journal", "connection/savepoint.py",
        "        while len(self._journal) > mark.journal:\n",
        "        while len(self._journal) > mark.journal + 1:\n",
        "Rolling back to a savepoint takes back everything after it.",
        (f"{_TRANSACTIONS}::test_savepoints_nest",),
    ),
    Mutation(
        "rollback-keeps-memory", "connection/work.py",
        "        changed = savepoints.roll_back(mark) | set(changes.registered)\n",
        "        changed = savepoints.roll_back(mark)\n",
        "Rolling back takes back what was changed after the last savepoint, too.",
        (f"{_TRANSACTIONS}::test_savepoints_nest",),
    ),
    Mutation(
        "savepoint-overwrites", "connection/work.py",
        "store(oid, base_tid, record, version, metadata)\n",
        "store(oid, self.db().storage.getTid(oid), record, version, metadata)\n",
        "What a savepoint put away conflicts with what others committed.",
        (f"{_TRANSACTIONS}::test_savepoint_conflict_at_the_end",),
    ),
    Mutation(
        "abort-keeps-stored", "connection/work.py",
        "        changed = set(changes.registered) | set(self.stored)\n",
        "        changed = set(changes.registered)\n",
        "A commit that fails leaves no change in memory.",
        (f"{_TRANSACTIONS}::test_a_failed_commit_takes_back_everything",),
    ),
    Mutation(
        "new-objects-lose-state", "connection/work.py",
        "        if obj._p_changed is None:\n            obj._p_activate()\n",
        "",
        "An abort leaves the state of new objects in memory.",
        (f"{_TRANSACTIONS}::test_savepoint_then_abort",),
    ),
    # Caches
    Mutation(
        "sweep-the-young", "connection/access_epochs.py",
        "        old = {oid for set_at, oid in self._markers if set_at <= limit}\n",
        "        old = {oid for set_at, oid in self._markers if set_at >= limit}\n",
        "A sweep drops the objects that were not used for so long, and no others.",
        ("tests/database/test_caches.py::test_sweeping_by_age",),
    ),
    Mutation(
        "versions-get-all", "database/caches.py",
        "            elif connection.getVersion():\n",
        "            elif connection.getVersion() is None:\n",
        "Caches of versions keep their own size.",
        ("tests/database/test_version_pools.py::test_caches_of_versions",),
    ),
    # Mutations
    Mutation(
        "longer-list-is-equal", "records/comparing.py",
        '        return None if len(before) == len(now) else f"[{min(len(before), len(now))}]"\n',
        "        return None\n",
        "An item appended to a plain list is noticed.",
        ("tests/connection/test_mutations.py::test_a_mutation_is_found",),
    ),
    # Pools, and options
    Mutation(
        "pool-grows", "database/pool.py",
        "            if len(self._free) + len(self._out) < self.size:\n",
        "            if len(self._free) + len(self._out) <= self.size:\n",
        "A pool that was made smaller keeps no more connections than its size.",
        (f"{_POOL}::test_resizing",),
    ),
    Mutation(
        "any-moment-will-do", "database/historical.py",
        "                if moment == before and free.getVersion() == version:\n",
        "                if free.getVersion() == version:\n",
        "A connection to the past shows the moment that was asked for.",
        ("tests/database/test_past.py::test_moments",),
    ),
    Mutation(
        "option-of-uri-ignored", "database/options.py",
        "for option in fields(cls)}, **given}",
        "for option in fields(cls)}}",
        "Options of the database stand in its URI, too.",
        ("tests/database/test_opening.py::test_parameters_in_a_uri",),
    ),
    Mutation(
        "settings-leave-open", "database/settings.py",
        "    except BaseException:\n        databases.close()\n        raise\n",
        "    except BaseException:\n        raise\n",
        "Of several databases none stays open where one cannot be opened.",
        ("tests/database/test_settings.py::test_one_that_cannot_be_opened",),
    ),
    # Records
    Mutation(
        "bare-references-lost", "records/references.py",
        "            if len(oids) == len(found) and all(map(_is_oid, oids)):\n",
        "            if all(map(_is_oid, oids)):\n",
        "A pack follows references that are oids alone.",
        ("tests/records/test_references.py::test_records_one_after_the_other",),
    ),
    Mutation(
        "weak-is-strong", "records/references.py",
        "    return [r.oid for r in all_references(record) if not r.weak and r.database is None]\n",
        "    return [r.oid for r in all_references(record) if r.database is None]\n",
        "Weak references keep nothing.",
        ("tests/database/test_pack.py::test_weak_references",),
    ),
    Mutation(
        "weak-between-databases", "records/references.py",
        "        return arguments[0], True, arguments[1] if arguments[1:] else None\n",
        "        return arguments[0], True, None\n",
        "A weak reference to another database leads there.",
        ("tests/records/test_references.py::test_references_to_other_databases_are_read",),
    ),
    Mutation(
        "references-not-shared", "records/conflicts.py",
        "        return self.references.setdefault(key, reference)\n",
        "        return reference\n",
        "In a merge the same object is the same reference.",
        ("tests/records/test_conflicts.py::test_states_and_references",),
    ),
    Mutation(
        "broken-is-kept", "records/reader.py",
        "            if not is_broken(found):  # a missing class may become importable\n",
        "            if found is not None:  # a missing class may become importable\n",
        "A class that was missing is found when it has come back.",
        ("tests/records/test_broken.py::test_a_class_that_comes_back",),
    ),
    Mutation(
        "missing-class-is-null", "records/careful.py",
        "    return 0 if is_broken(type(obj)) else (0, type(obj))\n",
        "    return 0\n",
        "An error names the object whose class cannot be stored.",
        ("tests/records/test_writer.py::test_local_persistent_classes",),
    ),
    # Safes
    Mutation(
        "update-one-by-one", "safe/mapping.py",
        "        self.table.put_all([_row(key, value) for key, value in pairs])\n",
        "        for key, value in pairs:\n            self.table.put(_row(key, value))\n",
        "An update of a safe stores all pairs, or none.",
        ("tests/safe/test_mapping.py::test_update_is_all_or_nothing",),
    ),
    Mutation(
        "pop-of-another", "safe/mapping.py",
        "            if self.table.delete(encoded, bytes(value)):\n",
        "            if self.table.delete(encoded):\n",
        "Popping removes the value that it returns, and no later one.",
        ("tests/safe/test_mapping.py::test_pop_when_another_was_faster",),
    ),
    Mutation(
        "death-not-noticed", "safe/gate.py",
        "        return is_first or bool(self._state[0])\n",
        "        return is_first\n",
        "A safe in which a process died is recovered by the next one.",
        ("tests/safe/test_processes.py::test_death_inside",),
    ),
)
