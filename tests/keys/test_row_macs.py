"""Bindings, row seals and change marks: the formulas, and that nothing sealed can be edited."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.key_marks import mark_of

from eventseal.errors import IntegrityError, StoreReadOnlyError
from eventseal.keys import ChangeMark, DataKey, KeyPurpose, KeyRecord, KeyState
from eventseal.keys.authentication.row_macs import Seals
from eventseal.keys.data_key import binding_of, is_bound

KEY = bytes(range(32))
KEY_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-512, from the RFC's text."""
    pseudorandom = hmac.new(salt, key, hashlib.sha512).digest()
    output, block = b"", b""
    for number in range(1, -(-length // 64) + 1):
        block = hmac.new(pseudorandom, block + info + bytes([number]), hashlib.sha512).digest()
        output += block
    return output[:length]


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def handle(key: bytes = KEY, **changes) -> DataKey:
    given = {
        "key_id": KEY_ID,
        "application": "shop",
        "scope": "store",
        "purpose": KeyPurpose.STORE,
        "state": KeyState.ACTIVE,
    }
    return DataKey(key, **(given | changes))


def record(**changes) -> KeyRecord:
    row = KeyRecord(
        key_id=uuid4(),
        application="shop",
        scope="tenant:acme",
        active_scope="tenant:acme",
        purpose=KeyPurpose.DATA,
        state=KeyState.ACTIVE,
        binding=os.urandom(32),
        seal=b"",
    )
    return replace(row, **changes)


def test_the_binding_is_the_documented_formula() -> None:
    info = b"eventseal/v1/binding" + framed(
        b"shop", b"data", "tenant:\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode()
    )
    key = handle(scope="tenant:\N{LATIN SMALL LETTER U WITH DIAERESIS}", purpose=KeyPurpose.DATA)
    assert binding_of(key) == hkdf(KEY, KEY_ID.bytes, info, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"\1" * 32},
        {"key_id": uuid4()},
        {"application": "shop2"},
        {"scope": "stor"},
        {"purpose": KeyPurpose.DATA},
        {"application": "shops", "scope": "tore"},
    ],
)
def test_a_binding_fits_no_other_key_id_application_purpose_or_scope(changes) -> None:
    row = record(binding=binding_of(handle()))
    assert is_bound(handle(), row)
    assert not is_bound(handle(**changes), row)


@pytest.mark.parametrize(
    ("row", "active_scope", "destroyed_by"),
    [
        (record(), b"tenant:acme", b""),
        (record(state=KeyState.DEACTIVATED, active_scope=None, row_version=2), b"", b""),
        (
            record(state=KeyState.DESTROYED, destroyed_by="shredded", row_version=7),
            b"tenant:acme",
            b"shredded",
        ),
    ],
)
def test_the_row_seal_is_the_documented_formula(
    row: KeyRecord, active_scope: bytes, destroyed_by: bytes
) -> None:
    sealed = framed(
        row.key_id.bytes,
        b"shop",
        b"data",
        b"tenant:acme",
        active_scope,
        row.state.encode(),
        destroyed_by,
        row.row_version.to_bytes(8, "big"),
        row.binding,
    )
    key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v1/row seal", 64)
    assert Seals(handle()).sealed(row).seal == hmac.digest(key, sealed, "sha512")[:32]


names = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=12)
sealed_fields = st.fixed_dictionaries(
    {},
    optional={
        "key_id": st.uuids(),
        "application": names,
        "scope": names,
        "active_scope": st.none() | names,
        "purpose": st.sampled_from(KeyPurpose),
        "state": st.sampled_from(KeyState),
        "destroyed_by": st.sampled_from([None, "retired", "shredded"]),
        "row_version": st.integers(-(2**63), 2**63 - 1),
        "binding": st.binary(min_size=0, max_size=40),
        "seal": st.binary(min_size=0, max_size=40),
    },
)


@given(edits=sealed_fields)
def test_any_edit_of_a_sealed_field_is_caught(edits) -> None:
    seals = Seals(handle())
    row = seals.sealed(record(key_id=KEY_ID, binding=bytes(32)))
    edited = replace(row, **edits)
    if edited == row:
        seals.check(edited)
    else:
        with pytest.raises(IntegrityError):
            seals.check(edited)


def test_what_moves_without_the_state_is_not_sealed() -> None:
    seals = Seals(handle())
    seals.check(replace(seals.sealed(record()), items_reserved=5, wrappings=()))


def test_a_seal_of_another_store_key_is_refused() -> None:
    row = Seals(handle()).sealed(record())
    for other in (handle(b"\1" * 32), handle(key_id=uuid4())):
        with pytest.raises(IntegrityError):
            Seals(other).check(row)


def test_the_change_mark_is_the_documented_formula() -> None:
    seals = Seals(handle())
    mark = seals.next_mark(seals.next_mark(seals.first_mark(), b"the root"))
    assert mark.revoked == hashlib.sha256(b"the root").digest()
    assert mark.counter == 2
    mark_key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v2/change mark", 64)
    sealed = framed(b"shop", (2).to_bytes(8, "big"), mark.revoked)
    assert mark.seal == hmac.digest(mark_key, sealed, "sha512")[:32]
    seals.check_mark(mark)


def test_the_seal_of_an_epoch_is_over_the_application_and_every_part() -> None:
    seals = Seals(handle())
    epoch_key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v1/epoch", 64)
    seal = seals.epoch_seal(b"one", b"", b"two")
    assert seal == hmac.digest(epoch_key, framed(b"shop", b"one", b"", b"two"), "sha512")[:32]
    assert seals.fits_epoch(seal, b"one", b"", b"two")
    for parts in ([b"one", b"two"], [b"one", b"two", b""], [b"onetwo"], [b"one", b"", b"two", b""]):
        assert not seals.fits_epoch(seal, *parts)


def test_the_first_mark_covers_an_empty_tree() -> None:
    seals = Seals(handle())
    mark = seals.first_mark()
    assert (mark.application, mark.counter, mark.revoked) == ("shop", 0, hashlib.sha256().digest())


def test_scopes_have_the_documented_names() -> None:
    seals = Seals(handle())
    tree_key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v2/revocation tree", 64)
    named = hmac.digest(tree_key, framed(b"scope", b"field", b"subject:7"), "sha256")[:10]
    assert seals.scope_name(KeyPurpose.FIELD, "subject:7") == named


@pytest.mark.parametrize(
    "edit",
    [{"application": "shop2"}, {"counter": 5}, {"counter": -1}, {"revoked": b"\1" * 32}, {"seal": bytes(32)}],
)
def test_an_edited_mark_is_refused_and_never_followed(edit) -> None:
    seals = Seals(handle())
    mark = seals.next_mark(seals.first_mark())
    edited: ChangeMark = replace(mark, **edit)
    with pytest.raises(IntegrityError):
        seals.check_mark(edited)
    with pytest.raises(IntegrityError):
        mark_of(seals)(edited, {})


# --- marks of an earlier release ---


def old_mark(revoked: bytes, counter: int = 2) -> ChangeMark:
    """Make a mark by the formula of the release before the revocation tree."""
    mark_key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v1/change mark", 64)
    sealed = framed(b"shop", counter.to_bytes(8, "big"), revoked)
    seal = hmac.digest(mark_key, sealed, "sha512")[:32]
    return ChangeMark(application="shop", counter=counter, revoked=revoked, seal=seal)


def test_an_old_mark_is_known_for_what_it_counts_and_is_never_followed() -> None:
    seals, one, two = Seals(handle()), uuid4(), uuid4()
    set_key = hkdf(KEY, KEY_ID.bytes, b"eventseal/v1/revoked", 64)
    counted = (one.bytes, two.bytes + b"shredded")
    total = sum(int.from_bytes(hmac.digest(set_key, each, "sha512"), "big") for each in counted) % 2**512
    mark = old_mark(total.to_bytes(64, "big"))
    assert seals.is_old(mark)
    assert not seals.is_old(replace(mark, counter=3))
    assert not seals.is_old(seals.first_mark())
    assert seals.counts_old(mark, [(two, "shredded"), (one, "compromised")])
    assert not seals.counts_old(mark, [(one, "compromised")])
    assert not seals.counts_old(mark, [(one, "compromised"), (two, "compromised")])
    with pytest.raises(IntegrityError):
        seals.check_mark(mark)
    with pytest.raises(StoreReadOnlyError) as caught:
        mark_of(seals)(mark, {})
    assert "eventseal upgrade" in caught.value.remedy


def test_seals_show_and_travel_nothing() -> None:
    seals = Seals(handle())
    assert str(KEY_ID) in repr(seals)
    with pytest.raises(TypeError):
        pickle.dumps(seals)
