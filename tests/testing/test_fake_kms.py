"""The fake KMS refuses what a real one refuses, and fails on command."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.kms import EncryptionContext, KmsAdapter, SupportsBatch
from eventseal.testing import FakeBatchKms, FakeKms, FakeKmsCall


def context(**changes) -> EncryptionContext:
    return replace(EncryptionContext(uuid4(), "data", "shop"), **changes)


def test_it_satisfies_the_protocols() -> None:
    assert isinstance(FakeKms(), KmsAdapter)
    assert not isinstance(FakeKms(), SupportsBatch)
    assert isinstance(FakeBatchKms(), KmsAdapter)
    assert isinstance(FakeBatchKms(), SupportsBatch)


def test_what_it_wraps_it_unwraps() -> None:
    kms, here = FakeKms("one"), context()
    key, wrapped = kms.generate_data_key(here)
    assert len(key) == 32
    assert kms.unwrap(wrapped, here) == key
    assert kms.unwrap(kms.wrap(key, here), here) == key
    assert (wrapped.kek_uri, wrapped.kek_version) == (kms.uri, "1") == ("fake://one", "1")
    assert key not in wrapped.ciphertext
    assert kms.wrap(key, here) != kms.wrap(key, here)


def test_keys_are_random() -> None:
    kms = FakeKms()
    assert len({kms.generate_data_key(context())[0] for _ in range(50)}) == 50


@pytest.mark.parametrize("changes", [{"key_id": uuid4()}, {"purpose": "store"}, {"application": "other"}])
def test_another_context_is_refused(changes) -> None:
    kms, here = FakeKms(), context()
    _, wrapped = kms.generate_data_key(here)
    with pytest.raises(IntegrityError):
        kms.unwrap(wrapped, replace(here, **changes))


def test_every_edit_of_a_wrapping_is_refused() -> None:
    kms, here = FakeKms(), context()
    _, wrapped = kms.generate_data_key(here)
    for bit in range(len(wrapped.ciphertext) * 8):
        flipped = bytearray(wrapped.ciphertext)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            kms.unwrap(replace(wrapped, ciphertext=bytes(flipped)), here)
    for size in range(len(wrapped.ciphertext)):
        with pytest.raises(IntegrityError):
            kms.unwrap(replace(wrapped, ciphertext=wrapped.ciphertext[:size]), here)


def test_two_never_open_each_others_wrappings() -> None:
    first, second, here = FakeKms(), FakeKms(), context()
    _, wrapped = first.generate_data_key(here)
    with pytest.raises(NotMyKeyError) as caught:
        second.unwrap(wrapped, here)
    assert caught.value.kek_uri == first.uri
    assert second.calls == []  # said before any call
    namesake = FakeKms(first.uri.removeprefix("fake://"))
    with pytest.raises(IntegrityError):
        namesake.unwrap(wrapped, here)


def test_it_is_made_from_its_uri() -> None:
    assert FakeKms.from_uri("fake://one").uri == "fake://one"
    assert isinstance(FakeBatchKms.from_uri("fake://one"), FakeBatchKms)
    for uri in ("fake://", "local://x", "one", ""):
        with pytest.raises(ConfigurationError):
            FakeKms.from_uri(uri)


def test_calls_are_logged() -> None:
    kms, here, there = FakeBatchKms(), context(), context()
    key, wrapped = kms.generate_data_key(here)
    kms.wrap(key, there)
    kms.unwrap(wrapped, here)
    kms.wrap_many([(key, here), (key, there)])
    assert kms.calls == [
        FakeKmsCall("generate_data_key", (here.key_id,), failed=False),
        FakeKmsCall("wrap", (there.key_id,), failed=False),
        FakeKmsCall("unwrap", (here.key_id,), failed=False),
        FakeKmsCall("wrap_many", (here.key_id, there.key_id), failed=False),
    ]
    assert (kms.count(), kms.count("wrap"), kms.count("wrap", "unwrap")) == (4, 1, 2)


def test_a_batch_has_an_outcome_for_each_in_order() -> None:
    kms, other = FakeBatchKms(), FakeBatchKms()
    contexts = [context() for _ in range(4)]
    keys = [kms.generate_data_key(each)[0] for each in contexts]
    wrapped = kms.wrap_many(list(zip(keys, contexts, strict=True)))
    asked = list(zip(wrapped, contexts, strict=True))
    asked[1] = (other.generate_data_key(contexts[1])[1], contexts[1])
    asked[2] = (asked[2][0], contexts[3])
    outcomes = kms.unwrap_many(asked)
    assert [outcomes[0], outcomes[3]] == [keys[0], keys[3]]
    assert isinstance(outcomes[1], NotMyKeyError)
    assert isinstance(outcomes[2], IntegrityError)
    assert kms.calls[-1].key_ids == (contexts[0].key_id, contexts[3].key_id, contexts[3].key_id)


def test_a_batch_of_foreign_wrappings_makes_no_call() -> None:
    kms, here = FakeBatchKms(), context()
    foreign = FakeKms().generate_data_key(here)[1]
    assert [type(outcome) for outcome in kms.unwrap_many([(foreign, here)])] == [NotMyKeyError]
    assert kms.calls == []


@pytest.mark.parametrize("operation", ["generate_data_key", "wrap", "unwrap", "wrap_many", "unwrap_many"])
def test_faults_come_on_command_and_are_logged(operation: str) -> None:
    kms, here = FakeBatchKms(), context()
    key, wrapped = kms.generate_data_key(here)
    arguments = {
        "generate_data_key": (here,),
        "wrap": (key, here),
        "unwrap": (wrapped, here),
        "wrap_many": ([(key, here)],),
        "unwrap_many": ([(wrapped, here)],),
    }
    kms.fail_next(2)
    for _ in range(2):
        with pytest.raises(KmsUnavailableError) as caught:
            getattr(kms, operation)(*arguments[operation])
        assert caught.value.kek_uri == kms.uri
        assert kms.calls[-1].failed
    assert getattr(kms, operation)(*arguments[operation])
    assert not kms.calls[-1].failed


def test_standing_faults_last_until_it_recovers() -> None:
    kms, here = FakeKms(), context()
    for command, error in (
        (kms.fail_always, KmsUnavailableError),
        (kms.disable, KmsKeyStateError),
        (kms.deny, KmsForbiddenError),
    ):
        command()
        for _ in range(3):
            with pytest.raises(error):
                kms.generate_data_key(here)
    kms.fail_next(5, EventSealError("odd"))
    with pytest.raises(EventSealError, match="odd"):
        kms.generate_data_key(here)
    kms.recover()
    assert kms.generate_data_key(here)


def test_each_caller_gets_an_error_of_its_own() -> None:
    kms, here = FakeKms(), context()
    kms.fail_always(KmsUnavailableError("away", retry_after=3.0))
    errors = []
    for _ in range(2):
        with pytest.raises(KmsUnavailableError) as caught:
            kms.generate_data_key(here)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[1].retry_after == 3.0


def test_calls_are_held_and_counted_inside() -> None:
    kms, here = FakeKms(), context()
    with ThreadPoolExecutor(3) as pool:
        with kms.hold():
            futures = [pool.submit(kms.generate_data_key, here) for _ in range(3)]
            kms.wait_inside(3)
            assert not any(future.done() for future in futures)
        assert all(future.result(60) for future in futures)
    assert kms.peak == 3


def test_waiting_for_calls_that_do_not_come_ends() -> None:
    with pytest.raises(TimeoutError, match="0 calls"):
        FakeKms().wait_inside(1, timeout=0.01)


def test_a_delay_goes_through_the_given_sleep() -> None:
    slept: list[float] = []
    kms = FakeKms(sleep=slept.append)
    kms.delay = 2.5
    kms.generate_data_key(context())
    kms.fail_next()
    with pytest.raises(KmsUnavailableError):
        kms.generate_data_key(context())
    assert slept == [2.5, 2.5]


def test_a_delay_takes_time_by_default() -> None:
    kms = FakeKms()
    kms.delay = 0.05
    begin = time.monotonic()
    kms.generate_data_key(context())
    assert time.monotonic() - begin >= 0.05


def test_a_repr_shows_the_uri() -> None:
    assert repr(FakeBatchKms("one")) == "<FakeBatchKms fake://one calls=0>"
