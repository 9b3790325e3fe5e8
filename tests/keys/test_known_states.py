"""No key goes back to a state that it has left, as far as the process saw."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventseal.errors import IntegrityError
from eventseal.keys import KeyPurpose, KeyRecord, KeyState
from eventseal.keys.records import new_record
from eventseal.keys.ring import held_keys as module
from eventseal.keys.ring.held_keys import KnownStates

RECORD = new_record("shop", "a", KeyPurpose.DATA, leased=0)


def in_state(state: KeyState, version: int) -> KeyRecord:
    return replace(RECORD, state=state, row_version=version)


@pytest.mark.parametrize(("seen", "now"), list(itertools.product(KeyState, KeyState)))
def test_a_key_moves_on_and_never_back(seen: KeyState, now: KeyState) -> None:
    known = KnownStates()
    known.note(in_state(seen, 2))
    if list(KeyState).index(now) >= list(KeyState).index(seen):
        assert known.admit(in_state(now, 2), known.moment())
    else:
        with pytest.raises(IntegrityError) as caught:
            known.admit(in_state(now, 2), known.moment())
        assert caught.value.key_id == RECORD.key_id


def test_an_earlier_version_of_the_same_state_is_refused() -> None:
    known = KnownStates()
    known.note(in_state(KeyState.DESTROYED, 3))
    with pytest.raises(IntegrityError):
        known.admit(in_state(KeyState.DESTROYED, 2), known.moment())
    assert known.admit(in_state(KeyState.DESTROYED, 3), known.moment())
    assert known.admit(in_state(KeyState.DESTROYED, 4), known.moment())


def test_a_row_read_before_the_later_state_was_seen_is_only_stale() -> None:
    known = KnownStates()
    before = known.moment()
    known.note(in_state(KeyState.COMPROMISED, 2))
    assert not known.admit(in_state(KeyState.ACTIVE, 1), before)


def test_admitting_a_row_notes_it() -> None:
    known = KnownStates()
    assert known.admit(in_state(KeyState.DEACTIVATED, 2), known.moment())
    with pytest.raises(IntegrityError):
        known.admit(in_state(KeyState.ACTIVE, 1), known.moment())


def test_what_is_remembered_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(module, "_MOST_SEEN", 3)
    known = KnownStates()
    records = [
        replace(new_record("shop", "a", KeyPurpose.DATA, leased=0), state=KeyState.DEACTIVATED)
        for _ in range(5)
    ]
    for record in records:
        known.note(record)
    assert set(known._seen) == {record.key_id for record in records[2:]}


@given(st.lists(st.tuples(st.sampled_from(KeyState), st.integers(1, 6)), min_size=1, max_size=20))
def test_the_admitted_states_of_a_key_only_rise(rows) -> None:
    known = KnownStates()
    admitted: list[tuple[int, int]] = []
    for state, version in rows:
        try:
            known.admit(in_state(state, version), known.moment())
        except IntegrityError:
            continue
        if state is not KeyState.ACTIVE:
            admitted.append((list(KeyState).index(state), version))
    assert [rank for rank, _ in admitted] == sorted(rank for rank, _ in admitted)
    assert [version for _, version in admitted] == sorted(version for _, version in admitted)
