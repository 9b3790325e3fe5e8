"""The call log, faults and delays on command, credentials, and the same over HTTP."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from eventseal_kms.testing import NO_ANSWER

ROLE = "arn:aws:iam::111122223333:role/reader"
CONTEXT = {"tenant": "acme"}


@pytest.fixture
def over_http(fake):
    """A client that boto3 made for an address, tried once a call."""
    with fake.serve() as url:
        config = Config(retries={"total_max_attempts": 1})
        yield boto3.client(
            "kms", region_name=fake.region, endpoint_url=url, config=config, **fake.credentials()
        )


def describe(client, key):
    return client.describe_key(KeyId=key)["KeyMetadata"]["Arn"]


def test_the_log_says_who_asked_for_what(fake, key):
    fake.attach_policy(
        ROLE,
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]},
    )
    fake.client(ROLE).encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT, GrantTokens=["t"])
    call = fake.calls[-1]
    assert (call.action, call.caller, call.region, call.key) == ("kms:Encrypt", ROLE, "eu-west-1", key)
    assert (call.context, call.grant_tokens, call.dry_run, call.error) == (CONTEXT, ("t",), False, None)


def test_the_log_has_what_was_refused(fake, client):
    with pytest.raises(ClientError):
        client.describe_key(KeyId="alias/none")
    assert (fake.calls[-1].action, fake.calls[-1].error) == ("kms:DescribeKey", "NotFoundException")


def test_the_log_is_counted_by_action(fake, client, key):
    describe(client, key)
    assert fake.count("kms:DescribeKey") == 1
    assert fake.count("kms:DescribeKey", "kms:CreateKey") == fake.count() == 2


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("KMSInternalException", 500),
        ("KeyUnavailableException", 500),
        ("DependencyTimeoutException", 503),
    ],
)
def test_the_next_calls_fail_as_told(fake, client, key, refused, code, status):
    fake.fail_next(2, code)
    for _ in range(2):
        with refused(code, status=status):
            describe(client, key)
    assert describe(client, key) == key


def test_one_action_fails_and_the_others_do_not(fake, client, key, refused):
    fake.fail_always("ThrottlingException", action="kms:Encrypt")
    for _ in range(3):
        with refused("ThrottlingException"):
            client.encrypt(KeyId=key, Plaintext=b"x")
    assert describe(client, key) == key
    fake.recover()
    assert client.encrypt(KeyId=key, Plaintext=b"x")


def test_a_client_that_repeats_gets_over_what_passes(fake, key):
    client = fake.client(config=Config(retries={"mode": "standard", "total_max_attempts": 3}))
    fake.fail_next(2, "KMSInternalException")
    assert describe(client, key) == key
    assert [call.error for call in fake.calls[-3:]] == ["KMSInternalException", "KMSInternalException", None]


def test_an_outage_gives_no_answer(fake, client, key):
    fake.fail_next(1, NO_ANSWER)
    with pytest.raises(EndpointConnectionError):
        describe(client, key)
    assert fake.calls[-1].error == NO_ANSWER
    assert describe(client, key) == key


def test_calls_take_the_delay(fake, client, key):
    fake.delay = 0.05
    begin = time.monotonic()
    describe(client, key)
    assert time.monotonic() - begin >= 0.05


def test_calls_are_held_and_counted_while_they_are_inside(fake, client, key):
    with ThreadPoolExecutor(4) as pool, fake.hold():
        waiting = [pool.submit(describe, client, key) for _ in range(4)]
        fake.wait_inside(4)
        assert not any(future.done() for future in waiting)
    assert [future.result() for future in waiting] == [key] * 4
    assert fake.peak == 4
    with pytest.raises(TimeoutError, match="0 calls"):
        fake.wait_inside(1, timeout=0.01)


def test_credentials_say_who_calls_until_they_expire(fake, key, refused):
    client = fake.client()
    fake.expire_credentials()
    with refused("ExpiredTokenException"):
        describe(client, key)
    assert describe(fake.client(), key) == key


def test_an_operation_that_is_not_there_is_said_to_be_unknown(client, key, refused):
    with refused("UnknownOperationException"):
        client.get_parameters_for_import(
            KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"
        )


class TestOverHttp:
    def test_a_client_of_boto3_works_against_the_address(self, fake, key, over_http):
        made = over_http.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
        opened = over_http.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)
        assert opened["Plaintext"] == made["Plaintext"]
        assert "CreationDate" in over_http.describe_key(KeyId=key)["KeyMetadata"]
        assert over_http.disable_key(KeyId=key)["ResponseMetadata"]["HTTPStatusCode"] == 200
        with pytest.raises(over_http.exceptions.DisabledException):
            over_http.encrypt(KeyId=key, Plaintext=b"x")

    def test_an_outage_closes_the_connection(self, fake, key, over_http):
        fake.fail_next(1, NO_ANSWER)
        with pytest.raises(Exception, match="Connection was closed"):
            describe(over_http, key)
        assert describe(over_http, key) == key

    def test_an_unsigned_request_is_refused(self, fake):
        with fake.serve() as url:
            connection = http.client.HTTPConnection(urlsplit(url).netloc)
            connection.request("POST", "/", b"{}", {"X-Amz-Target": "TrentService.ListKeys"})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["__type"]) == (
                400,
                "UnrecognizedClientException",
            )
            connection.close()

    def test_many_clients_at_once(self, fake, key, over_http):
        with ThreadPoolExecutor(10) as pool:
            assert set(pool.map(lambda _: describe(over_http, key), range(200))) == {key}

    def test_when_it_ends_no_thread_is_left_and_nobody_answers(self, fake, key):
        before = set(threading.enumerate())  # threads of other tests may end at any moment
        with fake.serve() as url:
            client = boto3.client("kms", region_name=fake.region, endpoint_url=url, **fake.credentials())
            assert describe(client, key) == key
        assert not set(threading.enumerate()) - before
        with pytest.raises(EndpointConnectionError):
            describe(client, key)
