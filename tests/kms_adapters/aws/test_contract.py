"""The adapters' contract over everything that speaks KMS's protocol."""

import boto3
import pytest
from moto import mock_aws

from eventseal.errors import KmsForbiddenError
from eventseal.testing.kms_adapter_contract import (
    KmsAdapterContract,
    KmsBatchContract,
    KmsGenerationContract,
    KmsRewrapContract,
)
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import FakeAwsKms

GRANT_TOKEN = "a-grant-token-that-nobody-should-see"


class AwsContract(KmsAdapterContract, KmsBatchContract, KmsGenerationContract, KmsRewrapContract):
    """With a *kms* that has *key* and *other_key*."""

    @pytest.fixture
    def make_adapter(self, client, key):
        return lambda: AwsKmsAdapter(key, client=client, grant_tokens=[GRANT_TOKEN])

    @pytest.fixture
    def other_adapter(self, client, other_key):
        return AwsKmsAdapter(other_key, client=client)

    @pytest.fixture
    def secrets(self):
        return [GRANT_TOKEN]


class FakeContract(AwsContract):
    @pytest.fixture
    def kms(self):
        return FakeAwsKms()

    @pytest.fixture
    def client(self, kms):
        return kms.client()

    @pytest.fixture
    def key(self, kms):
        return kms.create_key()

    @pytest.fixture
    def other_key(self, kms):
        return kms.create_key()

    @pytest.fixture
    def count_calls(self, kms):
        return kms.count


class TestFakeInProcess(FakeContract):
    pass


class TestFakeOverHttp(FakeContract):
    @pytest.fixture
    def client(self, kms):
        with kms.serve() as url:
            yield boto3.client("kms", region_name=kms.region, endpoint_url=url, **kms.credentials())


class TestFakeUnderAnAlias(FakeContract):
    @pytest.fixture
    def key(self, kms):
        return kms.create_key(alias="alias/contract")


class TestFakeMultiRegion(FakeContract):
    @pytest.fixture
    def key(self, kms):
        return kms.create_key(MultiRegion=True)


class TestMoto(AwsContract):
    """moto is good for the plain path; its gaps are marked here, and in test_moto_gaps.py."""

    @pytest.mark.xfail(
        raises=KmsForbiddenError,
        reason="moto answers a blob of another key than KeyId with AccessDenied, not with IncorrectKey",
    )
    def test_another_keks_wrapping_under_our_name_is_refused(self, adapter, other_adapter, context):
        super().test_another_keks_wrapping_under_our_name_is_refused(adapter, other_adapter, context)

    @pytest.mark.xfail(
        raises=KmsForbiddenError,
        reason="moto answers a blob whose key id was edited with AccessDenied, not with InvalidCiphertext",
    )
    def test_an_edited_wrapping_gives_no_other_key(self, adapter, context):
        super().test_an_edited_wrapping_gives_no_other_key(adapter, context)

    @pytest.fixture
    def moto(self):
        with mock_aws():
            yield

    @pytest.fixture
    def client(self, moto):
        return boto3.client("kms", "eu-west-1", aws_access_key_id="testing", aws_secret_access_key="testing")

    @pytest.fixture
    def key(self, client):
        return client.create_key()["KeyMetadata"]["Arn"]

    @pytest.fixture
    def other_key(self, client):
        return client.create_key()["KeyMetadata"]["Arn"]

    @pytest.fixture
    def count_calls(self, client):
        sent = []
        client.meta.events.register("before-call.kms", lambda **_: sent.append(1))
        return lambda: len(sent)
