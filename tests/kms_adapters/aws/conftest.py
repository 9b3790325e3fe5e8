"""What the tests of the AWS adapter share."""

from uuid import uuid4

import pytest

from eventseal.kms import EncryptionContext
from eventseal_kms.aws import AwsKmsAdapter
from eventseal_kms.testing import FakeAwsKms


@pytest.fixture
def kms():
    return FakeAwsKms()


@pytest.fixture
def key(kms):
    return kms.create_key()


@pytest.fixture
def adapter(kms, key):
    return AwsKmsAdapter(key, client=kms.client())


@pytest.fixture
def context():
    return EncryptionContext(uuid4(), "data", "shop")


@pytest.fixture
def no_aws_settings(monkeypatch, tmp_path):
    """As on a machine that never heard of AWS; nothing asks the instance's metadata."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def sign_in(kms, no_aws_settings, monkeypatch):
    """Put the caller's credentials into the environment."""

    def sign_in(caller=None):
        for name, value in kms.credentials(caller).items():
            monkeypatch.setenv(name.upper(), value)

    return sign_in


@pytest.fixture
def served(kms, sign_in, monkeypatch):
    """The fake behind the environment's endpoint: an adapter without client= finds it."""
    sign_in()
    with kms.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
        yield url
