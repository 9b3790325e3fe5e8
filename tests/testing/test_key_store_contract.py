"""The suite for key stores bites: each broken key store fails the test that is there for it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from uuid import uuid4

import pytest
from _pytest.outcomes import Failed

from eventseal.errors import EventSealError
from eventseal.keys import ChangeMark, InMemoryKeyStore, KeyPurpose, KeyState, KeyStore
from eventseal.testing.key_store_contract import KeyStoreContract
from eventseal.testing.key_store_contract.records import GivenMark, RefusedMarkError, make_record


class ForgetsTheSlot(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, **options):
        with self._lock:
            for record in records:
                self._slots.pop((record.application, record.purpose, record.scope), None)
        return super().add_active(records, mark=mark, **options)


class GivesTheLoserItsOwn(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, **options):
        super().add_active(records, mark=mark, **options)
        return {record.scope: record for record in records}


class FoldsCase(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, **options):
        folded = [
            replace(record, scope=record.scope.casefold(), active_scope=record.scope.casefold())
            for record in records
        ]
        kept = super().add_active(folded, mark=mark, **options)
        return {record.scope: kept[record.scope.casefold()] for record in records}

    def active(self, application, scopes, *, purpose=KeyPurpose.DATA):
        kept = super().active(application, [scope.casefold() for scope in scopes], purpose=purpose)
        return {scope: kept[scope.casefold()] for scope in scopes if scope.casefold() in kept}


class MixesPurposes(InMemoryKeyStore):
    def active(self, application, scopes, *, purpose=KeyPurpose.DATA):
        return super().active(application, scopes)


class IgnoresVersions(InMemoryKeyStore):
    def _follows(self, record):
        return record.key_id in self._records


class ReplacesOneByOne(InMemoryKeyStore):
    def replace_all_active(self, replacements, *, next_mark, wait=True):
        holders = {}
        for each in replacements:
            holders |= super().replace_all_active([each], next_mark=next_mark)
        return holders


class ForgetsLeases(InMemoryKeyStore):
    def _move(self, record, mark):
        super()._move(record, mark)
        self._records[record.key_id] = replace(
            self._records[record.key_id], items_reserved=record.items_reserved
        )


class KeepsWrappings(InMemoryKeyStore):
    def _move(self, record, mark):
        wrappings = self._records[record.key_id].wrappings
        super()._move(record, mark)
        self._records[record.key_id] = replace(self._records[record.key_id], wrappings=wrappings)


class FreesTheSlot(InMemoryKeyStore):
    def _move(self, record, mark):
        super()._move(record, mark)
        if record.state is KeyState.DESTROYED:
            self._slots.pop((record.application, record.purpose, record.scope), None)


class MarksLater(InMemoryKeyStore):
    def set_states(self, records, *, next_mark, **options):
        moved = super().set_states(records, next_mark=GivenMark(), **options)
        if moved:
            next_mark(self._marks[moved[0].application], {})
        return moved


class LeasesAnything(InMemoryKeyStore):
    def reserve(self, items, *, limit=2**32):
        return super().reserve(dict(items.items()), limit=2**40)


class LeasesClosedKeys(InMemoryKeyStore):
    def reserve(self, items, *, limit=2**32):
        return {
            key_id: self._records[key_id].items_reserved + count
            for key_id, count in items.items()
            if key_id in self._records
        } | super().reserve(items, limit=limit)


class GivesNoRoot(InMemoryKeyStore):
    def changes(self, application, since, key_ids):
        changes = super().changes(application, since, key_ids)
        return changes if changes is None else replace(changes, root=b"")


class GivesTheRootEveryTime(InMemoryKeyStore):
    def changes(self, application, since, key_ids):
        changes = super().changes(application, since, key_ids)
        return (
            changes if changes is None else replace(changes, root=self._nodes.get((application, b""), b"-"))
        )


class HasNodesOfNobody(InMemoryKeyStore):
    def revocations(self, application, paths):
        return super().revocations(application, paths) or (None, {})


class GivesEveryNode(InMemoryKeyStore):
    def _nodes_at(self, application, paths):
        every = [path for (owner, path) in self._nodes if owner == application]
        return super()._nodes_at(application, every)


class GivesAbsentNodesEmpty(InMemoryKeyStore):
    def _nodes_at(self, application, paths):
        return {path: self._nodes.get((application, path), b"") for path in paths}


class ChangesInTheDark(InMemoryKeyStore):
    def _next(self, application, next_mark):
        mark, changed = next_mark(self._marks[application], {})
        self._marks[application] = mark
        self._nodes.update({(application, path): content for path, content in changed.items()})
        return mark


class ForgetsTheOtherNodes(InMemoryKeyStore):
    def _next(self, application, next_mark):
        before = dict(self._nodes)
        mark = super()._next(application, next_mark)
        self._nodes = {at: node for at, node in self._nodes.items() if before.get(at) != node}
        return mark


class AdvancesTheMarkAlone(InMemoryKeyStore):
    def advance(self, application, *, next_mark):
        nodes = dict(self._nodes)
        super().advance(application, next_mark=next_mark)
        self._nodes = nodes


class AdvancesFirst(InMemoryKeyStore):
    def advance(self, application, *, next_mark):
        super().advance(application, next_mark=GivenMark())
        super().advance(application, next_mark=next_mark)


class RotatesWithoutNodes(InMemoryKeyStore):
    def replace_all_active(self, replacements, *, next_mark, wait=True):
        nodes = dict(self._nodes)
        holders = super().replace_all_active(replacements, next_mark=next_mark)
        self._nodes = nodes
        return holders


class SharesNodes(InMemoryKeyStore):
    def revocations(self, application, paths):
        mark, _ = super().revocations(application, ()) or (None, {})
        found = {path: node for (_, path), node in self._nodes.items() if path in paths}
        return mark, found


class MakesKeysAsOfAnyTime(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, **options):
        return super().add_active(records, mark=mark)


class KeepsWhatItTookBack(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, admit=None):
        kept = super().add_active(records, mark=mark, admit=admit)
        if not kept:
            super().add_active(records, mark=mark)
        return kept


class ListsErasedForEverybody(InMemoryKeyStore):
    def find_erased(self, application, digests):
        return {digest for (_, digest) in self._erased if digest in digests}


class ListsOnlyTheLastErased(InMemoryKeyStore):
    def list_erased(self, application, digests):
        self._erased.clear()
        super().list_erased(application, digests)


class FindsEverythingErased(InMemoryKeyStore):
    def find_erased(self, application, digests):
        return set(digests) if super().find_erased(application, digests) else set()


class IgnoresWhatIsLeftOut(InMemoryKeyStore):
    def set_states(self, records, *, next_mark, left_out=(), **options):
        return super().set_states(records, next_mark=next_mark, **options)


class ShowsWrappingsInChanges(InMemoryKeyStore):
    def changes(self, application, since, key_ids):
        changes = super().changes(application, since, key_ids)
        if changes is None:
            return None
        return replace(changes, records=tuple(self._records[record.key_id] for record in changes.records))


class CountsNewKeys(InMemoryKeyStore):
    def _insert(self, record):
        super()._insert(record)
        mark = self._marks.get(record.application)
        if mark is not None:
            self._marks[record.application] = replace(mark, counter=mark.counter + 1)


class PagesInAnyOrder(InMemoryKeyStore):
    def page(self, application, *, after=None, limit=1000, state=None):
        return super().page(application, after=after, limit=limit, state=state)[::-1]


class IgnoresWholeScope(InMemoryKeyStore):
    def set_states(self, records, *, next_mark, whole_scope=None, **options):
        return super().set_states(records, next_mark=next_mark, **options)


class StopsAtOneStatement(InMemoryKeyStore):
    def get(self, key_ids):
        return super().get(list(key_ids)[:32_000])


class LocalTime(InMemoryKeyStore):
    def now(self):
        return super().now().replace(tzinfo=None)


class ReplacesTheFirstMark(InMemoryKeyStore):
    def add_active(self, records, *, mark=None, **options):
        kept = super().add_active(records, mark=mark, **options)
        if mark is not None:
            self._marks[mark.application] = mark
        return kept


class ReplacesWrappings(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        for key_id in add.keys() & self._records.keys():
            self._records[key_id] = replace(self._records[key_id], wrappings=())
        return super().put_wrappings(add, **options)


class OverwritesWrappings(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        for key_id, new in add.items():
            kept = [old for old in self._records[key_id].wrappings if old.kek_uri != new.kek_uri]
            self._records[key_id] = replace(self._records[key_id], wrappings=tuple(kept))
        return super().put_wrappings(add, **options)


class WrapsTheDestroyed(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        for key_id, new in add.items():
            self._records[key_id] = replace(self._records[key_id], wrappings=(new,))
        return set(add)


class CountsWrappings(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        for application, mark in self._marks.items():
            self._marks[application] = replace(mark, counter=mark.counter + 1)
        return super().put_wrappings(add, **options)


class SaysItAddedAll(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        super().put_wrappings(add, **options)
        return set(add)


class NeverVerifies(InMemoryKeyStore):
    def mark_wrappings_verified(self, opened, **options):
        pass


class VerifiesByName(InMemoryKeyStore):
    def mark_wrappings_verified(self, opened, **options):
        for key_id in opened.keys() & self._records.keys():
            for wrapped in self._records[key_id].wrappings:
                if wrapped.kek_uri == opened[key_id].kek_uri:
                    super().mark_wrappings_verified({key_id: wrapped})


class VerifiesWhatIsAdded(InMemoryKeyStore):
    def put_wrappings(self, add, *, verified=False):
        held = super().put_wrappings(add, verified=verified)
        self.mark_wrappings_verified({key_id: add[key_id] for key_id in held})
        return held


class KeepsTheUnverified(InMemoryKeyStore):
    def put_wrappings(self, add, *, verified=False):
        held = super().put_wrappings(add)
        if verified:
            self.mark_wrappings_verified({key_id: add[key_id] for key_id in held})
        return held


class AddsAtTheEnd(InMemoryKeyStore):
    def put_wrappings(self, add, **options):
        held = super().put_wrappings(add, **options)
        for key_id in held:
            wrappings = self._records[key_id].wrappings
            self._records[key_id] = replace(self._records[key_id], wrappings=wrappings[::-1])
        return held


class DropsWithoutALook(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        there = {key_id: self._records[key_id].wrappings[-1] for key_id in drop}
        return super().drop_wrappings(drop, keep=there)


class DropsOnlyForTheVerified(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        verified = {k: gone for k, gone in drop.items() if keep[k] in self._records[k].verified}
        return super().drop_wrappings(verified, keep=keep)


class DropsForTheSakeOfAny(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        any_verified = {key_id: next(iter(self._records[key_id].verified), keep[key_id]) for key_id in drop}
        return super().drop_wrappings(drop, keep=any_verified)


class DropsTheRest(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        rest = {k: [w for w in self._records[k].wrappings if w != keep[k]] for k in drop}
        return super().drop_wrappings(rest, keep=keep)


class DropsByName(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        named = {
            k: [w for w in self._records[k].wrappings if w.kek_uri in {d.kek_uri for d in drop[k]}]
            for k in drop
        }
        return super().drop_wrappings(named, keep=keep)


class DropsEverything(InMemoryKeyStore):
    def drop_wrappings(self, drop, *, keep):
        better = super().drop_wrappings(drop, keep=keep)
        for key_id in better:
            left = tuple(w for w in self._records[key_id].wrappings if w not in drop[key_id])
            self._records[key_id] = replace(self._records[key_id], wrappings=left)
        return better


class CountsEverybodysKeys(InMemoryKeyStore):
    def count_wrapped_keys(self, application):
        return sum(super(CountsEverybodysKeys, self).count_wrapped_keys(name) for name in self._marks)


class CountsTombstones(InMemoryKeyStore):
    def count_wrapped_keys(self, application):
        return sum(record.application == application for record in self._records.values())


class EndsNeededBranches(InMemoryKeyStore):
    def _wraps_others(self, record):
        return False


class StoresUnderDestroyedBranches(InMemoryKeyStore):
    def _hold_branches(self, wrappings):
        pass


class CountsBranchesIntoScopes(InMemoryKeyStore):
    def _is_left_out(self, record, whole_scope, application, given):
        return (
            (record.application, record.scope) == (application, whole_scope)
            and record.state is not KeyState.DESTROYED
            and record.key_id not in given
        )


class ForgetsTombstones(InMemoryKeyStore):
    def set_states(self, records, *, next_mark, tombstones=(), **options):
        return super().set_states(records, next_mark=next_mark, **options)


class GivesOnlyDataKeysOfScope(InMemoryKeyStore):
    def of_scope(self, application, scope):
        return [r for r in super().of_scope(application, scope) if r.purpose is KeyPurpose.DATA]


BROKEN = [
    (ForgetsTheSlot, "test_who_comes_second_gets_the_winner_whole"),
    (GivesTheLoserItsOwn, "test_who_comes_second_gets_the_winner_whole"),
    (FoldsCase, "test_scopes_are_compared_byte_for_byte"),
    (MixesPurposes, "test_purposes_have_slots_of_their_own"),
    (IgnoresVersions, "test_states_move_all_or_none"),
    (ForgetsLeases, "test_replacing_together_keeps_what_was_leased_meanwhile"),
    (ReplacesOneByOne, "test_keys_of_many_scopes_are_replaced_together"),
    (ReplacesOneByOne, "test_many_keys_are_replaced_all_or_none"),
    (KeepsWrappings, "test_destroying_deletes_the_wrappings_and_keeps_the_row"),
    (FreesTheSlot, "test_a_tombstone_that_keeps_its_slot_closes_the_scope"),
    (MarksLater, "test_a_refused_mark_undoes_a_change_of_states"),
    (LeasesAnything, "test_a_lease_past_the_limit_is_refused_and_takes_nothing"),
    (LeasesAnything, "test_the_hard_limit_is_the_last_item"),
    (LeasesClosedKeys, "test_only_active_keys_are_leased"),
    (GivesNoRoot, "test_a_change_gives_the_root_of_the_revocation_tree"),
    (GivesTheRootEveryTime, "test_a_change_gives_the_root_of_the_revocation_tree"),
    (GivesTheRootEveryTime, "test_without_a_change_only_the_mark_is_read"),
    (HasNodesOfNobody, "test_an_application_without_a_store_key_has_no_nodes"),
    (GivesEveryNode, "test_nodes_are_stored_with_the_mark_and_given_by_path"),
    (GivesAbsentNodesEmpty, "test_nodes_are_stored_with_the_mark_and_given_by_path"),
    (AdvancesTheMarkAlone, "test_nodes_are_stored_with_the_mark_and_given_by_path"),
    (ChangesInTheDark, "test_a_change_is_given_the_nodes_that_it_asks_for_and_replaces_them"),
    (ForgetsTheOtherNodes, "test_a_change_is_given_the_nodes_that_it_asks_for_and_replaces_them"),
    (RotatesWithoutNodes, "test_a_rotation_stores_nodes_too"),
    (AdvancesFirst, "test_a_mark_that_is_refused_stores_nothing"),
    (SharesNodes, "test_nodes_of_another_application_are_its_own"),
    (MakesKeysAsOfAnyTime, "test_else_it_is_asked_with_the_mark_and_the_nodes_as_they_are_now"),
    (ListsErasedForEverybody, "test_erased_items_are_listed_once_and_by_application"),
    (ListsOnlyTheLastErased, "test_erased_items_are_listed_once_and_by_application"),
    (FindsEverythingErased, "test_erased_items_are_listed_once_and_by_application"),
    (IgnoresWhatIsLeftOut, "test_a_live_key_may_be_left_out_by_name"),
    (KeepsWhatItTookBack, "test_else_it_is_asked_with_the_mark_and_the_nodes_as_they_are_now"),
    (EndsNeededBranches, "test_a_branch_key_that_is_needed_is_not_destroyed"),
    (StoresUnderDestroyedBranches, "test_nothing_is_stored_that_a_destroyed_branch_key_has_wrapped"),
    (CountsBranchesIntoScopes, "test_keys_that_seal_nothing_of_a_scope_are_none_of_it"),
    (ForgetsTombstones, "test_tombstones_come_with_the_states"),
    (GivesOnlyDataKeysOfScope, "test_a_scope_gives_all_its_keys_and_tombstones"),
    (ShowsWrappingsInChanges, "test_a_change_gives_the_asked_for_keys_that_moved_without_wrappings"),
    (CountsNewKeys, "test_making_a_key_leaves_the_counter"),
    (PagesInAnyOrder, "test_pages_come_in_order_of_id"),
    (IgnoresWholeScope, "test_a_whole_scope_moves_only_if_no_live_key_is_left_out"),
    (StopsAtOneStatement, "test_more_ids_and_scopes_than_a_statement_takes_are_asked_for"),
    (LocalTime, "test_the_clock_is_in_utc_and_goes_on"),
    (ReplacesTheFirstMark, "test_the_first_mark_comes_with_the_store_key"),
    (ReplacesWrappings, "test_an_added_wrapping_stands_beside_the_others"),
    (OverwritesWrappings, "test_a_wrapping_of_the_same_kek_and_version_stays"),
    (OverwritesWrappings, "test_versions_of_a_kek_have_wrappings_of_their_own"),
    (WrapsTheDestroyed, "test_a_destroyed_key_gets_no_wrapping"),
    (CountsWrappings, "test_adding_wrappings_is_no_change_of_state"),
    (SaysItAddedAll, "test_keys_that_are_not_there_get_no_wrapping"),
    (NeverVerifies, "test_a_verified_wrapping_is_told_from_the_others_wherever_the_key_is_read"),
    (VerifiesByName, "test_only_these_very_bytes_are_marked"),
    (VerifiesWhatIsAdded, "test_a_wrapping_may_come_verified"),
    (KeepsTheUnverified, "test_a_verified_wrapping_takes_the_place_of_one_that_nobody_verified"),
    (AddsAtTheEnd, "test_the_newest_wrapping_comes_first"),
    (DropsWithoutALook, "test_a_key_keeps_everything_if_the_better_wrapping_is_gone_or_another_by_now"),
    (DropsOnlyForTheVerified, "test_whether_anybody_noted_that_the_better_one_was_verified_does_not_matter"),
    (DropsForTheSakeOfAny, "test_another_verified_wrapping_does_not_stand_in_for_the_better_one"),
    (DropsForTheSakeOfAny, "test_a_key_keeps_everything_if_the_better_wrapping_is_gone_or_another_by_now"),
    (DropsTheRest, "test_only_what_is_named_goes"),
    (DropsByName, "test_a_wrapping_that_was_replaced_meanwhile_stays"),
    (DropsEverything, "test_the_better_wrapping_never_goes"),
    (CountsEverybodysKeys, "test_keys_that_have_a_wrapping_are_counted"),
    (CountsTombstones, "test_keys_that_have_a_wrapping_are_counted"),
]


def with_store_key(store: KeyStore) -> str:
    name = f"contract-{uuid4().hex[:12]}"
    mark = ChangeMark(application=name, counter=0, revoked=bytes(32), seal=bytes(32))
    store.add_active([make_record(name, "store", purpose=KeyPurpose.STORE)], mark=mark)
    return name


def run(broken: type[KeyStore], test: str) -> None:
    store = broken()
    method = getattr(KeyStoreContract(), test)
    given = {"store": store, "other_store": store, "scopes": ("tenant:a", "tenant:A"), "admits": False}
    wanted = inspect.signature(method).parameters
    if "application" in wanted:
        given["application"] = with_store_key(store)
    method(**{name: given[name] for name in wanted})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "test"), BROKEN, ids=[f"{broken.__name__}-{test[5:45]}" for broken, test in BROKEN]
)
def test_a_broken_key_store_is_caught(broken: type[KeyStore], test: str) -> None:
    run(InMemoryKeyStore, test)
    with pytest.raises((AssertionError, Failed, EventSealError, RefusedMarkError, TypeError, KeyError)):
        run(broken, test)
