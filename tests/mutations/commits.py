"""Mistakes in what all storages share: `objdb.storage`, but for its engines and layers."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_SUITE = "tests/storage/test_conformance.py"
_MEMORY = f"{_SUITE}::TestMappingStorage"

COMMITS = (
    # The commit protocol
    Mutation(
        "callback-after-publish", "storage/committer.py",
        """\
            if not ticket.is_told:
                ticket.finished(ticket.tid)
                ticket.is_told = True
        finally:
            if ticket.token is not None:
                self._oids.note(ticket.oids)
                self._engine.publish(ticket.token)
""",
        """\
            if ticket.token is not None:
                self._oids.note(ticket.oids)
                self._engine.publish(ticket.token)
        finally:
            if not ticket.is_told:
                ticket.finished(ticket.tid)
                ticket.is_told = True
""",
        "Others are told what changed before they can see it.",
        (f"{_MEMORY}::test_finish_calls_back_first",),
    ),
    Mutation(
        "failed-sync-goes-on", "storage/committer.py",
        "            if is_first and not _is_failure(error):\n",
        "            if is_first:\n",
        "After a sync that failed nobody commits.",
        ("tests/storage/test_failing_commits.py::test_a_sync_that_fails_once",),
    ),
    Mutation(
        "failed-sync-is-success", "storage/durability.py",
        "                ticket.error = _unknown_outcome(error)\n",
        "                ticket.error = None\n",
        "A commit whose sync failed is not told to have succeeded.",
        ("tests/connection/test_two_phase.py::test_a_sync_that_fails",),
    ),
    Mutation(
        "group-forgets-followers", "storage/durability.py",
        "following = next((each for each in rest if each.wake is not None), None)",
        "following = None",
        "A commit that came while a group was being synced is led to its end.",
        ("tests/storage/test_group_commit.py::test_an_interrupt_when_it_is_ones_turn",),
    ),
    Mutation(
        "group-hides-commits", "storage/committer.py",
        """\
            visibility.committed_tid = ticket.tid
""",
        "            pass\n",
        "A commit follows those that are committed and not synced yet, with a larger tid.",
        ("tests/storage/test_berkeley.py::test_commits_that_wait_are_checked_against",),
    ),
    Mutation(
        "same-tid-twice", "storage/times.py",
        "    if given is not None and given <= last:\n",
        "    if given is not None and given < last:\n",
        "No two transactions have one tid.",
        (f"{_MEMORY}::test_restore",),
    ),
    Mutation(
        "interrupted-commit-is-dropped", "storage/committer.py",
        "            if writes.phase is Phase.COMMITTED and self._is_unsettled(writes):\n",
        "            if writes.phase is not Phase.COMMITTED and self._is_unsettled(writes):\n",
        "A commit that is interrupted goes through to its end.",
        ("tests/storage/test_failing_commits.py::test_an_interrupt_while_publishing",),
    ),
    Mutation(
        "lock-in-two-steps", "storage/holding.py",
        "    held.extend(compress((lock,), map(lock.acquire, _ONCE)))\n",
        "    lock.acquire()\n    held.append(lock)\n",
        "A lock that was acquired is noted, whatever is raised in between.",
        ("tests/storage/test_interrupts.py::test_a_lock_is_held_and_noted_in_one_step",),
    ),
    Mutation(
        "oids-not-noted", "storage/committer.py",
        "                self._oids.note(ticket.oids)\n",
        "",
        "An oid that came from elsewhere is not given to a new object.",
        (f"{_MEMORY}::test_copy",),
    ),
    Mutation(
        "oids-of-others", "storage/oids.py",
        "                self._last = max(self._last, until - wanted)\n",
        "                self._last = max(self._last, until - 2 * wanted)\n",
        "Two processes give no oid to two objects.",
        ("tests/storage/test_sqlite.py::test_oids_of_two_processes",),
    ),
    # Conflicts
    Mutation(
        "reads-not-checked", "storage/storage.py",
        "        if writes.reads or writes.unchanged_since is not None:\n",
        "        if writes.unchanged_since is not None:\n",
        "A vote fails when something that had to be current is not.",
        (f"{_MEMORY}::test_script[versions: reads are checked as seen]",),
    ),
    Mutation(
        "deletion-wins", "storage/conflicts.py",
        "    if serials[0] == NO_TID or ours is None:  # deleted on either side\n",
        "    if serials[0] == NO_TID:  # deleted on either side\n",
        "Deleting an object that another has changed is a conflict.",
        (f"{_MEMORY}::test_deletion_conflict",),
    ),
    Mutation(
        "merge-swapped", "storage/conflicts.py",
        "committed, ours, serials)\n",
        "ours, committed, serials)\n",
        "The class merges what is committed with what is new, in this order.",
        (f"{_MEMORY}::test_script[versions: a conflict in a version]",),
    ),
    Mutation(
        "merge-not-told", "storage/conflicts.py",
        "    writes.resolved.append(oid)\n",
        "",
        "Who commits is told what was merged, and loads it again.",
        (f"{_MEMORY}::test_resolution",),
    ),
    Mutation(
        "any-version-unlocks", "storage/conflicts.py",
        '        if is_checked and writes.versions.get(oid, "") != version:\n',
        "        if is_checked and oid not in writes.versions:\n",
        "An object in a version is not changed in another version.",
        (f"{_MEMORY}::test_script[versions: locked]",),
    ),
    Mutation(
        "reads-beside-versions", "storage/conflicts.py",
        "    return row is not None and row.outside == tid\n",
        "    return row is not None\n",
        "What was read outside a version is checked against what is outside now.",
        (f"{_MEMORY}::test_script[versions: reads before a lock]",),
    ),
    # Versions
    Mutation(
        "commit-to-no-version", "storage/versions.py",
        '    writes.write_results(modified, pointers, destination or "")\n',
        '    writes.write_results(modified, pointers, "")\n',
        "A version that is committed to another one is seen there only.",
        (f"{_MEMORY}::test_script[versions: a version that moved]",),
    ),
    Mutation(
        "new-members-stay", "storage/staging.py",
        "        in_versions.count(version) != len(modified) for",
        "        in_versions.count(version) < len(modified) for",
        "What comes into a version before it is committed is committed with it.",
        ("tests/database/test_versions.py::test_new_members_of_a_version_at_the_vote",),
    ),
    Mutation(
        "outside-is-inside", "storage/staging.py",
        "        outside: Tid | None = before.outside\n",
        "        outside: Tid | None = before.tid\n",
        "Others do not see the first of two changes in a version.",
        (f"{_MEMORY}::test_script[packing: versions]",),
    ),
    # Undo
    Mutation(
        "undo-part", "storage/undo.py",
        """\
        if len(obstacles) == 1:
            raise obstacles[0]
        if obstacles:
""",
        """\
        if len(obstacles) == 1 and not results:
            raise obstacles[0]
        if obstacles and not results:
""",
        "A transaction is undone as a whole, or not at all.",
        (f"{_MEMORY}::test_undo_cannot_merge",),
    ),
    Mutation(
        "undo-over-changes", "storage/staging.py",
        "    if plan.planned_at[1] != packs or engine.current(plan.results) != plan.results:\n",
        "    if plan.planned_at[1] != packs:\n",
        "An undo does not overwrite what was committed since it was asked for.",
        (f"{_MEMORY}::test_script[undo: changed before the vote]",),
    ),
    Mutation(
        "undo-merge-swapped", "storage/undo.py",
        "            return self._merge(oid, undone.data, current, data, (current_tid, tid))\n",
        "            return self._merge(oid, data, current, undone.data, (current_tid, tid))\n",
        "An undo that merges takes the change back, and does not make it twice.",
        (f"{_MEMORY}::test_script[undo: an earlier change in a version]",),
    ),
    Mutation(
        "undo-of-packed", "storage/undo.py",
        '        elif found.status == "p":\n',
        '        elif found.status == "p" and not found.oids:\n',
        "A transaction that was packed is not undone.",
        (f"{_MEMORY}::test_script[packing: packed transactions are not undone]",),
    ),
    # History
    Mutation(
        "gap-shows-older", "storage/history.py",
        "        if following is not None and following.follows_gap:\n            return None\n",
        "",
        "A moment that was packed away shows nothing rather than something older.",
        (f"{_MEMORY}::test_script[packing: versions]",),
    ),
    Mutation(
        "history-one-more", "storage/history.py",
        "        while row is not None and len(entries) < size:\n",
        "        while row is not None and len(entries) <= size:\n",
        "A history has as many entries as were asked for.",
        (f"{_MEMORY}::test_history",),
    ),
    Mutation(
        "undo-log-skips-one", "storage/history.py",
        "        if position >= wanted.skip:\n",
        "        if position > wanted.skip:\n",
        "The undo log begins with the entry that was asked for.",
        (f"{_MEMORY}::test_undo_log",),
    ),
    Mutation(
        "iterator-sees-pack", "storage/history.py",
        "        return self._rows.get((oid, tid), found)\n",
        "        return found\n",
        "An iterator goes on showing what a pack removes meanwhile.",
        (f"{_MEMORY}::test_an_iterator_goes_on",),
    ),
    # Packs, row by row
    Mutation(
        "pack-leaves-last", "storage/row_packing.py",
        "        upto = [entry for entry in chain if entry[0] <= self._pack_to]\n",
        "        upto = [entry for entry in chain if entry[0] < self._pack_to]\n",
        "A pack to a transaction forgets what that one replaced.",
        (f"{_MEMORY}::test_script[packing: to a moment]",),
    ),
    Mutation(
        "pack-drops-linked", "storage/row_packing.py",
        "        with self._amender.alone():\n            self._mark_later()\n",
        "        with self._amender.alone():\n",
        "An object that is linked again while a pack runs stays.",
        (f"{_MEMORY}::test_linked_again_meanwhile",),
    ),
    Mutation(
        "pack-not-counted", "storage/row_packing.py",
        "            self._amender.count += 1\n",
        "",
        "An undo that was asked for before a pack is planned again after it.",
        (f"{_MEMORY}::test_script[packing: undone before the vote]",),
    ),
    Mutation(
        "pack-not-noted", "storage/row_packing.py",
        "            self._amender.note_packed(self._pack_to)\n",
        "            pass\n",
        "A view that a pack has taken something from is told so.",
        (f"{_MEMORY}::test_script[packing: to a moment]",),
    ),
    Mutation(
        "prune-under-readers", "storage/amending.py",
        "        horizon = min(horizon, db.oldest_view())\n",
        "        horizon = max(horizon, db.oldest_view())\n",
        "Without history, revisions stay while a connection sees them.",
        ("tests/storage/test_without_history.py::test_what_is_read_stays",),
    ),
)
