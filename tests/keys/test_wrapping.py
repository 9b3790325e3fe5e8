"""Several KEKs: the first makes, every one wraps, any one unwraps; only "not mine" leads to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyRecord
from eventseal.keys.authentication.row_checks import KeyringCounters
from eventseal.keys.data_key import binding_of
from eventseal.keys.records import new_record
from eventseal.keys.wrapping.kek_calls import KekCalls
from eventseal.keys.wrapping.keks import Keks
from eventseal.kms import EncryptionContext, WrappedKey
from eventseal.testing import FakeBatchKms, FakeKms


def keks(*adapters) -> Keks:
    return Keks(adapters, calls=KekCalls(KeyringCounters()))


def made(count: int, *adapters) -> list[tuple[DataKey, KeyRecord]]:
    blank = [new_record("shop", f"tenant:{number}", KeyPurpose.DATA, leased=0) for number in range(count)]
    return [
        (key, replace(record, binding=binding_of(key), wrappings=wrappings))
        for record, (key, wrappings) in zip(blank, keks(*adapters).generate(blank), strict=True)
    ]


def same(opened: DataKey | EventSealError, key: DataKey) -> bool:
    assert isinstance(opened, DataKey)
    return opened.derive(b"test", 32) == key.derive(b"test", 32)


def test_the_first_kek_makes_the_key_and_every_one_wraps_it() -> None:
    first, second, third = FakeKms(), FakeKms(), FakeKms()
    ((key, record),) = made(1, first, second, third)
    assert [call.operation for call in first.calls] == ["generate_data_key"]
    assert [call.operation for call in second.calls] == [call.operation for call in third.calls] == ["wrap"]
    assert [wrapping.kek_uri for wrapping in record.wrappings] == [first.uri, second.uri, third.uri]
    for kms in (first, second, third):
        (opened,) = keks(kms).unwrap([record])
        assert same(opened, key)


def test_what_a_kms_binds_names_the_key_and_never_the_scope() -> None:
    kms = FakeKms()
    ((_, record),) = made(1, kms)
    context = EncryptionContext(record.key_id, "data", "shop")
    assert kms.unwrap(record.wrappings[0], context)
    assert "tenant" not in str(context.as_mapping())


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_no_key_is_given_unless_every_kek_wrapped_it(broken: int) -> None:
    adapters = [FakeKms(), FakeKms(), FakeKms()]
    adapters[broken].fail_next()
    with pytest.raises(KmsUnavailableError):
        made(2, *adapters)


def test_no_key_is_given_if_a_batch_was_wrapped_in_part() -> None:
    class Partial(FakeBatchKms):
        def wrap_many(self, keys):
            return [*super().wrap_many(keys)[:-1], KmsForbiddenError("denied", kek_uri=self.uri)]

    with pytest.raises(KmsForbiddenError):
        made(3, FakeKms(), Partial())


def test_keks_after_the_first_wrap_many_keys_in_one_call_if_they_can() -> None:
    first, batch, single = FakeKms(), FakeBatchKms(), FakeKms()
    pairs = made(5, first, batch, single)
    assert [call.operation for call in batch.calls] == ["wrap_many"]
    assert single.count("wrap") == 5
    assert first.count("generate_data_key") == 5
    for opened, (key, _) in zip(keks(batch).unwrap([record for _, record in pairs]), pairs, strict=True):
        assert same(opened, key)


def test_the_first_kek_in_order_is_asked_and_no_other() -> None:
    first, second = FakeKms(), FakeKms()
    ((key, record),) = made(1, first, second)
    first.calls.clear(), second.calls.clear()
    assert same(keks(second, first).unwrap([record])[0], key)
    assert (first.count(), second.count()) == (0, 1)


def test_a_wrapping_of_an_absent_kek_is_passed_over_without_a_call() -> None:
    gone, here = FakeKms(), FakeKms()
    ((key, record),) = made(1, gone, here)
    other = FakeKms()
    assert same(keks(other, here).unwrap([record])[0], key)
    assert other.count() == 0


@pytest.mark.parametrize("error", [KmsUnavailableError, KmsForbiddenError, KmsKeyStateError, IntegrityError])
def test_any_other_error_ends_it_and_no_other_kek_is_asked(error: type[EventSealError]) -> None:
    first, second = FakeKms(), FakeKms()
    ((_, record),) = made(1, first, second)
    record = replace(record, verified=frozenset(record.wrappings))
    second.calls.clear()
    first.fail_always(error("no"))
    (outcome,) = keks(first, second).unwrap([record])
    assert type(outcome) is error
    assert second.count() == 0


def test_a_key_under_no_configured_kek_names_the_one_it_is_under() -> None:
    ((_, record),) = made(1, FakeKms("paris"), FakeKms("oslo"))
    counters = KeyringCounters()
    (outcome,) = Keks([FakeKms("here")], calls=KekCalls(counters)).unwrap([record])
    assert isinstance(outcome, KekNotConfiguredError)
    assert outcome.kek_uri == "fake://paris"
    assert "fake://oslo" in str(outcome)
    assert "fake://here" in str(outcome)
    assert counters.kms_calls == 0


def test_a_live_key_without_wrappings_was_tampered_with() -> None:
    kms = FakeKms()
    ((_, record),) = made(1, kms)
    (outcome,) = keks(kms).unwrap([replace(record, wrappings=())])
    assert isinstance(outcome, IntegrityError)
    assert str(record.key_id) in str(outcome)


def test_a_wrapping_copied_from_another_key_is_refused_by_the_binding_alone() -> None:
    class Careless(FakeKms):
        """A KMS that binds no context."""

        def _sealed(self, key, context):
            return WrappedKey(kek_uri=self.uri, kek_version=None, ciphertext=key)

        def _opened(self, wrapped, context):
            return wrapped.ciphertext

    kms = Careless()
    (_, mine), (_, other) = made(2, kms)
    (outcome,) = keks(kms).unwrap([replace(mine, wrappings=other.wrappings)])
    assert isinstance(outcome, IntegrityError)
    assert outcome.key_id == mine.key_id


def test_a_batch_is_unwrapped_in_one_call_with_an_outcome_for_each() -> None:
    kms, other = FakeBatchKms(), FakeKms()
    pairs = made(5, kms)
    ((_, foreign),) = made(1, other)
    records = [record for _, record in pairs]
    records[1] = replace(records[1], wrappings=records[2].wrappings)
    records.insert(3, foreign)
    kms.calls.clear()
    counters = KeyringCounters()
    outcomes = Keks([kms], calls=KekCalls(counters)).unwrap(records)
    assert [call.operation for call in kms.calls] == ["unwrap_many"]
    assert counters.kms_calls == 1
    assert isinstance(outcomes[1], IntegrityError)
    assert isinstance(outcomes[3], KekNotConfiguredError)
    good = [outcomes[place] for place in (0, 2, 4, 5)]
    for opened, (key, _) in zip(good, [pairs[0], *pairs[2:]], strict=True):
        assert same(opened, key)


def test_a_single_key_is_no_batch() -> None:
    kms = FakeBatchKms()
    ((_, record),) = made(1, kms, FakeBatchKms())
    keks(kms).unwrap([record])
    assert [call.operation for call in kms.calls] == ["generate_data_key", "unwrap"]


def test_a_batch_that_fails_whole_fails_for_each() -> None:
    kms = FakeBatchKms()
    records = [record for _, record in made(3, kms)]
    kms.fail_next()
    assert [type(outcome) for outcome in keks(kms).unwrap(records)] == [KmsUnavailableError] * 3


def test_a_batch_over_two_keks_asks_each_for_its_own() -> None:
    first, second = FakeBatchKms(), FakeBatchKms()
    both = [record for _, record in made(2, first)] + [record for _, record in made(2, second)]
    first.calls.clear(), second.calls.clear()
    outcomes = keks(first, second).unwrap(both)
    assert all(isinstance(outcome, DataKey) for outcome in outcomes)
    assert [call.key_ids for call in first.calls] == [(both[0].key_id, both[1].key_id)]
    assert [call.key_ids for call in second.calls] == [(both[2].key_id, both[3].key_id)]


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    class Short(FakeBatchKms):
        def _opened(self, wrapped, context):
            return bytes(size)

        def generate_data_key(self, context):
            _, wrapped = super().generate_data_key(context)
            return bytes(size), wrapped

    good = FakeBatchKms()
    records = [record for _, record in made(2, good)]
    kms = Short()
    kms._uri, kms._kek = good._uri, good._kek
    with pytest.raises(IntegrityError):
        made(1, kms)
    for asked in (records[:1], records):
        assert {type(outcome) for outcome in keks(kms).unwrap(asked)} == {IntegrityError}


@pytest.mark.parametrize("adapters", [[], [object()], [FakeKms(), "fake://two"]])
def test_what_is_no_kek_is_refused(adapters) -> None:
    with pytest.raises(ConfigurationError) as caught:
        keks(*adapters)
    assert caught.value.remedy


def test_a_kek_listed_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        keks(FakeKms("one"), FakeKms("one"))
