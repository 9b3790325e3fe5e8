"""
Where moto lets pass what AWS refuses, or refuses what AWS does: the reasons why FakeAwsKms is there.

Each is a strict expected failure: when a release of moto mends one, its test says so.
"""

import boto3
import pytest
from moto import mock_aws

from eventseal.errors import KmsKeyStateError
from eventseal_kms.aws import AwsKmsAdapter


@pytest.fixture
def client():
    with mock_aws():
        yield boto3.client("kms", "eu-west-1", aws_access_key_id="testing", aws_secret_access_key="testing")


@pytest.fixture
def key(client):
    return client.create_key()["KeyMetadata"]["Arn"]


@pytest.fixture
def adapter(client, key):
    return AwsKmsAdapter(key, client=client)


def test_the_plain_path_works(adapter, context):
    key, wrapped = adapter.generate_data_key(context)
    assert adapter.unwrap(wrapped, context) == key


@pytest.mark.xfail(reason="moto's disabled keys still wrap and unwrap")
def test_a_disabled_key_is_refused(client, key, adapter, context):
    client.disable_key(KeyId=key)
    with pytest.raises(KmsKeyStateError):
        adapter.generate_data_key(context)


@pytest.mark.xfail(reason="moto's keys that wait for deletion still wrap and unwrap")
def test_a_key_that_waits_for_deletion_is_refused(client, key, adapter, context):
    client.schedule_key_deletion(KeyId=key)
    with pytest.raises(KmsKeyStateError):
        adapter.generate_data_key(context)


@pytest.mark.xfail(reason="moto cuts the ids of multi-Region keys off, and never opens what they sealed")
def test_a_multi_region_key_opens_what_it_wrapped(client, context):
    adapter = AwsKmsAdapter(client.create_key(MultiRegion=True)["KeyMetadata"]["Arn"], client=client)
    key, wrapped = adapter.generate_data_key(context)
    assert adapter.unwrap(wrapped, context) == key


@pytest.mark.xfail(reason="moto tells no key material ids")
def test_the_key_material_is_recorded(adapter, context):
    assert adapter.generate_data_key(context)[1].kek_version


@pytest.mark.xfail(reason="moto's encryption contexts run together")
def test_contexts_that_differ_in_their_boundaries_differ(client, key):
    blob = client.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "bc"})["CiphertextBlob"]
    with pytest.raises(client.exceptions.InvalidCiphertextException):
        client.decrypt(KeyId=key, CiphertextBlob=blob, EncryptionContext={"ab": "c"})


@pytest.mark.xfail(reason="moto does not know dry runs")
def test_a_dry_run_only_asks(client, key):
    with pytest.raises(client.exceptions.DryRunOperationException):
        client.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True)
