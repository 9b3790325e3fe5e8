"""The nodes of the revocation tree, and the mark that goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from eventseal.keys.states import KeyState
from eventseal.testing.key_store_contract.fixtures import KeyStoreFixtures
from eventseal.testing.key_store_contract.records import (
    GivenAdmission,
    GivenMark,
    RefusedMarkError,
    make_record,
    moved,
    refuse_mark,
    the_changes,
)

if TYPE_CHECKING:
    from eventseal.keys.store import KeyStore

_NODES = {b"": b"root", b"\x00": b"\x00node", b"\x00\xff": b"a leaf"}


class RevocationsContract(KeyStoreFixtures):
    """The nodes of the revocation tree, and the mark that goes with them."""

    def test_an_application_without_a_store_key_has_no_nodes(self, store: KeyStore) -> None:
        assert store.revocations(f"contract-{uuid4().hex}", [b""]) is None

    def test_nodes_are_stored_with_the_mark_and_given_by_path(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        first = GivenMark(_NODES)
        store.advance(application, next_mark=first)
        assert other_store.revocations(application, [b"", b"\x00\xff", b"\x01"]) == (
            first.given,
            {b"": b"root", b"\x00\xff": b"a leaf"},
        )
        assert the_changes(other_store, application, 0).mark.counter == 1

    def test_a_change_is_given_the_nodes_that_it_asks_for_and_replaces_them(
        self, store: KeyStore, application: str
    ) -> None:
        store.advance(application, next_mark=GivenMark(_NODES))
        second = GivenMark({b"\x00": b"another"}, paths=[b"", b"\x00", b"\x07"])
        record = store.add_active([make_record(application, "a")])["a"]
        store.set_states([moved(record, KeyState.DEACTIVATED)], next_mark=second)
        assert second.found == {b"": b"root", b"\x00": b"\x00node"}
        assert store.revocations(application, _NODES) == (second.given, {**_NODES, b"\x00": b"another"})

    def test_a_rotation_stores_nodes_too(self, store: KeyStore, application: str) -> None:
        old = store.add_active([make_record(application, "a")])["a"]
        rooted = GivenMark({b"": b"root"})
        closed = moved(old, KeyState.COMPROMISED)
        store.replace_active(old, closed, make_record(application, "a"), next_mark=rooted)
        assert store.revocations(application, [b""]) == (rooted.given, {b"": b"root"})

    def test_a_mark_that_is_refused_stores_nothing(self, store: KeyStore, application: str) -> None:
        with pytest.raises(RefusedMarkError):
            store.advance(application, next_mark=refuse_mark)
        assert the_changes(store, application, -1).mark.counter == 0

    def test_nodes_of_another_application_are_its_own(self, store: KeyStore, application: str) -> None:
        store.advance(application, next_mark=GivenMark(_NODES))
        found = store.revocations(f"{application}-other", list(_NODES))
        assert found is None or found[1] == {}

    def test_erased_items_are_listed_once_and_by_application(
        self, store: KeyStore, other_store: KeyStore, application: str
    ) -> None:
        first, second, third = (bytes([number]) * 32 for number in range(3))
        store.list_erased(application, [first, second])
        other_store.list_erased(application, [second, second])
        assert other_store.find_erased(application, [first, second, third]) == {first, second}
        assert store.find_erased(f"{application}-other", [first]) == set()
        assert store.find_erased(application, []) == set()

    def test_keys_are_admitted_without_a_question_while_nothing_was_revoked(
        self, store: KeyStore, application: str
    ) -> None:
        admission = GivenAdmission(the_changes(store, application, -1).mark.revoked, admits=False)
        assert store.add_active([make_record(application, "a")], admit=admission)["a"].scope == "a"
        assert admission.asked is None

    @pytest.mark.parametrize("admits", [True, False])
    def test_else_it_is_asked_with_the_mark_and_the_nodes_as_they_are_now(
        self, store: KeyStore, other_store: KeyStore, application: str, admits: bool
    ) -> None:
        admission = GivenAdmission(
            the_changes(store, application, -1).mark.revoked, admits=admits, paths=[b"", b"\x07"]
        )
        following = GivenMark(_NODES)
        other_store.advance(application, next_mark=following)
        late = make_record(application, "b")
        kept = store.add_active([late], admit=admission)
        assert admission.asked == (following.given, {b"": b"root"})
        assert list(kept) == (["b"] if admits else [])
        assert list(store.get([late.key_id])) == ([late.key_id] if admits else [])
        assert list(store.active(application, ["b"])) == (["b"] if admits else [])
