"""A rewrap under AWS KMS: by a worker that may open nothing, with as many calls as there are keys to move."""

from __future__ import annotations

from collections import Counter

import pytest

from eventseal import InMemoryKeyStore, Keyring
from eventseal.errors import KmsForbiddenError, KmsKeyStateError, KmsUnavailableError, NotMyKeyError
from eventseal.keys import DataKey, Rewrap
from eventseal.kms import WrappedKey
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.local import LocalKmsAdapter
from eventseal_kms.testing import NO_ANSWER

WORKER = "arn:aws:iam::111122223333:role/rewrap-worker"
CONDITION = {"StringEquals": {"kms:EncryptionContext:eventseal:application": "shop"}}


@pytest.fixture
def key_store():
    return InMemoryKeyStore()


@pytest.fixture
def keyring(kms, key_store):
    """The keyring of a caller who may do everything, or of *caller*."""

    def keyring(*keys, caller=None, **options):
        adapters = [AwsKmsAdapter(key, client=kms.client(caller)) for key in keys]
        return Keyring(adapters, key_store, application="shop", **options)

    return keyring


@pytest.fixture
def allow(kms):
    """Give the worker rights: on wrappings of the application alone, as far as they have a context."""

    def allow(*actions, on):
        conditional = [action for action in actions if "ReEncrypt" in action]
        plain = [action for action in actions if action not in conditional]
        statements = [{"Effect": "Allow", "Action": plain, "Resource": on}] if plain else []
        if conditional:
            statements.append(
                {"Effect": "Allow", "Action": conditional, "Resource": on, "Condition": CONDITION}
            )
        kms.attach_policy(WORKER, {"Version": "2012-10-17", "Statement": statements})

    return allow


def fill(keyring, count=20):
    return [key.key_id for key in keyring.sealing_keys({f"tenant:{n}": 1 for n in range(count)}).values()]


def opened(keyring, key_ids):
    return all(isinstance(key, DataKey) for key in keyring.opening_keys(key_ids).values())


def counted(kms, since):
    return Counter(call.action for call in kms.calls[since:])


def versions(key_store):
    return {wrapped.kek_version for record in key_store.page("shop") for wrapped in record.wrappings}


def current(kms, key):
    return kms.client().describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]


@pytest.mark.slow
def test_a_worker_that_may_only_reencrypt_adds_wrappings_and_drops_none(kms, key, keyring, key_store, allow):
    key_ids = fill(keyring(key))
    kms.client().rotate_key_on_demand(KeyId=key)
    allow("kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:DescribeKey", on=key)
    worker, since = keyring(key, caller=WORKER), len(kms.calls)
    with pytest.raises(KmsForbiddenError):
        worker.prepare(["no key is seen"])
    assert worker.rewrap(batch=7).awaiting == 21
    assert opened(keyring(key), key_ids)
    assert worker.rewrap() == Rewrap(awaiting=21)
    made = Counter(call.action for call in kms.calls[since:] if call.caller == WORKER and not call.error)
    assert made == {"kms:ReEncrypt": 21, "kms:DescribeKey": 2}
    assert keyring(key).rewrap() == Rewrap(done=21, dropped=21)
    assert versions(key_store) == {current(kms, key)}
    assert opened(keyring(key), key_ids)


def test_without_the_right_to_describe_the_version_is_learnt_from_the_first_wrapping(
    kms, key, keyring, key_store, allow
):
    fill(keyring(key), 5)
    kms.client().rotate_key_on_demand(KeyId=key)
    allow("kms:ReEncryptFrom", "kms:ReEncryptTo", on=key)
    worker = keyring(key, caller=WORKER)
    assert worker.rewrap().awaiting == 6
    since = len(kms.calls)
    assert worker.rewrap() == Rewrap(awaiting=6)
    assert counted(kms, since) == {"kms:DescribeKey": 1, "kms:ReEncrypt": 1}


def test_a_move_between_keys_of_a_region_shows_no_key(kms, key, keyring, key_store, allow):
    new = kms.create_key()
    key_ids = fill(keyring(key))
    allow("kms:ReEncryptFrom", on=key)
    allow("kms:ReEncryptTo", "kms:DescribeKey", on=new)
    worker, to = keyring(key, caller=WORKER), AwsKmsAdapter(new, client=kms.client(WORKER))
    assert worker.rewrap(to).awaiting == 21
    assert opened(keyring(new, key), key_ids)
    assert worker.rewrap(to).awaiting == 21  # what is to go goes only where the other may be opened
    decrypted = [call for call in kms.calls if call.caller == WORKER and call.action == "kms:Decrypt"]
    assert {call.error for call in decrypted} == {"AccessDeniedException"}
    allow("kms:Decrypt", on=key), allow("kms:Decrypt", on=new)
    assert worker.rewrap(to).dropped == 21
    assert opened(keyring(new), key_ids)


@pytest.mark.parametrize("lacking", ["kms:ReEncryptFrom", "kms:ReEncryptTo"])
def test_a_worker_that_lacks_a_right_is_told_which_and_nothing_is_changed(
    kms, key, keyring, key_store, allow, lacking
):
    fill(keyring(key), 3)
    kms.client().rotate_key_on_demand(KeyId=key)
    rights = {"kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:DescribeKey"} - {lacking}
    allow(*rights, on=key)
    before = key_store.page("shop")
    with pytest.raises(KmsForbiddenError) as caught:
        keyring(key, caller=WORKER).rewrap()
    assert lacking in caught.value.remedy
    assert key_store.page("shop") == before


def test_what_is_current_costs_one_call(kms, key, keyring):
    fill(keyring(key), 300)
    since = len(kms.calls)
    assert keyring(key).rewrap().done == 301
    assert counted(kms, since) == {"kms:DescribeKey": 1}


@pytest.mark.slow
def test_two_thousand_data_keys_under_branch_keys_cost_a_handful_of_calls(kms, key, keyring, key_store):
    key_ids = fill(keyring(key, branches=4), 2_000)
    kms.client().rotate_key_on_demand(KeyId=key)
    writer = keyring(key, branches=4)
    writer.rotate_branches(compromised=True)
    since = len(kms.calls)
    rewrap = keyring(key).rewrap(batch=500)
    assert (rewrap.awaiting, rewrap.dropped) == (5, 2_000)  # the store key and the old branch keys
    assert counted(kms, since)["kms:ReEncrypt"] == 5
    assert sum(counted(kms, since).values()) <= 5 + 9 + 1  # ReEncrypt, Decrypt of branch keys, DescribeKey
    assert opened(keyring(key), key_ids)


def test_what_another_kms_wrapped_is_unwrapped_and_the_version_recorded(
    kms, key, keyring, key_store, tmp_path
):
    local = LocalKmsAdapter.create(tmp_path / "dev.key")
    key_ids = fill(Keyring(local, key_store, application="shop"))
    aws = AwsKmsAdapter(key, client=kms.client())
    since = len(kms.calls)
    both = Keyring([local, aws], key_store, application="shop")
    assert both.rewrap(aws) == Rewrap(done=21, added={aws.uri: 21}, dropped=21)
    assert counted(kms, since) == {"kms:DescribeKey": 2, "kms:Encrypt": 21, "kms:Decrypt": 21}
    assert versions(key_store) == {current(kms, key)}
    assert opened(keyring(key), key_ids)
    assert keyring(key).rewrap() == Rewrap(done=21)


def test_a_version_that_changed_while_keys_were_wrapped_is_not_recorded(
    kms, key, keyring, key_store, tmp_path, monkeypatch
):
    local = LocalKmsAdapter.create(tmp_path / "dev.key")
    fill(Keyring(local, key_store, application="shop"), 3)
    aws = AwsKmsAdapter(key, client=kms.client())
    wrap = aws.wrap_many

    def rotate_meanwhile(keys):
        wrapped = wrap(keys)
        kms.client().rotate_key_on_demand(KeyId=key)
        return wrapped

    monkeypatch.setattr(aws, "wrap_many", rotate_meanwhile)
    Keyring([local, aws], key_store, application="shop").rewrap(aws)
    assert versions(key_store) == {None}
    assert keyring(key).rewrap().added == {aws.uri: 4}


def test_an_alias_that_was_pointed_at_another_key_moves_what_the_old_one_wrapped(kms, keyring, key_store):
    alias = kms.create_key(alias="alias/shop")
    key_ids = fill(keyring(alias))
    old = key_store.page("shop")[0].wrappings[0].kek_uri.removeprefix("aws-kms://")
    new = kms.create_key()
    kms.client().update_alias(AliasName="alias/shop", TargetKeyId=new)
    worker = keyring(alias, old)
    assert worker.rewrap().added == {f"aws-kms://{new}": 21}
    assert opened(keyring(alias, old), key_ids)
    to = AwsKmsAdapter(alias, client=kms.client())
    keyring(alias, old).rewrap(to)
    assert opened(keyring(alias), key_ids)
    keyring(alias, old).rewrap(to)
    assert {w.kek_uri for r in key_store.page("shop") for w in r.wrappings} == {f"aws-kms://{new}"}


def test_a_multi_region_key_is_one_kek_in_every_region(kms, keyring, key_store):
    primary = kms.create_key(MultiRegion=True)
    kms.client().replicate_key(KeyId=primary, ReplicaRegion="us-west-2")
    key_ids = fill(keyring(primary), 3)
    kms.client().rotate_key_on_demand(KeyId=primary)
    there = AwsKmsAdapter(primary, client=kms.client(region="us-west-2"))
    elsewhere = Keyring(there, key_store, application="shop")
    assert elsewhere.rewrap().awaiting == 4
    assert opened(Keyring(there, key_store, application="shop"), key_ids)
    assert elsewhere.rewrap().dropped == 4
    assert keyring(primary).rewrap() == Rewrap(done=4)
    assert opened(keyring(primary), key_ids)


@pytest.mark.parametrize("fault", ["disabled", "away"])
def test_a_key_that_is_gone_half_way_is_told_and_the_rewrap_goes_on_later(
    kms, key, keyring, key_store, fault
):
    key_ids = fill(keyring(key), 40)
    kms.client().rotate_key_on_demand(KeyId=key)

    def fail(so_far):
        if so_far.keys == 20:
            if fault == "disabled":
                kms.client().disable_key(KeyId=key)
            else:
                kms.fail_always(NO_ANSWER)

    with pytest.raises(KmsKeyStateError if fault == "disabled" else KmsUnavailableError):
        keyring(key).rewrap(batch=10, progress=fail)
    kms.recover(), kms.client().enable_key(KeyId=key)
    since = len(kms.calls)
    rewrap = keyring(key).rewrap(batch=10)
    assert rewrap.awaiting == 41
    assert counted(kms, since)["kms:ReEncrypt"] == 21
    assert opened(keyring(key), key_ids)


def test_an_endpoint_that_tells_no_versions_moves_nothing(kms, key, keyring, key_store, monkeypatch):
    fill(keyring(key), 3)
    monkeypatch.setattr(AwsKmsAdapter, "current_version", lambda self: None)
    since = len(kms.calls)
    assert keyring(key).rewrap() == Rewrap(done=4)
    assert not counted(kms, since)


def test_an_adapter_says_which_names_are_its_keys(kms, key, adapter):
    other = kms.create_key()
    alias = AwsKmsAdapter(kms.create_key(alias="alias/a"), client=kms.client())
    assert adapter.is_named(f"aws-kms://{key}")
    assert not adapter.is_named(f"aws-kms://{other}")
    assert not adapter.is_named("vault-transit://transit/a")
    assert not alias.is_named(f"aws-kms://{key}")
    kms.fail_always("AccessDeniedException", action="kms:DescribeKey")
    unresolved = AwsKmsAdapter(kms.create_key(alias="alias/b"), client=kms.client())
    with pytest.raises(KmsForbiddenError):
        unresolved.is_named(f"aws-kms://{key}")
    assert not unresolved.is_named("vault-transit://transit/a")


def test_the_current_version_is_that_of_new_wrappings(kms, key, adapter, context):
    _, wrapped = adapter.generate_data_key(context)
    assert adapter.current_version() == wrapped.kek_version
    kms.client().rotate_key_on_demand(KeyId=key)
    (moved,) = adapter.rewrap_many([(wrapped, context)])
    assert isinstance(moved, WrappedKey)
    assert adapter.current_version() == moved.kek_version != wrapped.kek_version
    (foreign,) = adapter.rewrap_many(
        [(WrappedKey(kek_uri="fake://x", kek_version=None, ciphertext=b"x"), context)]
    )
    assert isinstance(foreign, NotMyKeyError)
