"""Many keys at once: bounded calls, an outcome for each key, and no hammering on a KMS that is down."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from eventseal.errors import (
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal.kms import EncryptionContext
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.aws.calls import CALLS_IN_FLIGHT
from eventseal_kms.testing import NO_ANSWER


@pytest.fixture
def items(adapter):
    """Wrapped keys with their contexts; more than may be in flight."""
    contexts = [EncryptionContext(uuid4(), "data", "shop") for _ in range(100)]
    return [(adapter.generate_data_key(context)[1], context) for context in contexts]


def test_no_more_than_twenty_calls_are_in_flight_and_no_fewer(kms, adapter, items):
    with ThreadPoolExecutor(1) as pool, kms.hold():
        batch = pool.submit(adapter.unwrap_many, items)
        kms.wait_inside(CALLS_IN_FLIGHT)
    assert not any(isinstance(outcome, Exception) for outcome in batch.result())
    assert kms.peak == CALLS_IN_FLIGHT == 20


@pytest.mark.slow
def test_batches_of_several_threads_share_the_twenty(kms, adapter, items):
    with ThreadPoolExecutor(5) as pool, kms.hold():
        batches = [pool.submit(adapter.unwrap_many, items) for _ in range(5)]
        kms.wait_inside(CALLS_IN_FLIGHT)
        with pytest.raises(TimeoutError):
            kms.wait_inside(CALLS_IN_FLIGHT + 1, timeout=0.3)
    assert all(isinstance(outcome, bytes) for batch in batches for outcome in batch.result())
    assert kms.peak == CALLS_IN_FLIGHT


def test_wrapping_and_rewrapping_are_bounded_too(kms, adapter, items):
    kms.delay = 0.002
    contexts = [context for _, context in items]
    assert len(adapter.wrap_many([(bytes(32), context) for context in contexts])) == len(items)
    assert len(adapter.rewrap_many(items)) == len(items)
    assert kms.peak <= CALLS_IN_FLIGHT


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (NO_ANSWER, KmsUnavailableError),
        ("ThrottlingException", KmsUnavailableError),
        ("DisabledException", KmsKeyStateError),
    ],
)
@pytest.mark.parametrize("verb", ["wrap_many", "unwrap_many", "rewrap_many"])
def test_what_hits_every_key_ends_the_batch_early(kms, adapter, items, code, error, verb):
    keys = [(bytes(32), context) for _, context in items] if verb == "wrap_many" else items
    kms.fail_always(code)
    before = kms.count()
    outcomes = getattr(adapter, verb)(keys)
    assert [type(outcome) for outcome in outcomes] == [error] * len(items)
    assert kms.count() - before <= CALLS_IN_FLIGHT
    untried = [outcome for outcome in outcomes if "not tried" in str(outcome)]
    assert len(untried) == len(items) - (kms.count() - before)
    assert all(outcome.kek_uri == adapter.uri and outcome.remedy for outcome in untried)
    kms.recover()
    assert not any(isinstance(outcome, Exception) for outcome in getattr(adapter, verb)(keys))


@pytest.mark.parametrize(
    ("code", "error"),
    [("AccessDeniedException", KmsForbiddenError), ("InvalidCiphertextException", IntegrityError)],
)
def test_what_hits_one_key_ends_nothing(kms, adapter, items, code, error):
    kms.fail_next(3, code)
    outcomes = adapter.unwrap_many(items)
    assert sum(isinstance(outcome, error) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == len(items) - 3


def test_one_key_takes_no_thread(kms, adapter, items):
    before = set(threading.enumerate())  # threads of other tests may end at any moment
    with ThreadPoolExecutor(1) as pool, kms.hold():
        one = pool.submit(adapter.unwrap_many, items[:1])
        kms.wait_inside(1)
        new = set(threading.enumerate()) - before
    assert isinstance(one.result()[0], bytes)
    assert len(new) == 1  # the pool's own


@pytest.mark.slow
def test_a_thousand_keys_over_http(kms, key, served):
    adapter = AwsKmsAdapter(key)
    keys = [(uuid4().bytes * 2, EncryptionContext(uuid4(), "data", "shop")) for _ in range(1000)]
    wrapped = adapter.wrap_many(keys)
    opened = adapter.unwrap_many([(one, context) for one, (_, context) in zip(wrapped, keys, strict=True)])
    assert opened == [data_key for data_key, _ in keys]
    assert kms.peak <= CALLS_IN_FLIGHT
