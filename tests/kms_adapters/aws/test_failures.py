"""What botocore raises, read by the one table."""

import pytest
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from eventseal.errors import (
    ConfigurationError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.failures import Attempt, failure_of

KEY = KeyArn.parse("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")


def answer(code, status=400, operation="Decrypt", message="", **headers):
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return boto.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, operation
    )


def error_of(caught):
    return failure_of(caught, Attempt(operation="Decrypt", key=KEY)).error


@pytest.mark.parametrize(
    ("caught", "error", "says"),
    [
        (
            boto.EndpointConnectionError(endpoint_url="https://kms"),
            KmsUnavailableError,
            "connection failed",
        ),
        (boto.ConnectTimeoutError(endpoint_url="https://kms"), KmsUnavailableError, "in time"),
        (boto.ReadTimeoutError(endpoint_url="https://kms"), KmsUnavailableError, "in time"),
        (
            boto.ConnectionClosedError(endpoint_url="https://kms"),
            KmsUnavailableError,
            "connection failed",
        ),
        (
            boto.ProxyConnectionError(proxy_url="http://proxy"),
            KmsUnavailableError,
            "connection failed",
        ),
        (boto.SSLError(endpoint_url="https://kms", error="bad"), KmsUnavailableError, "TLS"),
        (ResponseParserError("no JSON"), KmsUnavailableError, "does not come from KMS"),
        (boto.CredentialRetrievalError(provider="x", error_msg="y"), KmsUnavailableError, "credentials"),
        (boto.MetadataRetrievalError(error_msg="y"), KmsUnavailableError, "credentials"),
        (boto.NoCredentialsError(), ConfigurationError, "no AWS credentials"),
        (
            boto.PartialCredentialsError(provider="env", cred_var="X"),
            ConfigurationError,
            "credentials are incomplete",
        ),
        (boto.ProfileNotFound(profile="nobody"), ConfigurationError, "no such profile"),
        (boto.UnauthorizedSSOTokenError(), KmsForbiddenError, "sign-in"),
        (boto.TokenRetrievalError(provider="sso", error_msg="y"), KmsForbiddenError, "sign-in"),
        (boto.BotoCoreError(), KmsError, "could not make the call"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_botocore_raises_by_itself(caught, error, says):
    found = error_of(caught)
    assert type(found) is error
    assert says in str(found)
    assert type(caught).__name__ in str(found)
    assert str(KEY) in str(found)
    assert found.kek_uri == KEY.uri


def test_a_remedy_fits_what_happened():
    assert "AWS_CA_BUNDLE" in error_of(boto.SSLError(endpoint_url="https://kms", error="bad")).remedy
    assert "metadata service" in error_of(boto.MetadataRetrievalError(error_msg="y")).remedy
    assert "aws sso login" in error_of(boto.UnauthorizedSSOTokenError()).remedy


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"x-amz-retry-after": "1500"}, 1.5),
        ({}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_how_long_to_wait_is_passed_on(headers, seconds):
    assert error_of(answer("ThrottlingException", **headers)).retry_after == seconds


def test_a_failed_call_for_the_credentials_is_told_from_one_of_kms():
    """botocore asks STS for them under way, and its refusal is not about the KMS key."""
    found = error_of(answer("AccessDenied", 403, "AssumeRoleWithWebIdentity", "not you"))
    assert type(found) is KmsForbiddenError
    assert "AssumeRoleWithWebIdentity, for the credentials" in str(found)
    assert "kms:" not in found.remedy
    assert type(error_of(answer("Throttling", 400, "AssumeRole"))) is KmsUnavailableError


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("SomethingNew", 400, KmsError),
        ("SomethingNew", 503, KmsUnavailableError),
        ("", 500, KmsUnavailableError),
        ("413", 413, KmsError),
        ("LimitExceededException", 400, KmsError),
        ("OptInRequired", 403, KmsForbiddenError),
        ("SignatureDoesNotMatch", 403, KmsForbiddenError),
        ("InvalidKeyUsageException", 400, KmsKeyStateError),
        ("ValidationException", 400, ConfigurationError),
    ],
)
def test_codes_beside_those_of_the_fault_tests(code, status, error):
    assert type(error_of(answer(code, status))) is error


def test_an_answer_that_lacks_everything_is_still_an_error():
    assert type(error_of(boto.ClientError({}, "Decrypt"))) is KmsError


def test_a_long_text_is_cut():
    assert len(str(error_of(answer("ValidationException", message="x" * 5000)))) < 1000
