"""
What goes wrong on the way to KMS and inside it.

For each: the class, the number of tries, the time it takes at most, and that the same adapter works again as
soon as the cause is gone.
"""

import time
from urllib.parse import urlsplit

import pytest
from tests.fixtures.fault_proxy import fault_proxy

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal_kms.aws import AwsKmsAdapter, clients

HEALED_WITHIN = 60.0  # it heals at the first call: this only bounds a call that hangs
SLACK = 4  # how much slower than this project's own machines a busy one may be
SILENT, ANSWERING = 1.0, 60.0
"""Time-outs where nothing answers, and where something does: there none may run out on a busy machine."""
TRIES = clients.ATTEMPTS


@pytest.fixture
def time_out(request, monkeypatch):
    """Time-outs of tests; the tries stay those of production."""
    seconds = getattr(request, "param", ANSWERING)
    monkeypatch.setattr(clients, "CONNECT_TIMEOUT", seconds)
    monkeypatch.setattr(clients, "READ_TIMEOUT", seconds)


@pytest.fixture
def proxy(served, monkeypatch):
    address = urlsplit(served)
    with fault_proxy((address.hostname, address.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", proxy.url)
        yield proxy


@pytest.fixture
def own(key, proxy):
    """An adapter with the client that it makes for itself."""
    return AwsKmsAdapter(key)


@pytest.fixture
def wrapped(own, context):
    return own.generate_data_key(context)[1]


def unwrap_fails(adapter, wrapped, context, error, within):
    begin = time.monotonic()
    with pytest.raises(error) as raised:
        adapter.unwrap(wrapped, context)
    assert time.monotonic() - begin < SLACK * within
    assert type(raised.value) is error
    assert raised.value.kek_uri == wrapped.kek_uri
    assert "kms:Decrypt" in str(raised.value)
    assert wrapped.kek_uri.removeprefix("aws-kms://") in str(raised.value)
    assert raised.value.remedy
    return raised.value


def unwrap_works(adapter, wrapped, context):
    begin = time.monotonic()
    assert len(adapter.unwrap(wrapped, context)) == 32
    assert time.monotonic() - begin < HEALED_WITHIN


class TestOnTheWay:
    """The endpoint cannot be reached, or something else answers: an outage, and never anything else."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("time_out", "break_", "tries", "within"),
        [
            (ANSWERING, lambda proxy: proxy.refuse(), 0, 2.0),
            (SILENT, lambda proxy: proxy.swallow_connections(), 0, 6.0),
            (SILENT, lambda proxy: proxy.hang(), TRIES, 6.0),
            (ANSWERING, lambda proxy: proxy.reset(), TRIES, 3.0),
            (ANSWERING, lambda proxy: proxy.cut_answers_after(40), 1, 2.0),
            (ANSWERING, lambda proxy: proxy.cut_answers_after(300), 1, 2.0),
            (SILENT, lambda proxy: proxy.delay(60), TRIES, 6.0),
            (ANSWERING, lambda proxy: proxy.answer(503, b"<html>back soon</html>"), TRIES, 3.0),
            (ANSWERING, lambda proxy: proxy.answer(502, b""), TRIES, 3.0),
            (ANSWERING, lambda proxy: proxy.answer(200, b"<html>sign in to the hotel's wifi</html>"), 1, 2.0),
            (ANSWERING, lambda proxy: proxy.answer(200, b"{}", "application/x-amz-json-1.1"), 1, 2.0),
        ],
        indirect=["time_out"],
        ids=[
            "refused", "connections swallowed", "hangs", "reset", "headers cut", "body cut", "too slow",
            "gateway says 503", "gateway says 502", "captive portal", "empty answer",
        ],
    )  # fmt: skip
    def test_an_endpoint_out_of_reach_is_an_outage(
        self, time_out, own, proxy, wrapped, context, break_, tries, within
    ):
        break_(proxy)
        before = proxy.requests
        unwrap_fails_somehow(own, wrapped, context, within)
        assert proxy.requests - before == tries
        proxy.recover()
        unwrap_works(own, wrapped, context)

    @pytest.mark.slow
    def test_with_its_own_time_outs_a_silent_endpoint_costs_seconds(self, own, proxy, wrapped, context):
        proxy.hang()
        # 36 s with SLACK: botocore's own time-outs of 60 s would make it three minutes.
        unwrap_fails(own, wrapped, context, KmsUnavailableError, within=9)

    def test_one_bad_moment_is_not_noticed(self, own, proxy, kms, wrapped, context):
        proxy.cut()
        unwrap_works(own, wrapped, context)


def unwrap_fails_somehow(adapter, wrapped, context, within):
    begin = time.monotonic()
    with pytest.raises(KmsUnavailableError) as raised:
        adapter.unwrap(wrapped, context)
    assert time.monotonic() - begin < SLACK * within
    assert raised.value.kek_uri == wrapped.kek_uri


@pytest.mark.usefixtures("time_out")
class TestInside:
    """KMS answers, and says no."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("code", "tries", "error", "within"),
        [
            ("ThrottlingException", TRIES, KmsUnavailableError, 4.0),
            ("KMSInternalException", TRIES, KmsUnavailableError, 4.0),
            ("DependencyTimeoutException", TRIES, KmsUnavailableError, 4.0),
            ("KeyUnavailableException", TRIES, KmsUnavailableError, 4.0),
            ("DisabledException", 1, KmsKeyStateError, 2.0),
            ("KMSInvalidStateException", 1, KmsKeyStateError, 2.0),
            ("NotFoundException", 1, KmsKeyStateError, 2.0),
            ("InvalidKeyUsageException", 1, KmsKeyStateError, 2.0),
            ("AccessDeniedException", 1, KmsForbiddenError, 2.0),
            ("InvalidGrantTokenException", 1, KmsForbiddenError, 2.0),
            ("IncorrectKeyException", 1, IntegrityError, 2.0),
            ("InvalidCiphertextException", 1, IntegrityError, 2.0),
        ],
    )
    def test_each_code_has_its_class_and_tries(self, own, kms, wrapped, context, code, tries, error, within):
        kms.fail_always(code)
        before = kms.count()
        raised = unwrap_fails(own, wrapped, context, error, within)
        assert code in str(raised)
        assert kms.count() - before == tries
        kms.recover()
        unwrap_works(own, wrapped, context)

    @pytest.mark.slow
    @pytest.mark.parametrize("code", ["ThrottlingException", "KMSInternalException"])
    def test_what_passes_is_not_noticed(self, own, kms, wrapped, context, code):
        kms.fail_next(TRIES - 1, code)
        assert len(own.unwrap(wrapped, context)) == 32

    def test_a_code_that_is_not_known_is_repeated_only_if_the_server_is_at_fault(
        self, own, proxy, wrapped, context
    ):
        body = b'{"__type": "NewException", "message": "of next year"}'
        for status, error in ((500, KmsUnavailableError), (400, KmsError)):
            proxy.answer(status, body, "application/x-amz-json-1.1")
            raised = unwrap_fails(own, wrapped, context, error, within=4)
            assert "NewException: of next year" in str(raised)


@pytest.mark.usefixtures("time_out")
class TestCredentials:
    """AWS does not know the caller."""

    def test_expired_credentials_are_forbidden(self, own, kms, wrapped, context):
        kms.expire_credentials()
        before = kms.count()
        raised = unwrap_fails(own, wrapped, context, KmsForbiddenError, within=2)
        assert "aws sso login" in raised.remedy
        assert kms.count() - before == 2  # once more, with what is there now

    def test_credentials_renewed_by_something_else_are_taken_up(self, own, kms, wrapped, context, sign_in):
        kms.expire_credentials()
        sign_in()
        unwrap_works(own, wrapped, context)

    @pytest.mark.slow
    def test_unknown_credentials_are_forbidden(self, own, proxy, wrapped, context, monkeypatch, sign_in, kms):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
        with pytest.raises(KmsForbiddenError, match="UnrecognizedClientException"):
            AwsKmsAdapter(wrapped.kek_uri).unwrap(wrapped, context)

    def test_a_given_client_keeps_its_credentials(self, adapter, kms, context):
        _, wrapped = adapter.generate_data_key(context)
        kms.expire_credentials()
        before = kms.count()
        unwrap_fails(adapter, wrapped, context, KmsForbiddenError, within=2)
        assert kms.count() - before == 1

    @pytest.mark.slow
    def test_no_credentials_is_a_matter_of_settings_until_there_are_some(
        self, key, served, no_aws_settings, monkeypatch, sign_in, context
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        adapter = AwsKmsAdapter(key)
        with pytest.raises(ConfigurationError, match="no AWS credentials") as raised:
            adapter.generate_data_key(context)
        assert "AWS_PROFILE" in raised.value.remedy
        sign_in()
        assert adapter.generate_data_key(context)

    def test_a_profile_that_is_not_there_is_a_matter_of_settings(
        self, key, no_aws_settings, monkeypatch, context
    ):
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(ConfigurationError, match="nobody"):
            AwsKmsAdapter(key).generate_data_key(context)
