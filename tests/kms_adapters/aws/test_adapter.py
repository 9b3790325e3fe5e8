"""What is AWS's own, beside the contract that all adapters keep."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import botocore.session
import pytest

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    NotMyKeyError,
)
from eventseal.kms import EncryptionContext, adapter_from_uri
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import NO_ANSWER

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def latest(kms):
    return kms.calls[-1]


class TestMaking:
    """What is wrong in the settings is said before anything is called."""

    @pytest.mark.parametrize("uri", [KEY, f"aws-kms://{KEY}"])
    def test_a_uri_finds_the_adapter(self, uri):
        adapter = adapter_from_uri(uri)
        assert isinstance(adapter, AwsKmsAdapter)
        assert adapter.uri == f"aws-kms://{KEY}"
        assert repr(adapter) == f"AwsKmsAdapter('aws-kms://{KEY}')"

    def test_a_key_of_another_region_than_the_clients_is_refused(self, kms, key):
        with pytest.raises(ConfigurationError, match=r"eu-west-1.*us-east-1") as raised:
            AwsKmsAdapter(key, client=kms.client(region="us-east-1"))
        assert "mrk-" in raised.value.remedy

    def test_an_alias_of_another_region_is_refused(self, key):
        with pytest.raises(ConfigurationError, match="us-east-1"):
            AwsKmsAdapter("arn:aws:kms:eu-west-1:111122223333:alias/shop", region="us-east-1")

    def test_a_region_that_is_not_the_clients_is_refused(self, kms, key):
        with pytest.raises(ConfigurationError, match="us-east-1"):
            AwsKmsAdapter(key, client=kms.client(), region="us-east-1")

    def test_an_alias_of_aws_itself_is_refused(self):
        with pytest.raises(ConfigurationError, match="alias/aws/"):
            AwsKmsAdapter("arn:aws:kms:eu-west-1:111122223333:alias/aws/s3")

    @pytest.mark.parametrize("tokens", ["one", ["token"] * 11])
    def test_grant_tokens_are_a_short_list(self, tokens):
        with pytest.raises(ConfigurationError, match="grant_tokens"):
            AwsKmsAdapter(KEY, grant_tokens=tokens)

    def test_it_looks_for_no_credentials_and_makes_no_client(self, monkeypatch):
        def fail(*_, **__):
            raise AssertionError("a client was made")

        monkeypatch.setattr(botocore.session.Session, "__init__", fail)
        assert AwsKmsAdapter(KEY).uri

    def test_without_boto3_it_says_how_to_install_it(self):
        program = (
            "import sys\n"
            "sys.modules['boto3'] = None\n"
            "from eventseal.errors import ConfigurationError\n"
            "from eventseal.kms import adapter_from_uri\n"
            "try:\n"
            f"    adapter_from_uri({KEY!r})\n"
            "except ConfigurationError as error:\n"
            "    print(error, '|', error.remedy)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.count("pip install 'eventseal[aws]'") == 2


class TestCalls:
    """What goes to KMS, and what is kept of its answers."""

    def test_every_call_names_the_key_and_the_context(self, kms, key, adapter, context):
        data_key, wrapped = adapter.generate_data_key(context)
        adapter.wrap(data_key, context)
        adapter.unwrap(wrapped, context)
        adapter.rewrap_many([(wrapped, context)])
        actions = ["kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt"]
        calls = kms.calls[-4:]
        assert [call.action for call in calls] == actions
        assert {call.key for call in calls} == {key}
        assert all(call.context == context.as_mapping() for call in calls)

    def test_unwrapping_pins_the_key(self, kms, key, context):
        """Without it, KMS opens whatever key the blob names."""
        sent = []
        client = kms.client()
        client.meta.events.register("provide-client-params.kms", lambda params, **_: sent.append(params))
        adapter = AwsKmsAdapter(key, client=client)
        _, wrapped = adapter.generate_data_key(context)
        adapter.unwrap(wrapped, context)
        adapter.rewrap_many([(wrapped, context)])
        assert sent[1]["KeyId"] == key
        assert (sent[2]["SourceKeyId"], sent[2]["DestinationKeyId"]) == (key, key)

    def test_grant_tokens_go_with_every_call(self, kms, context):
        alias = kms.create_key(alias="alias/shop")
        before = kms.count()
        adapter = AwsKmsAdapter(alias, client=kms.client(), grant_tokens=["token"])
        key, wrapped = adapter.generate_data_key(context)
        adapter.wrap(key, context)
        adapter.unwrap(wrapped, context)
        adapter.rewrap_many([(wrapped, context)])
        adapter.check()
        assert all(call.grant_tokens == ("token",) for call in kms.calls[before:])

    def test_the_key_material_is_recorded_where_kms_tells_it(self, kms, key, adapter, context):
        first = kms.client().describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]
        data_key, generated = adapter.generate_data_key(context)
        assert generated.kek_version == first
        wrapped = adapter.wrap(data_key, context)
        assert wrapped.kek_version is None
        kms.client().rotate_key_on_demand(KeyId=key)
        second = kms.client().describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"]
        assert second != first
        assert adapter.unwrap(generated, context) == data_key
        moved = adapter.rewrap_many([(generated, context), (wrapped, context)])
        assert [one.kek_version for one in moved] == [second, second]
        assert [adapter.unwrap(one, context) for one in moved] == [data_key, data_key]

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_only_keys_of_32_bytes_are_wrapped(self, kms, adapter, context, size):
        before = kms.count()
        with pytest.raises(ValueError, match=f"has {size} bytes, not 32"):
            adapter.wrap(bytes(size), context)
        assert kms.count() == before

    def test_a_wrapping_that_holds_something_else_is_refused(self, kms, key, adapter, context):
        blob = kms.client().encrypt(KeyId=key, Plaintext=b"short", EncryptionContext=context.as_mapping())
        _, wrapped = adapter.generate_data_key(context)
        with pytest.raises(IntegrityError, match="5 bytes"):
            adapter.unwrap(replace(wrapped, ciphertext=blob["CiphertextBlob"]), context)

    @pytest.mark.parametrize("size", [0, 6145])
    def test_a_wrapping_of_a_size_that_kms_does_not_make_is_refused_without_a_call(
        self, kms, adapter, context, size
    ):
        _, wrapped = adapter.generate_data_key(context)
        before = kms.count()
        wrong = replace(wrapped, ciphertext=bytes(size))
        with pytest.raises(IntegrityError, match=f"{size} bytes"):
            adapter.unwrap(wrong, context)
        assert isinstance(adapter.rewrap_many([(wrong, context)])[0], IntegrityError)
        assert kms.count() == before


class TestBadKeys:
    """A KMS key that does not do; each with its own error and what to do."""

    def test_a_disabled_key_works_again_once_enabled(self, kms, key, adapter, context):
        _, wrapped = adapter.generate_data_key(context)
        kms.client().disable_key(KeyId=key)
        for call in (lambda: adapter.unwrap(wrapped, context), lambda: adapter.generate_data_key(context)):
            with pytest.raises(KmsKeyStateError, match="disabled") as raised:
                call()
            assert "enable-key" in raised.value.remedy
            assert key in str(raised.value)
        kms.client().enable_key(KeyId=key)
        assert adapter.unwrap(wrapped, context)

    def test_a_key_that_waits_for_deletion_can_be_kept(self, kms, key, adapter, context):
        _, wrapped = adapter.generate_data_key(context)
        kms.client().schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        with pytest.raises(KmsKeyStateError, match="pending deletion") as raised:
            adapter.unwrap(wrapped, context)
        assert "cancel-key-deletion" in raised.value.remedy
        kms.client().cancel_key_deletion(KeyId=key)
        kms.client().enable_key(KeyId=key)
        assert adapter.unwrap(wrapped, context)

    def test_a_deleted_key_is_gone(self, kms, key, adapter, context):
        _, wrapped = adapter.generate_data_key(context)
        kms.client().schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        kms.advance(timedelta(days=8))
        with pytest.raises(KmsKeyStateError, match="no such key") as raised:
            adapter.unwrap(wrapped, context)
        assert "never returns" in raised.value.remedy

    def test_a_key_that_never_was(self, kms, context):
        with pytest.raises(KmsKeyStateError, match="no such key"):
            AwsKmsAdapter(KEY, client=kms.client()).generate_data_key(context)

    def test_a_key_of_the_wrong_kind(self, kms, context):
        key = kms.create_key(KeyUsage="GENERATE_VERIFY_MAC", KeySpec="HMAC_256")
        with pytest.raises(KmsKeyStateError, match="wrong kind") as raised:
            AwsKmsAdapter(key, client=kms.client()).generate_data_key(context)
        assert "ENCRYPT_DECRYPT" in raised.value.remedy

    def test_an_account_that_grants_nothing(self, kms, key, context):
        stranger = kms.client("arn:aws:iam::999988887777:role/stranger")
        with pytest.raises(
            KmsForbiddenError, match=r"AccessDenied.*999988887777.*kms:GenerateDataKey"
        ) as raised:
            AwsKmsAdapter(key, client=stranger).generate_data_key(context)
        assert f'"Resource": ["{key}"]' in raised.value.remedy
        assert '"kms:EncryptionContext:eventseal:application": "shop"' in raised.value.remedy


class TestAliases:
    """An alias is resolved once; what is stored names the key."""

    @pytest.fixture
    def alias(self, kms):
        return kms.create_key(alias="alias/shop")

    @pytest.fixture
    def target(self, kms, alias):
        return kms.client().describe_key(KeyId=alias)["KeyMetadata"]["Arn"]

    @pytest.fixture
    def adapter(self, kms, alias):
        return AwsKmsAdapter(alias, client=kms.client())

    def repoint(self, kms, alias):
        key = kms.create_key()
        kms.client().update_alias(AliasName=alias.rpartition(":")[2], TargetKeyId=key)
        return key

    def test_the_key_that_is_deleted_is_the_one_that_was_described(
        self, kms, adapter, alias, target, monkeypatch
    ):
        described = AwsKmsAdapter._described

        def moved_behind(adapter, key):
            facts = described(adapter, key)
            self.repoint(kms, alias)
            adapter._kms_key.successor_of(key)  # as a thread does that finds the key unusable
            return facts

        monkeypatch.setattr(AwsKmsAdapter, "_described", moved_behind)
        adapter.schedule_deletion(7)
        assert kms.client().describe_key(KeyId=target)["KeyMetadata"]["KeyState"] == "PendingDeletion"

    def test_what_is_stored_names_the_key_behind_it(self, kms, adapter, alias, target, context):
        before = kms.count("kms:DescribeKey")
        key, wrapped = adapter.generate_data_key(context)
        adapter.generate_data_key(context)
        assert adapter.unwrap(wrapped, context) == key
        assert wrapped.kek_uri == f"aws-kms://{target}"
        assert adapter.uri == f"aws-kms://{alias}"
        assert kms.count("kms:DescribeKey") == before + 1

    def test_fifty_threads_resolve_it_once(self, kms, adapter):
        before = kms.count("kms:DescribeKey")
        barrier = threading.Barrier(50)

        def wrap(_):
            barrier.wait()
            return adapter.wrap(bytes(32), EncryptionContext(uuid4(), "data", "shop"))

        with ThreadPoolExecutor(50) as pool:
            assert len(list(pool.map(wrap, range(50)))) == 50
        assert kms.count("kms:DescribeKey") == before + 1

    def test_unwrapping_resolves_it_only_for_what_may_be_its_own(self, kms, adapter, target, context):
        _, wrapped = AwsKmsAdapter(target, client=kms.client()).generate_data_key(context)
        before = kms.count()
        for other in (
            wrapped.kek_uri.replace("eu-west-1", "us-east-1"),
            wrapped.kek_uri.replace("111122223333", "444455556666"),
            wrapped.kek_uri.replace("arn:aws:", "arn:aws-cn:"),
            adapter.uri,
            "vault-transit://transit/shop",
        ):
            with pytest.raises(NotMyKeyError):
                adapter.unwrap(replace(wrapped, kek_uri=other), context)
        assert kms.count() == before
        assert adapter.unwrap(wrapped, context)
        assert kms.count("kms:DescribeKey") == 2  # of this test's own fixture, and one

    def test_a_repointed_alias_is_named_with_both_keys_and_what_to_do(
        self, kms, adapter, alias, target, context
    ):
        _, wrapped = adapter.generate_data_key(context)
        new = self.repoint(kms, alias)
        later = AwsKmsAdapter(alias, client=kms.client())
        with pytest.raises(NotMyKeyError) as raised:
            later.unwrap(wrapped, context)
        message = str(raised.value)
        assert alias in message
        assert target in message
        assert new in message
        assert f"{alias},{target}" in raised.value.remedy
        assert later.rewrap_many([(wrapped, context)])[0].kek_uri == f"aws-kms://{new}"

    def test_a_running_process_stays_with_the_key_it_found(self, kms, adapter, alias, target, context):
        key, wrapped = adapter.generate_data_key(context)
        self.repoint(kms, alias)
        assert adapter.unwrap(wrapped, context) == key
        assert adapter.generate_data_key(context)[1].kek_uri == f"aws-kms://{target}"

    def test_it_moves_on_when_the_key_it_found_is_disabled(self, kms, adapter, alias, target, context):
        _, wrapped = adapter.generate_data_key(context)
        new = self.repoint(kms, alias)
        kms.client().disable_key(KeyId=target)
        assert adapter.generate_data_key(context)[1].kek_uri == f"aws-kms://{new}"
        assert adapter.wrap(bytes(32), context).kek_uri == f"aws-kms://{new}"
        with pytest.raises(NotMyKeyError, match=new):
            adapter.unwrap(wrapped, context)

    def test_a_disabled_key_is_named_if_the_alias_still_names_it(self, kms, adapter, target, context):
        adapter.generate_data_key(context)
        kms.client().disable_key(KeyId=target)
        before = kms.count("kms:GenerateDataKey")
        with pytest.raises(KmsKeyStateError, match=target):
            adapter.generate_data_key(context)
        assert kms.count("kms:GenerateDataKey") == before + 1

    def test_an_alias_that_is_not_there(self, kms, context):
        missing = "arn:aws:kms:eu-west-1:111122223333:alias/nothing"
        with pytest.raises(KmsKeyStateError, match="alias/nothing"):
            AwsKmsAdapter(missing, client=kms.client()).generate_data_key(context)

    def test_an_outage_while_resolving_is_an_outage_and_is_forgotten(self, kms, adapter, target, context):
        _, wrapped = AwsKmsAdapter(target, client=kms.client()).generate_data_key(context)
        kms.fail_always(NO_ANSWER)
        for call in (lambda: adapter.unwrap(wrapped, context), lambda: adapter.generate_data_key(context)):
            with pytest.raises(KmsUnavailableError):
                call()
        kms.recover()
        assert adapter.unwrap(wrapped, context)

    def test_who_may_not_resolve_it_is_told_which_permission_is_missing(self, kms, alias, context):
        writer = kms.client("arn:aws:iam::111122223333:role/writer")
        with pytest.raises(KmsForbiddenError, match="kms:DescribeKey") as raised:
            AwsKmsAdapter(alias, client=writer).generate_data_key(context)
        assert '"kms:DescribeKey"' in raised.value.remedy


class TestMultiRegionKeys:
    """One id in several Regions; each process calls its own."""

    @pytest.fixture
    def key(self, kms):
        key = kms.create_key(MultiRegion=True)
        kms.client().replicate_key(KeyId=key, ReplicaRegion="us-east-1")
        return key

    @pytest.fixture
    def abroad(self, kms, key):
        return AwsKmsAdapter(key, client=kms.client(region="us-east-1"))

    def test_a_replica_opens_what_the_primary_wrapped_and_the_reverse(self, kms, adapter, abroad, context):
        for writer, reader, region in ((adapter, abroad, "us-east-1"), (abroad, adapter, "eu-west-1")):
            key, wrapped = writer.generate_data_key(context)
            assert reader.unwrap(wrapped, context) == key
            assert latest(kms).region == region
            assert f":{region}:" in latest(kms).key

    def test_each_stores_its_own_regions_arn(self, key, adapter, abroad, context):
        assert adapter.wrap(bytes(32), context).kek_uri == f"aws-kms://{key}"
        there = key.replace("eu-west-1", "us-east-1")
        assert abroad.wrap(bytes(32), context).kek_uri == abroad.uri == f"aws-kms://{there}"

    def test_rewrapping_takes_a_replicas_wrapping(self, adapter, abroad, context):
        key, wrapped = adapter.generate_data_key(context)
        moved = abroad.rewrap_many([(wrapped, context)])[0]
        assert moved.kek_uri == abroad.uri
        assert adapter.unwrap(moved, context) == key

    def test_another_multi_region_key_is_not_mine(self, kms, abroad, context):
        other = kms.create_key(MultiRegion=True)
        _, wrapped = AwsKmsAdapter(other, client=kms.client()).generate_data_key(context)
        before = kms.count()
        with pytest.raises(NotMyKeyError):
            abroad.unwrap(wrapped, context)
        assert kms.count() == before

    def test_an_alias_of_a_replica_opens_what_the_primary_wrapped(self, kms, key, adapter, context):
        client = kms.client(region="us-east-1")
        client.create_alias(AliasName="alias/shop", TargetKeyId=key.rpartition("/")[2])
        data_key, wrapped = adapter.generate_data_key(context)
        alias = "arn:aws:kms:us-east-1:111122223333:alias/shop"
        assert AwsKmsAdapter(alias, client=client).unwrap(wrapped, context) == data_key


class TestRewrapping:
    """From key to key inside KMS; the caller never sees the key."""

    @pytest.fixture
    def target(self, kms):
        return AwsKmsAdapter(kms.create_key(), client=kms.client())

    def test_a_key_moves_to_another_kek_of_the_region(self, kms, adapter, target, context):
        key, wrapped = adapter.generate_data_key(context)
        before = kms.count("kms:Decrypt")
        moved = target.rewrap_many([(wrapped, context)])[0]
        assert kms.count("kms:Decrypt") == before
        assert moved.kek_uri == target.uri
        assert target.unwrap(moved, context) == key

    def test_a_key_moves_between_accounts(self, kms, adapter, context):
        key, wrapped = adapter.generate_data_key(context)
        there = "arn:aws:iam::444455556666:root"
        client = kms.client(there)
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"AWS": ["444455556666", "111122223333"]}, "Action": "kms:*"}
            ],
        }
        arn = client.create_key(Policy=__import__("json").dumps(policy))["KeyMetadata"]["Arn"]
        target = AwsKmsAdapter(arn, client=kms.client())
        moved = target.rewrap_many([(wrapped, context)])[0]
        assert AwsKmsAdapter(arn, client=client).unwrap(moved, context) == key

    def test_a_wrapping_of_another_region_or_service_is_not_mine(self, kms, target, context):
        abroad = AwsKmsAdapter(kms.create_key(region="us-east-1"), client=kms.client(region="us-east-1"))
        _, wrapped = abroad.generate_data_key(context)
        before = kms.count()
        outcomes = target.rewrap_many(
            [(wrapped, context), (replace(wrapped, kek_uri="vault-transit://transit/shop"), context)]
        )
        assert [type(outcome) for outcome in outcomes] == [NotMyKeyError, NotMyKeyError]
        assert kms.count() == before

    def test_where_the_endpoint_has_no_reencrypt_it_unwraps_and_wraps(self, kms, adapter, target, context):
        key, wrapped = adapter.generate_data_key(context)
        kms.fail_always("UnknownOperationException", action="kms:ReEncrypt")
        first, second = (target.rewrap_many([(wrapped, context)])[0] for _ in range(2))
        assert target.unwrap(first, context) == target.unwrap(second, context) == key
        assert kms.count("kms:ReEncrypt") == 1  # asked once, then known

    def test_the_missing_permission_is_named_by_its_own_key(self, kms, adapter, target, context):
        _, wrapped = adapter.generate_data_key(context)
        caller = "arn:aws:iam::111122223333:role/rotator"
        rotator = AwsKmsAdapter(target.uri, client=kms.client(caller))
        error = rotator.rewrap_many([(wrapped, context)])[0]
        assert isinstance(error, KmsForbiddenError)
        assert '"kms:ReEncryptFrom"' in error.remedy
        assert adapter.uri.removeprefix("aws-kms://") in error.remedy


class TestProcesses:
    def test_after_a_fork_the_child_calls_with_a_client_of_its_own(self, served, key, context):
        adapter = AwsKmsAdapter(key)
        data_key, wrapped = adapter.generate_data_key(context)
        before = adapter._calls.connection()
        with before.resolving, before._making:  # as if another thread were in the middle of it
            child = os.fork()
            if child == 0:
                right = False
                try:
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.alarm(60)  # a deadlock ends it
                    right = adapter.unwrap(wrapped, context) == data_key
                finally:
                    os._exit(0 if right and adapter._calls.connection() is not before else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert adapter.unwrap(wrapped, context) == data_key
