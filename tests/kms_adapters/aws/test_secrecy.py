"""No key in a log, a message, a traceback or a pickle."""

import base64
import logging
import pickle
import traceback
from dataclasses import replace

import pytest

from eventseal.errors import EventSealError
from eventseal_kms.aws import AwsKmsAdapter

KEY = bytes(range(100, 132))
TOKEN = "grant-token-of-the-test"


def forms(key):
    """The spellings in which a key could show."""
    plain = repr(key)[2:-1]
    return [
        plain,
        key.hex(),
        key.hex().upper(),
        base64.b64encode(key).decode(),
        base64.urlsafe_b64encode(key).decode(),
    ]


@pytest.fixture
def own(served, key):
    return AwsKmsAdapter(key, grant_tokens=[TOKEN])


def test_the_log_of_botocore_shows_no_key_at_any_level(own, context, caplog):
    """At DEBUG it writes every request and answer."""
    caplog.set_level(logging.DEBUG)
    generated, wrapped = own.generate_data_key(context)
    own.wrap(KEY, context)
    own.unwrap(wrapped, context)
    own.unwrap_many([(wrapped, context)] * 3)
    own.rewrap_many([(wrapped, context)])
    assert "botocore.endpoint" in {record.name for record in caplog.records}
    assert "hidden by EventSeal" in caplog.text
    for form in [*forms(generated), *forms(KEY)]:
        assert form not in caplog.text


def test_the_log_of_the_applications_own_calls_stays_as_it_was(kms, key, own, context, caplog):
    own.generate_data_key(context)
    caplog.set_level(logging.DEBUG)
    kms.client().describe_key(KeyId=key)
    assert "hidden by EventSeal" not in caplog.text
    assert "KeyMetadata" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException", "KMSInternalException"])
def test_no_error_shows_a_key_not_even_with_the_locals_of_its_traceback(own, kms, context, code):
    kms.fail_always(code, action="kms:Encrypt")
    secret = [KEY]
    with pytest.raises(EventSealError) as raised:
        own.wrap(secret.pop(), context)
    shown = "".join(
        traceback.TracebackException.from_exception(raised.value, capture_locals=True).format()
    ) + repr(vars(raised.value))
    assert code in shown
    assert raised.value.__context__ is None
    for form in forms(KEY):
        assert form not in shown


def test_wrong_parameters_are_not_repeated(kms, key, context):
    """botocore's own message for a parameter of a wrong type repeats its value."""
    client = kms.client()
    client.meta.events.register(
        "provide-client-params.kms", lambda params, **_: {**params, "Plaintext": [KEY]}
    )
    with pytest.raises(EventSealError, match="ParamValidationError") as raised:
        AwsKmsAdapter(key, client=client).wrap(bytes(32), context)
    assert repr(KEY)[2:-1] not in f"{raised.value} {vars(raised.value)}"


def test_errors_travel_between_processes(own, kms, context):
    _, wrapped = own.generate_data_key(context)
    kms.client().disable_key(KeyId=wrapped.kek_uri.removeprefix("aws-kms://"))
    with pytest.raises(EventSealError) as raised:
        own.unwrap(wrapped, context)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy), copy.remedy) == (
        type(raised.value),
        str(raised.value),
        raised.value.remedy,
    )
    assert copy.kek_uri == wrapped.kek_uri


def test_grant_tokens_show_nowhere(own, context):
    _, wrapped = own.generate_data_key(context)
    with pytest.raises(EventSealError) as raised:
        own.unwrap(replace(wrapped, ciphertext=b"x"), context)
    assert TOKEN not in f"{own!r} {raised.value} {raised.value.remedy}"
