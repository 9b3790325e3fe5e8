"""Profile, role, Region, endpoint and grant tokens: in the key URI, in kms_options, and as arguments."""

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import boto3
import pytest

from eventseal.configuration import EventSeal
from eventseal.configuration.initialise import initialise
from eventseal.errors import ConfigurationError, KmsForbiddenError
from eventseal.kms import adapter_from_uri
from eventseal_kms.aws import AwsKmsAdapter

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
MRK = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
ROLE = "arn:aws:iam::111122223333:role/shop"
TOKEN = "token-that-nobody-may-see"


@pytest.fixture
def profile(kms, no_aws_settings, monkeypatch, tmp_path):
    """A profile with the credentials of a role, and nothing in the environment."""

    def profile(caller=None):
        keys = kms.credentials(caller)
        file = tmp_path / "aws-config"
        file.write_text("[profile prod]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items()))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        return "prod"

    return profile


@contextmanager
def sts(kms, denies=False):
    """An STS that gives a role's credentials."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            keys = kms.credentials(ROLE)
            until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = (
                "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no, "
                f"{keys['aws_secret_access_key']}</Message></Error></ErrorResponse>"
                if denies
                else "<AssumeRoleResponse><AssumeRoleResult><Credentials>"
                f"<AccessKeyId>{keys['aws_access_key_id']}</AccessKeyId>"
                f"<SecretAccessKey>{keys['aws_secret_access_key']}</SecretAccessKey>"
                f"<SessionToken>t</SessionToken><Expiration>{until}</Expiration>"
                "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
            ).encode()
            self.send_response(403 if denies else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_query_gives_profile_endpoint_and_grant_tokens_and_the_uri_stays_canonical(
    kms, key, profile, context
):
    caller = "arn:aws:iam::111122223333:role/writer"
    kms.attach_policy(
        caller,
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": key}]},
    )
    with kms.serve() as url:
        uri = f"{key}?profile={profile(caller)}&endpoint_url={url}&grant_token={TOKEN}&grant_token=b"
        adapter = adapter_from_uri(uri)
        _, wrapped = adapter.generate_data_key(context)
    assert adapter.uri == wrapped.kek_uri == f"aws-kms://{key}"
    assert kms.calls[-1].caller == caller
    assert kms.calls[-1].grant_tokens == (TOKEN, "b")
    assert TOKEN not in f"{adapter!r}"


def test_the_uri_wins_over_the_setting(kms, key, profile, context):
    with kms.serve() as url:
        options = {"aws-kms": {"profile": "missing", "endpoint_url": url, "grant_tokens": ["a"]}}
        adapter_from_uri(f"aws-kms://{key}?profile={profile()}", options).generate_data_key(context)
    assert kms.calls[-1].grant_tokens == ("a",)


def test_a_multi_region_key_is_called_in_the_region_of_the_query():
    assert (
        adapter_from_uri(f"{MRK}?region=us-east-1").uri
        == f"aws-kms://{MRK.replace('eu-west-1', 'us-east-1')}"
    )


@pytest.mark.slow
def test_a_role_is_assumed_once_and_calls_are_its_own(kms, key, sign_in, context, monkeypatch):
    sign_in()
    kms.attach_policy(
        ROLE,
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": key}]},
    )
    with kms.serve() as url, sts(kms) as (sts_url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts_url)
        adapter = AwsKmsAdapter(key, role_arn=ROLE, endpoint_url=url)
        assert not asked
        data_key, wrapped = adapter.generate_data_key(context)
        assert adapter.unwrap(wrapped, context) == data_key
    assert len(asked) == 1
    assert "RoleSessionName=eventseal" in asked[0]
    assert {call.caller for call in kms.calls[-2:]} == {ROLE}


@pytest.mark.slow
def test_a_denied_role_is_named_with_its_remedy(kms, key, sign_in, context, monkeypatch):
    sign_in()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-checked")
    with sts(kms, denies=True) as (sts_url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts_url)
        with pytest.raises(KmsForbiddenError, match=f"AssumeRole.*{ROLE}") as raised:
            AwsKmsAdapter(key, role_arn=ROLE).check()
    assert "sts:AssumeRole" in raised.value.remedy
    assert "trust policy" in raised.value.remedy
    assert "not-checked" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "says", "remedy"),
    [
        ("profil=prod", "unknown option: profil", "Did you mean profile?"),
        ("profile=a&profile=b", "profile twice", ""),
        ("profile=", "profile is not", ""),
        ("profile", "name=value", "grant_token"),
        ("role_arn=shop", "role_arn is not", ""),
        ("region=Europe", "region is not", ""),
        ("region=us-east-1", "us-east-1", "mrk-"),
        (f"endpoint_url=http://u:{TOKEN}@x", "endpoint_url", "https://"),
        (f"endpoint_url={TOKEN}:4566", "endpoint_url", "https://"),
        ("&".join([f"grant_token={TOKEN}"] * 11), "at most 10", ""),
        (f"grant_token={TOKEN}#x", "after #", "%23"),
    ],
)
def test_a_wrong_option_is_refused_at_once_and_not_repeated(query, says, remedy):
    with pytest.raises(ConfigurationError) as raised:
        adapter_from_uri(f"aws-kms://{KEY}?{query}")
    assert says in str(raised.value)
    assert remedy in raised.value.remedy
    assert TOKEN not in f"{raised.value} {raised.value.remedy}"


def test_options_of_a_new_client_do_not_go_with_a_given_one(kms, key):
    with pytest.raises(ConfigurationError, match="client="):
        AwsKmsAdapter(key, client=kms.client(), profile="prod")


class AsynchronousClient:
    """As aiobotocore's: everything of boto3's client, but the call is a coroutine."""

    def __init__(self, client):
        self.meta = client.meta

    async def _make_api_call(self, *_):
        raise AssertionError


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda _kms: boto3.session.Session(), "boto3.session.Session"),
        (lambda _kms: boto3.client("s3", region_name="eu-west-1"), "the service s3"),
        (lambda _kms: f"http://{TOKEN}", "builtins.str"),
        (lambda _kms: False, "builtins.bool"),
        (lambda kms: AsynchronousClient(kms.client()), "asynchronous"),
    ],
    ids=["session", "s3", "text", "false", "asynchronous"],
)
def test_a_client_of_another_kind_is_refused(kms, key, wrong, says):
    with pytest.raises(ConfigurationError, match=says) as raised:
        AwsKmsAdapter(key, client=wrong(kms))
    assert 'boto3.client("kms"' in raised.value.remedy
    assert TOKEN not in str(raised.value)


@pytest.mark.slow
def test_a_store_is_initialised_and_opened_with_a_profile(kms, key, profile, tmp_path, monkeypatch):
    """The database has the canonical URI, and a bare ARN is the same KMS key."""
    monkeypatch.chdir(tmp_path)
    with kms.serve() as url:
        uri = f"aws-kms://{key}?profile={profile()}&endpoint_url={url}&grant_token={TOKEN}"
        steps = initialise(kms_key=uri, store_url="sqlite:///events.sqlite")
        assert TOKEN not in repr(steps)
        with EventSeal.from_settings() as seal:
            assert TOKEN not in repr(seal.settings)
            assert {use.kek_uri for use in seal.key_store.kek_uses("default")} == {f"aws-kms://{key}"}
        (tmp_path / "eventseal.toml").unlink()
        options = {"aws-kms": {"profile": "prod", "endpoint_url": url, "grant_tokens": [TOKEN]}}
        monkeypatch.setenv("EVENTSEAL_KMS_OPTIONS", json.dumps(options))
        with EventSeal.from_settings(kms_key=key, store_url="sqlite:///events.sqlite") as seal:
            seal.keyring.prepare(["application"])
            assert TOKEN not in repr(seal.settings)


def test_one_key_with_and_without_options_is_listed_twice():
    with pytest.raises(ConfigurationError, match="listed twice") as raised:
        EventSeal.from_settings(
            kms_key=[KEY, f"aws-kms://{KEY}?grant_token={TOKEN}"], store_url="sqlite:///:memory:"
        )
    assert TOKEN not in str(raised.value)
