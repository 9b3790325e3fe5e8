"""New keys under several KEKs: how many must wrap them, and what happens where some do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyRecord
from eventseal.keys.authentication.row_checks import KeyringCounters
from eventseal.keys.data_key import binding_of
from eventseal.keys.records import new_record
from eventseal.keys.wrapping.kek_calls import KekCalls
from eventseal.keys.wrapping.keks import Keks
from eventseal.testing import FakeBatchKms, FakeKms, ManualClock

FAULTS = {"fail_always": KmsUnavailableError, "deny": KmsForbiddenError, "disable": KmsKeyStateError}


def sealing_key(keyring, scope: str = "a"):
    return keyring.sealing_keys({scope: 1})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def uris(record: KeyRecord) -> list[str]:
    return [wrapped.kek_uri for wrapped in record.wrappings]


@pytest.fixture
def keks() -> list[FakeKms]:
    return [FakeKms("one"), FakeBatchKms("two"), FakeKms("three")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("away", [0, 1, 2])
@pytest.mark.parametrize("scopes", [["a"], ["a", "b", "c"]], ids=len)
def test_a_key_that_the_quorum_wrapped_is_stored_and_what_is_missing_is_counted(
    new_keyring, store, keks, fault, away, scopes
) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=2)
    keyring.prepare(["warm"])
    getattr(keks[away], fault)()
    keyring.prepare(scopes)
    there = [kms.uri for index, kms in enumerate(keks) if index != away]
    for record in store.data_records():
        assert uris(record) == ([kms.uri for kms in keks] if record.scope == "warm" else there)
    assert keyring.counters.missing_wrappings == len(scopes)
    other = new_keyring(kms=[kms for kms in keks if kms.uri in there])
    assert isinstance(opened(other, store.data_records()[-1].key_id), DataKey)


@pytest.mark.parametrize("quorum", [None, 3, 2, 1])
@pytest.mark.parametrize("away", [1, 2, 3])
@pytest.mark.parametrize("scopes", [["a"], ["a", "b", "c"]], ids=len)
def test_below_the_quorum_nothing_is_written(new_keyring, store, keks, quorum, away, scopes) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=quorum)
    keyring.prepare(["warm"])
    for kms in keks[3 - away :]:
        kms.fail_always()
    before = store.snapshot()
    if 3 - away >= (quorum or 3):
        keyring.prepare(scopes)
        assert len(store.data_records()) == 1 + len(scopes)
        return
    with pytest.raises(KmsUnavailableError):
        keyring.prepare(scopes)
    assert store.snapshot() == before
    assert keyring.counters.missing_wrappings == 0


@pytest.mark.parametrize("said_no", [0, 1])
@pytest.mark.parametrize("fault", ["deny", "disable"])
@pytest.mark.parametrize("branches", [None, 2])
def test_an_outage_that_breaks_the_quorum_is_told_before_what_another_kek_says(
    new_keyring, store, keks, said_no, fault, branches
) -> None:
    pair = keks[:2]
    keyring = new_keyring(kms=pair, wrap_quorum=1, branches=branches)
    keyring.prepare(["warm"])
    getattr(pair[said_no], fault)()
    pair[1 - said_no].fail_always()
    with pytest.raises(KmsUnavailableError) as caught:
        keyring.prepare([str(number) for number in range(9)])
    assert isinstance(caught.value.__cause__, FAULTS[fault]) == (said_no == 1)
    pair[1 - said_no].recover()
    sealing_key(keyring, "mended")


def test_by_default_every_kek_must_wrap(new_keyring, store, keks) -> None:
    keks[2].fail_always()
    with pytest.raises(KmsUnavailableError):
        sealing_key(new_keyring(kms=keks))
    assert store.records() == []


def test_a_batch_that_was_wrapped_in_part_needs_the_quorum_for_each_key(new_keyring, store) -> None:
    class Partial(FakeBatchKms):
        def wrap_many(self, keys):
            return [*super().wrap_many(keys)[:-1], KmsForbiddenError("denied", kek_uri=self.uri)]

    first, second = FakeKms("first"), Partial("second")
    with pytest.raises(KmsForbiddenError):
        new_keyring(kms=[first, second], application="all").prepare(["a", "b", "c"])
    assert [record.purpose for record in store.records("all")] == [KeyPurpose.STORE]
    keyring = new_keyring(kms=[first, second], wrap_quorum=1)
    keyring.prepare(["a", "b", "c"])
    assert sorted(len(record.wrappings) for record in store.data_records()) == [1, 2, 2]
    assert keyring.counters.missing_wrappings == 1


def test_the_first_makes_the_keys_as_long_as_it_can(new_keyring, keks) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=1)
    sealing_key(keyring, "a")
    assert [kms.count("generate_data_key") for kms in keks] == [2, 0, 0]
    keks[0].deny()
    sealing_key(keyring, "b")
    assert [kms.count("generate_data_key") for kms in keks] == [3, 1, 0]


def test_another_error_than_the_kmss_is_never_outvoted(new_keyring, store) -> None:
    class Broken(FakeKms):
        def wrap(self, key, context):
            raise IntegrityError("another KMS key answered")

    class Short(FakeKms):
        def generate_data_key(self, context):
            return b"short", super().generate_data_key(context)[1]

    for keks in ([FakeKms(), Broken()], [Short(), FakeKms()]):
        with pytest.raises(IntegrityError):
            sealing_key(new_keyring(kms=keks, wrap_quorum=1))
    assert store.records() == []


def test_a_kek_that_did_not_answer_rests_while_the_others_make_up_the_quorum(
    new_keyring, store, keks, clock
) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=2)
    keks[0].fail_always()
    for number in range(10):
        sealing_key(keyring, f"s:{number}")
    assert keks[0].count() == 1
    assert keyring.counters.missing_wrappings == 11
    keks[0].recover()
    clock.advance(5.1)
    sealing_key(keyring, "later")
    assert uris(store.data_records()[-1]) == [kms.uri for kms in keks]


def test_a_kek_that_rests_is_asked_if_the_quorum_needs_it(new_keyring, store, keks) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=2)
    keks[0].fail_next()
    sealing_key(keyring, "a")
    keks[1].fail_next()
    sealing_key(keyring, "b")
    assert uris(store.data_records()[-1]) == ["fake://three", "fake://one"]


def test_a_kek_that_says_no_is_asked_each_time(new_keyring, keks) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=2)
    keks[2].deny()
    for number in range(3):
        sealing_key(keyring, f"s:{number}")
    assert keks[2].count() == 4


def test_the_keys_of_a_batch_that_failed_are_closed(keks) -> None:
    made = []

    class Watched(FakeKms):
        def generate_data_key(self, context):
            if len(made) == 2:
                raise KmsUnavailableError("away")
            made.append(context)
            return super().generate_data_key(context)

    handles = []
    calls = Keks([Watched()], calls=KekCalls(KeyringCounters()))
    generated = calls.calls._generated

    def keep(adapter, record):
        pair = generated(adapter, record)
        handles.append(pair[0])
        return pair

    calls.calls._generated = keep
    with pytest.raises(KmsUnavailableError):
        calls.generate([new_record("shop", f"s:{n}", KeyPurpose.DATA, leased=0) for n in range(3)])
    assert [handle.closed for handle in handles] == [True, True]
    handles.clear(), made.clear()
    keks[2].fail_always()
    several = Keks(keks, calls=KekCalls(KeyringCounters()))
    generated = several.calls._generated
    several.calls._generated = keep
    with pytest.raises(KmsUnavailableError):
        several.generate([new_record("shop", "s", KeyPurpose.DATA, leased=0)])
    assert [handle.closed for handle in handles] == [True]


def test_rotation_keeps_the_quorum_too(new_keyring, store, keks) -> None:
    keyring = new_keyring(kms=keks, wrap_quorum=2)
    old = sealing_key(keyring).key_id
    keks[1].fail_always()
    new = keyring.rotate("a")
    assert uris(new) == ["fake://one", "fake://three"]
    keks[2].fail_always()
    with pytest.raises(KmsUnavailableError):
        keyring.rotate("a")
    assert sealing_key(keyring).key_id == new.key_id != old


@pytest.mark.parametrize("quorum", [0, -1, 4, True, 2.0, "2"])
def test_a_quorum_that_cannot_be_met_is_refused_at_once(new_keyring, keks, quorum) -> None:
    with pytest.raises(ConfigurationError, match="wrap_quorum"):
        new_keyring(kms=keks, wrap_quorum=quorum)


def test_a_kek_that_is_called_like_a_branch_key_is_refused() -> None:
    kms = FakeKms()
    kms._uri = "branch:0"
    with pytest.raises(ConfigurationError, match="branch key"):
        Keks([kms], calls=KekCalls(KeyringCounters()))


# --- falling back ---


def wrapped_by(keks: list[FakeKms]) -> tuple[DataKey, KeyRecord]:
    blank = new_record("shop", "a", KeyPurpose.DATA, leased=0)
    ((key, wrappings),) = Keks(keks, calls=KekCalls(KeyringCounters())).generate([blank])
    for kms in keks:
        kms.calls.clear()
    return key, replace(blank, binding=binding_of(key), wrappings=wrappings)


def falling_back(keks: list[FakeKms], clock: ManualClock | None = None) -> Keks:
    return Keks(
        keks, calls=KekCalls(KeyringCounters()), fall_back_on_outage=True, clock=clock or ManualClock()
    )


def unwrapped(keks: Keks, record: KeyRecord) -> object:
    (outcome,) = keks.unwrap([record])
    return outcome


def test_where_a_kek_is_unavailable_the_next_unwraps(keks) -> None:
    key, record = wrapped_by(keks)
    keks[0].fail_always()
    outcome = unwrapped(falling_back(keks), record)
    assert isinstance(outcome, DataKey)
    assert outcome.derive(b"x", 8) == key.derive(b"x", 8)
    assert [kms.count() for kms in keks] == [1, 1, 0]


@pytest.mark.parametrize("fault", ["deny", "disable"])
def test_a_kek_that_says_no_is_never_passed_over(keks, fault) -> None:
    _, record = wrapped_by(keks)
    getattr(keks[0], fault)()
    assert type(unwrapped(falling_back(keks), record)) is FAULTS[fault]
    assert [kms.count() for kms in keks] == [1, 0, 0]


def test_an_edited_wrapping_is_never_passed_over(keks) -> None:
    _, record = wrapped_by(keks)
    first, *others = record.wrappings
    first = replace(first, ciphertext=b"x" * 60)
    edited = replace(record, wrappings=(first, *others), verified=frozenset([first]))
    assert isinstance(unwrapped(falling_back(keks), edited), IntegrityError)
    assert [kms.count() for kms in keks] == [1, 0, 0]


def test_without_the_option_an_outage_is_the_answer(keks) -> None:
    _, record = wrapped_by(keks)
    keks[0].fail_always()
    assert isinstance(unwrapped(Keks(keks, calls=KekCalls(KeyringCounters())), record), KmsUnavailableError)
    assert [kms.count() for kms in keks] == [1, 0, 0]


def test_if_every_kek_is_unavailable_that_is_the_answer(keks) -> None:
    _, record = wrapped_by(keks)
    for kms in keks:
        kms.fail_always()
    outcome = unwrapped(falling_back(keks), record)
    assert isinstance(outcome, KmsUnavailableError)
    assert outcome.kek_uri == keks[0].uri
    assert [kms.count() for kms in keks] == [1, 1, 1]


def test_an_outage_is_told_if_no_other_kek_has_the_key(keks) -> None:
    _, record = wrapped_by(keks[:1])
    keks[0].fail_always()
    assert isinstance(unwrapped(falling_back(keks), record), KmsUnavailableError)


@pytest.mark.parametrize("fault", ["deny", "disable"])
def test_a_second_kek_that_says_no_ends_it_and_the_outage_is_its_cause(keks, fault) -> None:
    _, record = wrapped_by(keks)
    keks[0].fail_always()
    getattr(keks[1], fault)()
    outcome = unwrapped(falling_back(keks), record)
    assert type(outcome) is FAULTS[fault]
    assert isinstance(outcome.__cause__, KmsUnavailableError)
    assert keks[2].count() == 0


def test_a_batch_falls_back_as_one_batch() -> None:
    keks = [FakeBatchKms("one"), FakeBatchKms("two")]
    records = [wrapped_by(keks)[1] for _ in range(20)]
    keks[0].fail_always()
    outcomes = falling_back(keks).unwrap(records)
    assert all(isinstance(outcome, DataKey) for outcome in outcomes)
    assert [[call.operation for call in kms.calls] for kms in keks] == [["unwrap_many"]] * 2


def test_a_kek_without_batches_is_not_asked_for_the_rest_of_a_batch_that_it_did_not_answer(keks) -> None:
    keks = [FakeKms("one"), FakeKms("two")]
    records = [wrapped_by(keks)[1] for _ in range(20)]
    keks[0].fail_always()
    outcomes = falling_back(keks).unwrap(records)
    assert all(isinstance(outcome, DataKey) for outcome in outcomes)
    assert [kms.count() for kms in keks] == [1, 20]


def test_a_kek_that_was_unavailable_comes_last_for_a_while(keks) -> None:
    clock = ManualClock()
    _, record = wrapped_by(keks)
    _, only_first = wrapped_by(keks[:1])
    ring = falling_back(keks, clock)
    keks[0].fail_next()
    for _ in range(10):
        assert isinstance(unwrapped(ring, record), DataKey)
    assert [kms.count() for kms in keks] == [1, 10, 0]
    assert isinstance(unwrapped(ring, only_first), DataKey)  # last, but not never
    clock.advance(5.1)
    assert isinstance(unwrapped(ring, record), DataKey)
    assert [kms.count() for kms in keks] == [3, 10, 0]


def test_without_the_option_the_order_never_changes(keks) -> None:
    _, record = wrapped_by(keks)
    ring = Keks(keks, calls=KekCalls(KeyringCounters()), clock=ManualClock())
    keks[0].fail_next()
    assert isinstance(unwrapped(ring, record), KmsUnavailableError)
    assert isinstance(unwrapped(ring, record), DataKey)
    assert [kms.count() for kms in keks] == [2, 0, 0]


def test_a_wrapping_of_two_versions_is_not_sent_twice_to_a_kek_that_is_away() -> None:
    class Versioned(FakeKms):
        def _sealed(self, key, context):
            return replace(super()._sealed(key, context), kek_version=str(self.count()))

    keks = [Versioned("one"), FakeKms("two")]
    _, record = wrapped_by(keks)
    again = replace(record.wrappings[0], kek_version="other")
    record = replace(record, wrappings=(*record.wrappings, again))
    keks[0].fail_always()
    assert isinstance(unwrapped(falling_back(keks), record), DataKey)
    assert [kms.count() for kms in keks] == [1, 1]


def test_what_an_adapter_knows_of_a_foreign_wrapping_is_told_unless_there_is_an_outage(keks) -> None:
    class Alias(FakeKms):
        def unwrap(self, wrapped, context):
            raise NotMyKeyError("the alias moved", remedy="list the old key too", kek_uri=wrapped.kek_uri)

    _, record = wrapped_by([keks[0]])
    outcome = unwrapped(falling_back([Alias("alias"), FakeKms("other")]), record)
    assert isinstance(outcome, KekNotConfiguredError)
    assert outcome.remedy == "list the old key too"
    keks[0].fail_always()
    for order in ([Alias("alias"), keks[0]], [keks[0], Alias("alias")]):
        assert isinstance(unwrapped(falling_back(order), record), KmsUnavailableError)


def test_a_keyring_that_falls_back_reads_and_writes_through_an_outage(new_keyring, keks, clock) -> None:
    key = sealing_key(new_keyring(kms=keks))
    keks[0].fail_always()
    keyring = new_keyring(kms=keks, fall_back_on_outage=True, wrap_quorum=2)
    assert isinstance(opened(keyring, key.key_id), DataKey)
    assert sealing_key(keyring, "new")
    with pytest.raises(KmsError):
        sealing_key(new_keyring(kms=keks, fall_back_on_outage=True), "another")
