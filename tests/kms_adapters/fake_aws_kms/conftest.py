"""What the tests of the fake share."""

from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError

from eventseal_kms.testing import FakeAwsKms

CONTEXT = {"tenant": "acme", "purpose": "data"}


@pytest.fixture
def fake():
    return FakeAwsKms()


@pytest.fixture
def client(fake):
    return fake.client()


@pytest.fixture
def key(fake):
    return fake.create_key()


@pytest.fixture
def refused():
    @contextmanager
    def refused(code, message=None, status=400):
        with pytest.raises(ClientError, match=message) as raised:
            yield raised
        assert raised.value.response["Error"]["Code"] == code
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status

    return refused
