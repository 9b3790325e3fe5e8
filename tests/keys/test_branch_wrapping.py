"""Keys wrapped under branch keys: the format, and what does not open."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha512
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventseal.errors import ConfigurationError, IntegrityError, KeyNotFoundError
from eventseal.keys import DataKey, KeyPurpose, KeyRecord, KeyState
from eventseal.keys.data_key import binding_of, material_of, random_key
from eventseal.keys.records import new_record
from eventseal.keys.wrapping.branches import (
    MOST_BRANCHES,
    branch_scope,
    branch_scopes,
    branch_uri,
    branch_wrapping,
    checked_branches,
    named_branch,
    unwrap_under,
    wrap_under,
)
from eventseal.kms import WrappedKey
from eventseal.suites.cbc_hmac import A256CBC_HS512, seal_many
from eventseal.suites.hkdf import length_prefixed

VECTORS = Path(__file__).parents[1] / "vectors" / "format" / "wrapped.json"


def branch_key(material: bytes = bytes(32), key_id: UUID | None = None) -> DataKey:
    return DataKey(
        material,
        key_id=key_id or uuid4(),
        application="shop",
        scope="branch:0",
        purpose=KeyPurpose.BRANCH,
        state=KeyState.ACTIVE,
    )


def wrapped_key(branch: DataKey, scope: str = "tenant:a", **changes: object) -> tuple[DataKey, KeyRecord]:
    record = new_record("shop", scope, KeyPurpose.DATA, leased=0)
    key = random_key(record)
    (wrapped,) = wrap_under(branch, [key])
    return key, replace(record, binding=binding_of(key), wrappings=(wrapped,), **changes)


def opened(branch: DataKey, record: KeyRecord) -> object:
    (outcome,) = unwrap_under(branch, [(record, record.wrappings[0])])
    return outcome


def edited(record: KeyRecord, ciphertext: bytes) -> KeyRecord:
    return replace(record, wrappings=(replace(record.wrappings[0], ciphertext=ciphertext),))


def test_the_published_vector_opens_and_ours_has_its_form(monkeypatch) -> None:
    (case,) = json.loads(VECTORS.read_text())["branch"]
    branch = branch_key(bytes.fromhex(case["kek"]), UUID(case["kek_id"]))
    record = KeyRecord(
        key_id=UUID(case["key_id"]),
        application=case["application"],
        scope=case["scope"],
        active_scope=case["scope"],
        purpose=KeyPurpose(case["purpose"]),
        state=KeyState.ACTIVE,
        binding=b"",
        seal=b"",
    )
    monkeypatch.setattr("os.urandom", lambda size: bytes.fromhex(case["key"]))
    key = random_key(record)
    record = replace(record, binding=binding_of(key))
    given = WrappedKey(
        kek_uri=f"branch:{case['kek_id']}", kek_version=None, ciphertext=bytes.fromhex(case["wrapped"])
    )
    (outcome,) = unwrap_under(branch, [(record, given)])
    assert isinstance(outcome, DataKey)
    assert material_of(outcome).hex() == case["key"]
    (ours,) = wrap_under(branch, [key])
    assert (ours.kek_uri, ours.kek_version, len(ours.ciphertext)) == (given.kek_uri, None, 115)
    assert ours.ciphertext[:19] == given.ciphertext[:19]


def test_many_keys_come_back_as_they_were() -> None:
    branch = branch_key()
    pairs = [wrapped_key(branch, f"s:{number}") for number in range(300)]
    outcomes = unwrap_under(branch, [(record, record.wrappings[0]) for _, record in pairs])
    for outcome, (key, record) in zip(outcomes, pairs, strict=True):
        assert isinstance(outcome, DataKey)
        assert material_of(outcome) == material_of(key)
        assert (outcome.key_id, outcome.scope, outcome.purpose) == (record.key_id, record.scope, "data")
    assert len({record.wrappings[0].ciphertext[19:35] for _, record in pairs}) == 300


def test_a_key_is_wrapped_under_a_key_of_its_own_and_never_under_an_items() -> None:
    branch = branch_key()
    key, record = wrapped_key(branch)
    header = record.wrappings[0].ciphertext[:19]
    parts = b"wrapped-key", b"shop", b"data", b"tenant:a", record.key_id.bytes
    (as_item,) = seal_many(branch.pool(A256CBC_HS512), [(material_of(key), header + length_prefixed(*parts))])
    assert isinstance(opened(branch, edited(record, header + as_item)), IntegrityError)
    # The same bytes under the wrapping's own pool open: the pool is what keeps the two apart.
    (as_wrapping,) = seal_many(branch.wrapping_pool(), [(material_of(key), header + length_prefixed(*parts))])
    assert isinstance(opened(branch, edited(record, header + as_wrapping)), DataKey)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 18, 19, 34, 35, 82, 83, 114])
def test_a_changed_byte_does_not_open(offset: int) -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    whole = record.wrappings[0].ciphertext
    changed = whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :]
    outcome = opened(branch, edited(record, changed))
    assert isinstance(outcome, IntegrityError)
    assert outcome.key_id == record.key_id
    assert str(record.key_id) in str(outcome)


@pytest.mark.parametrize("size", [0, 1, 18, 19, 35, 66, 83, 99, 114, 116, 131])
def test_a_wrapping_of_another_size_does_not_open(size: int) -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    whole = record.wrappings[0].ciphertext
    outcome = opened(branch, edited(record, (whole + bytes(40))[:size]))
    assert isinstance(outcome, IntegrityError)


@pytest.mark.parametrize(
    "change",
    [
        {"application": "shops"},
        {"scope": "tenant:b"},
        {"purpose": KeyPurpose.FIELD},
        {"key_id": UUID(int=1)},
        {"application": "sho", "scope": "ptenant:a"},
    ],
    ids=str,
)
def test_a_wrapping_opens_for_its_own_row_alone(change: dict) -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    assert isinstance(opened(branch, record), DataKey)
    assert isinstance(opened(branch, replace(record, **change)), IntegrityError)


def test_swapped_wrappings_do_not_open() -> None:
    branch = branch_key()
    (_, mine), (_, other) = wrapped_key(branch, "a"), wrapped_key(branch, "b")
    addressed = [(mine, other.wrappings[0]), (other, mine.wrappings[0]), (mine, mine.wrappings[0])]
    outcomes = unwrap_under(branch, addressed)
    assert [type(outcome) for outcome in outcomes] == [IntegrityError, IntegrityError, DataKey]


def test_another_branch_key_does_not_open_even_under_the_same_bytes() -> None:
    branch, other = branch_key(), branch_key()
    _, record = wrapped_key(branch)
    whole = record.wrappings[0].ciphertext
    assert isinstance(opened(other, record), IntegrityError)
    renamed = whole[:3] + other.key_id.bytes + whole[19:]
    assert isinstance(opened(other, edited(record, renamed)), IntegrityError)


def test_a_key_of_another_row_under_a_good_wrapping_is_refused_by_the_binding() -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    outcome = opened(branch, replace(record, binding=bytes(32)))
    assert isinstance(outcome, IntegrityError)
    assert "another key" in str(outcome)


def test_a_plaintext_of_another_size_is_no_key() -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    header = record.wrappings[0].ciphertext[:19]
    aad = header + length_prefixed(b"wrapped-key", b"shop", b"data", b"tenant:a", record.key_id.bytes)
    for size in (0, 16, 31, 33):
        (body,) = seal_many(branch.wrapping_pool(), [(bytes(size), aad)])
        assert isinstance(opened(branch, edited(record, header + body)), IntegrityError)


def test_a_closed_branch_key_wraps_and_opens_nothing() -> None:
    branch = branch_key()
    key, record = wrapped_key(branch)
    branch.close()
    with pytest.raises(KeyNotFoundError, match="closed"):
        wrap_under(branch, [key])
    with pytest.raises(KeyNotFoundError, match="closed"):
        opened(branch, record)


# --- which branch ---


def test_a_scopes_branch_is_the_hash_of_application_and_scope() -> None:
    digest = sha512(b"\0\0\0\4shop" + b"\0\0\0\x0bsubject:c-1").digest()
    for count in (1, 2, 16, 1000, MOST_BRANCHES):
        assert branch_scope("shop", "subject:c-1", count) == f"branch:{int.from_bytes(digest) % count}"


def test_names_that_join_to_the_same_text_are_hashed_apart() -> None:
    assert branch_scope("shop", "a", MOST_BRANCHES) != branch_scope("sho", "pa", MOST_BRANCHES)


def test_scopes_spread_over_all_branches() -> None:
    counts = Counter(branch_scope("shop", f"subject:{number}", 16) for number in range(16_000))
    assert set(counts) == set(branch_scopes(16))
    assert 850 < min(counts.values()) <= max(counts.values()) < 1_150


def test_branches_are_numbered_from_nought() -> None:
    assert branch_scopes(3) == ["branch:0", "branch:1", "branch:2"]


def test_a_wrapping_names_its_branch_key_in_canonical_form_or_none() -> None:
    key_id = uuid4()

    def named(uri: str) -> UUID | None:
        return named_branch(WrappedKey(kek_uri=uri, kek_version=None, ciphertext=b""))

    assert named(branch_uri(key_id)) == key_id
    for text in (
        str(key_id).upper(),
        key_id.hex,
        f"{{{key_id}}}",
        f" {key_id}",
        "",
        "0",
        f"urn:uuid:{key_id}",
    ):
        assert named(f"branch:{text}") is None


def test_the_wrapping_under_a_branch_key_is_found_among_others() -> None:
    branch = branch_key()
    _, record = wrapped_key(branch)
    other = WrappedKey(kek_uri="fake://one", kek_version="1", ciphertext=b"x")
    assert branch_wrapping(replace(record, wrappings=(other, *record.wrappings))) == record.wrappings[0]
    assert branch_wrapping(replace(record, wrappings=(other,))) is None
    assert branch_wrapping(replace(record, wrappings=())) is None


@pytest.mark.parametrize("branches", [0, -1, MOST_BRANCHES + 1, True, 2.0, "16"])
def test_a_number_of_branches_that_is_none_is_refused(branches) -> None:
    with pytest.raises(ConfigurationError, match="branches"):
        checked_branches(branches)


@pytest.mark.parametrize("branches", [None, 1, 16, MOST_BRANCHES])
def test_a_number_of_branches_is_taken(branches) -> None:
    assert checked_branches(branches) == branches
